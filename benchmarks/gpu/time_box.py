"""Parts one after the other, each in a time box of its own."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping

from .results import Results
from .sizes import Sizes

Part = Callable[[Results, Sizes, "Box"], None]


class OutOfTime(BaseException):
    """A part's time is up. No `Exception`: what a part tries, and does without, must not catch it."""


class Box:
    """The time of one part.

    Args:
        seconds: From now on.
    """

    def __init__(self, seconds: float):
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds."""
        return self._end - time.monotonic()


def run_parts(parts: Mapping[str, tuple[Part, float]], results: Results, sizes: Sizes, seconds: float) -> None:
    """Runs each part for its share of what is left of the time.

    Args:
        parts: Of each, what runs it, and its share.
        results: Where it writes.
        sizes: Of its problems.
        seconds: Of all parts.
    """
    end, shares = time.monotonic() + seconds, [share for _, share in parts.values()]
    for i, (name, (part, share)) in enumerate(parts.items()):
        begin = time.monotonic()
        box = Box(max(0.0, end - begin) * share / sum(shares[i:]))
        how = "done"
        try:
            with _stopping_after(box.seconds):
                part(results, sizes, box)
        except OutOfTime:
            how = "out of time"
        except Exception as error:  # the other parts still have something to say
            how = f"failed: {type(error).__name__}: {error}"
            results.note(name, "".join(traceback.format_exception(error)[-3:]).strip())
        results.end(name, how, time.monotonic() - begin)


@contextlib.contextmanager
def _stopping_after(seconds: float) -> Iterator[None]:
    """Raises `OutOfTime` inside, where signals can be had; elsewhere a part has to look at its box itself."""
    able = hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()

    def stop(*_: object) -> None:
        raise OutOfTime

    former = signal.signal(signal.SIGALRM, stop) if able else None
    try:
        if able:
            signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3))
        yield
    finally:
        if able:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, former)
