"""Two launches of two processes do the work of all tests here: most of a launch is imports."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.distributed.launching import torchrun


@pytest.fixture(scope="session")
def results(tmp_path_factory) -> dict[str, Any]:
    """What two processes found: first a run in which one is killed, then everything else, that run resumed too."""
    folder = tmp_path_factory.mktemp("two_processes")
    killed = torchrun("-m", "tests.distributed.worker", "killed", str(folder))
    assert "exitcode  : -9" in killed.stderr, killed.stderr[-3000:]
    done = torchrun("-m", "tests.distributed.worker", "everything", str(folder))
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(folder / "everything.pt", weights_only=True) | {"folder": str(folder)}
