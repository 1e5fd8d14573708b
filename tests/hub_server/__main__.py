"""`python -m tests.hub_server`: a local Hub to try things on by hand."""

from __future__ import annotations

import argparse
import threading
import time

from tests.hub_server.record import Record
from tests.hub_server.server import HubServer


class _Talking(HubServer):
    def on_request(self, record: Record) -> None:
        status = "cut" if record.cut else record.status
        print(time.strftime("%H:%M:%S"), status, record.method, record.path, flush=True)


def main(arguments: list[str] | None = None) -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(prog="python -m tests.hub_server", description="A local Hub on 127.0.0.1.")
    parser.add_argument("--dir", default="hub-files", help="where repositories are kept (default: %(default)s)")
    parser.add_argument("--port", type=int, default=0, help="TCP port (default: a free one)")
    parser.add_argument("--user", default="ada", help="a user with a write and a read token (default: %(default)s)")
    options = parser.parse_args(arguments)
    with _Talking(options.dir, options.port) as hub:
        write, read = f"hf_write_{options.user}", f"hf_read_{options.user}"
        hub.add_user(options.user, write, "write")
        hub.add_user(options.user, read, "read")
        print("In another shell:")
        print(f"  export HF_ENDPOINT={hub.endpoint} HF_HUB_DISABLE_XET=1 HF_HOME=$(mktemp -d) HF_TOKEN={write}")
        print(f"  # {read} is the read-only token of the same user; end with Ctrl-C", flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            print("stopped")


if __name__ == "__main__":
    main()
