"""How often in a row something has happened, counted on the device and read by the host without waiting for it."""

from __future__ import annotations

import torch
from torch import Tensor


class Streak:
    """Counts steps in a row for several things at once.

    The count stays on the device. On CUDA the host looks at a copy that was started one step earlier or more: what it
    learns is late by a step, and costs nothing.

    Args:
        limit: Steps in a row that `reached` looks for.

    Example:
        >>> streak = Streak(limit=2)
        >>> for happened in ([1.0, 0.0], [1.0, 1.0]):
        ...     streak.record(torch.tensor(happened))
        >>> streak.reached()
        [0]
    """

    def __init__(self, limit: int):
        self.limit = limit
        self.count: Tensor | None = None
        self._copy: Tensor | None = None
        self._arrived: torch.cuda.Event | None = None

    def record(self, happened: Tensor) -> None:
        """Takes in one step: (k,) 1 where it happened, 0 where not."""
        if self.count is None or self.count.shape != happened.shape:
            self.count = torch.zeros_like(happened)
        self.count = (self.count.to(happened) + 1) * happened
        if self.count.is_cuda:
            if self._arrived is not None and not self._arrived.query():
                return  # the former copy is still under way: look at it first
            self._copy = self.count.to("cpu", non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()
        else:
            self._copy = self.count

    def reached(self) -> list[int]:
        """Which of the k have come to the limit, as far as the host knows."""
        if self._copy is None or (self._arrived is not None and not self._arrived.query()):
            return []
        return [i for i, count in enumerate(self._copy.tolist()) if count >= self.limit]

    def reset(self, count: Tensor | None = None) -> None:
        """Starts from (k,) counts, or from none."""
        self.count, self._copy, self._arrived = count, None, None
