"""Which worker runs which tests where pytest-xdist spreads them (`--dist loadfile`); what garbage collection skips."""

from __future__ import annotations

import gc
from typing import Any

import pytest

_FIRST = ("slow", "distributed")
# They share what two launches of two processes found (`tests/distributed/conftest.py`): one worker makes it.
_SHARING = ("tests/distributed/test_sharded.py", "tests/distributed/test_two_processes.py")


def pytest_configure(config: pytest.Config) -> None:
    """The order below, instead of xdist's: most tests first, which leaves files of few long tests to the end."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with tests that take long go first, so that no worker ends alone with one of them.

    An address in a test's name differs between workers, which then refuse to begin: it is named here.
    """
    addresses = [item.nodeid for item in items if " at 0x" in item.nodeid]
    if addresses:
        raise pytest.UsageError(f"give ids= to the parameters of {addresses[0]}")
    long = {item.path for item in items if any(item.get_closest_marker(name) for name in _FIRST)}
    items.sort(key=lambda item: item.path not in long)


def pytest_collection_finish() -> None:
    """What has been imported stays: `Trainer` collects garbage after every run, and that takes a second of a processor
    where it looks through the half million objects of the libraries as well."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A file's tests stay together, and so do files that share what takes long to make."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Together(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            scope = super()._split_scope(nodeid)
            return _SHARING[0] if scope in _SHARING else scope

    return Together(config, log)
