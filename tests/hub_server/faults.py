"""Failures on demand: the next request that fits gets an error status, a cut connection, no answer, or a late one."""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass


@dataclass
class Fault:
    """One planned failure.

    `kind` is "status" (answer with `status`, do nothing), "cut" (close the connection after `after_bytes` of the
    request's body, or of the answer's body where the request has none) "lost" (do the work, give no answer)
    or "slow" (do the work, answer after `seconds`). A "status" may carry a `retry_after` header.
    """

    kind: str
    method: str
    pattern: re.Pattern[str]
    times: int
    status: int = 503
    after_bytes: int = 0
    message: str = ""
    retry_after: str = ""
    seconds: float = 0.0


class Faults:
    """The failures still to come, taken in the order in which they were planned."""

    def __init__(self) -> None:
        self._planned: list[Fault] = []
        self._lock = threading.Lock()

    def plan(self, kind: str, method: str, path: str, times: int, **details: int | float | str) -> None:
        """Add a failure for the next `times` requests with this method whose path contains the regex `path`."""
        if times < 1:
            raise ValueError(f"times={times}; a fault happens at least once")
        with self._lock:
            self._planned.append(Fault(kind, method.upper(), re.compile(path), times, **details))

    def take(self, method: str, path: str) -> Fault | None:
        """The failure that this request gets, if any; it counts as one of the planned times."""
        with self._lock:
            for fault in self._planned:
                if fault.method == method and fault.pattern.search(path):
                    fault.times -= 1
                    if not fault.times:
                        self._planned.remove(fault)
                    return fault
        return None

    @property
    def pending(self) -> int:
        """How many planned failures have not happened yet."""
        with self._lock:
            return sum(fault.times for fault in self._planned)
