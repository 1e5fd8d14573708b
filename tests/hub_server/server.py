"""The server itself: its life, its users, and the doors for tests."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import threading
from collections import deque
from http.server import ThreadingHTTPServer
from pathlib import Path
from types import TracebackType

from tests.hub_server.accounts import Accounts, Identity
from tests.hub_server.faults import Faults
from tests.hub_server.handler import Handler
from tests.hub_server.record import Record
from tests.hub_server.storage import MAIN, Commit, Repo, Store

_HOST = "127.0.0.1"
# A second name of the same address, for large files: the client must not take it for the Hub itself.
_STORAGE_HOST = "localhost"
_KEPT_REQUESTS = 5000


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that go away are nothing to report; the handler reports its own errors."""


class HubServer:
    """A Hub on a loopback port, with its repositories in a directory.

    Args:
        directory: Where repositories are kept; one that an earlier server has filled is continued.
        port: TCP port; 0 takes a free one.

    Attributes:
        endpoint: The URL for `HF_ENDPOINT`.
        requests: The latest requests (`Record`), oldest first.
        faults: The failures still to come; see `fail_next`, `cut_next`, `lose_next`.

    Example:
        >>> with HubServer(tmp_path) as hub:
        ...     hub.add_user("ada", token="hf_write_ada")
        ...     subprocess.run([sys.executable, "push.py"], env=hub.env(token="hf_write_ada"), check=True)
        ...     assert "config.json" in hub.files("ada/student")
    """

    def __init__(self, directory: str | os.PathLike[str], port: int = 0) -> None:
        self.directory = Path(directory)
        self.store = Store(self.directory)
        self.accounts = Accounts()
        self.faults = Faults()
        self.requests: deque[Record] = deque(maxlen=_KEPT_REQUESTS)
        self._secret = secrets.token_bytes(16)
        self._homes = 0
        self._server = _Server((_HOST, port), type("BoundHandler", (Handler,), {"hub": self}))
        self._thread: threading.Thread | None = None
        port = self._server.server_address[1]
        self.endpoint = f"http://{_HOST}:{port}"
        self.storage_endpoint = f"http://{_STORAGE_HOST}:{port}"

    # life

    def start(self) -> HubServer:
        """Serve in a thread of its own."""
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()
        return self

    def stop(self) -> None:
        """Stop serving and free the port; the directory stays."""
        if self._thread is not None:
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()

    def __enter__(self) -> HubServer:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # users and their processes

    def add_user(self, name: str, token: str, role: str = "write", orgs: tuple[str, ...] = ()) -> Identity:
        """Make `token` valid for a user. `role` is "read" or "write"; a user may have one token of each."""
        return self.accounts.add(name, token, role, orgs)

    def env(self, token: str | None = None, hf_home: str | os.PathLike[str] | None = None) -> dict[str, str]:
        """The environment for a process that takes this server for the Hub.

        Args:
            token: Its `HF_TOKEN`; None is an anonymous process.
            hf_home: Its `HF_HOME`, where downloads are cached; by default a new empty folder.

        Returns:
            This process's environment without anything that would lead to another Hub, another cache, another token
            or offline mode.
        """
        if hf_home is None:
            self._homes += 1
            hf_home = self.directory / "homes" / str(self._homes)
        prefixes = ("HF_", "HUGGING_FACE_", "HUGGINGFACE_", "TRANSFORMERS_")
        env = {key: value for key, value in os.environ.items() if not key.startswith(prefixes)}
        local = ",".join([*filter(None, [env.get("NO_PROXY") or env.get("no_proxy")]), _HOST, _STORAGE_HOST])
        env |= {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(hf_home),
            "HF_HUB_DISABLE_XET": "1",  # a Xet upload does not fall back to plain HTTP
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": local,
            "no_proxy": local,
        }
        if token is not None:
            env["HF_TOKEN"] = token
        return env

    # what is on it

    def repo(self, repo_id: str, repo_type: str = "model") -> Repo:
        """A repository, private or not; KeyError if there is none."""
        repo = self.store.get(f"{repo_type}s", repo_id)
        if repo is None:
            known = ", ".join(known.id for known in self.store.repos(f"{repo_type}s")) or "none"
            raise KeyError(f"no {repo_type} repository {repo_id!r} here; there are: {known}")
        return repo

    def files(self, repo_id: str, revision: str = MAIN, repo_type: str = "model") -> dict[str, bytes]:
        """Every file of a revision with its content."""
        entries = self._commit(repo_id, revision, repo_type).files
        return {path: self.store.read(entry) for path, entry in entries.items()}

    def commits(self, repo_id: str, revision: str = MAIN, repo_type: str = "model") -> list[Commit]:
        """The history of a revision, newest first."""
        repo = self.repo(repo_id, repo_type)
        return list(self.store.history(repo, self._commit(repo_id, revision, repo_type)))

    def _commit(self, repo_id: str, revision: str, repo_type: str) -> Commit:
        repo = self.repo(repo_id, repo_type)
        commit = self.store.find(repo, revision)
        if commit is None:
            known = ", ".join([*repo.branches, *repo.tags])
            raise KeyError(f"{repo_id!r} has no revision {revision!r}; there are: {known}")
        return commit

    # failures

    def fail_next(
        self, method: str, path: str = "", times: int = 1, status: int = 503, message: str = "", retry_after: str = ""
    ) -> None:
        """Answer the next `times` requests with an error status, and do nothing of what they ask.

        Args:
            method: "GET", "POST", ...; large files are sent with "PUT".
            path: A regular expression to be found in the path, such as "/commit/" or "/_upload/".
            times: How many requests fail.
            status: The HTTP status. The client repeats most requests by itself after 500, 502, 503, 504 and 429.
            message: The Hub's error message.
        """
        self.faults.plan("status", method, path, times, status=status, message=message, retry_after=retry_after)

    def cut_next(self, method: str, path: str = "", times: int = 1, after_bytes: int = 0) -> None:
        """Close the connection of the next `times` requests after `after_bytes` bytes.

        They are bytes of the request's body, which is thrown away, or of the answer's body where the request has none.
        """
        self.faults.plan("cut", method, path, times, after_bytes=after_bytes)

    def lose_next(self, method: str, path: str = "", times: int = 1) -> None:
        """Do what the next `times` requests ask, but close the connection without an answer."""
        self.faults.plan("lost", method, path, times)

    def slow_next(self, method: str, path: str = "", times: int = 1, seconds: float = 1.0) -> None:
        """Do the work of the next matching requests, and answer after some seconds."""
        self.faults.plan("slow", method, path, times, seconds=seconds)

    # for the routes

    def page(self, kind: str, repo_id: str) -> str:
        """The web address of a repository."""
        return f"{self.endpoint}/{repo_id}" if kind == "models" else f"{self.endpoint}/{kind}/{repo_id}"

    def sign(self, text: str) -> str:
        """A signature that only this server can make: the right to one large file, without a token."""
        return hmac.new(self._secret, text.encode(), hashlib.sha256).hexdigest()[:32]

    def on_request(self, record: Record) -> None:
        """Called after each request; the command line prints them."""
