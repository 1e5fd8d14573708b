"""One process at a time works on a shard: a lock that ends with the process that holds it, however that ends."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout


@contextlib.contextmanager
def claim(path: Path, wait: bool = False) -> Iterator[bool]:
    """Takes hold of a lock file for the block inside.

    The operating system lets go of it when the process dies, so that a killed build leaves nothing locked.

    Args:
        path: The lock file.
        wait: Wait for whoever holds it.

    Yields:
        Whether it is ours; False (only without `wait`) where another process holds it.
    """
    lock = FileLock(str(path), timeout=-1 if wait else 0)
    try:
        lock.acquire()
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()
