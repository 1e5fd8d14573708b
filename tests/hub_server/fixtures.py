"""Fixtures for tests that push to a Hub and load from it.

Import them into the test module that needs them: `from tests.hub_server.fixtures import hub, run_with_hub`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.hub_server.server import HubServer

WRITE_TOKEN = "hf_write_ada"
READ_TOKEN = "hf_read_ada"
OTHER_TOKEN = "hf_write_bob"


def add_users(hub: HubServer) -> HubServer:
    """User ada with a write token, a read token and the organisation "lab"; user bob with a write token."""
    hub.add_user("ada", WRITE_TOKEN, "write", orgs=("lab",))
    hub.add_user("ada", READ_TOKEN, "read", orgs=("lab",))
    hub.add_user("bob", OTHER_TOKEN, "write")
    return hub


def run_python(
    hub: HubServer,
    script_or_args: str | Sequence[str | os.PathLike[str]],
    *,
    token: str | None = WRITE_TOKEN,
    hf_home: str | os.PathLike[str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    env: dict[str, str] | None = None,
    timeout: float = 240,
    check: bool = True,
) -> subprocess.CompletedProcess[str]:
    """Run a fresh Python process against a server: the client reads its endpoint when it is imported.

    Args:
        hub: The server.
        script_or_args: The text of a script, or a list of arguments for the interpreter, such as `["-m", "module"]`.
        token: `HF_TOKEN` of the process; None is anonymous.
        hf_home: Its `HF_HOME`; by default a new empty one.
        cwd: Its working directory; by default the server's directory.
        env: More environment variables.
        timeout: Seconds until it is killed.
        check: Fail the test, showing the process's output, when it ends with an error.

    Returns:
        The ended process with its output as text.
    """
    if isinstance(script_or_args, str):
        args = ["-c", textwrap.dedent(script_or_args)]
    else:
        args = [os.fspath(argument) for argument in script_or_args]
    root = str(Path(__file__).parents[2])  # `-m tests...` and the package are found from any working directory
    environment = {"OMP_NUM_THREADS": "1", **hub.env(token=token, hf_home=hf_home), **(env or {})}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, environment.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, *args],
        env=environment,
        cwd=cwd or hub.directory,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    if check and done.returncode:
        pytest.fail(f"the process ended with {done.returncode}\n{done.stdout}\n{done.stderr}", pytrace=False)
    return done


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    """A running server with the users of `add_users` and no repository."""
    with HubServer(tmp_path / "hub") as server:
        yield add_users(server)


@pytest.fixture
def run_with_hub(hub: HubServer) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`run_python` against the `hub` of this test."""

    def run(
        script_or_args: str | Sequence[str | os.PathLike[str]], **options: object
    ) -> subprocess.CompletedProcess[str]:
        return run_python(hub, script_or_args, **options)

    return run
