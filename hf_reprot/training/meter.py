"""Averages of named scalars over a logging window, kept on the device until someone asks."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

SUMMED = ("ot_dropped", "ot_skipped", "dropped_steps")  # counts: their sum over the window says more than their mean


class Meter:
    """Adds up scalars step by step; `pop` gives the window's means (sums for counts) and starts the next window."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.steps: dict[str, int] = {}

    def add(self, logs: Mapping[str, Tensor]) -> None:
        """Adds one step's detached scalars."""
        for name, value in logs.items():
            value = value.detach().float()
            self.sums[name] = self.sums[name] + value if name in self.sums else value
            self.steps[name] = self.steps.get(name, 0) + 1

    def pop(self, gather: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """The window's values, averaged over processes.

        Args:
            gather: Collective that takes (k,) of this process to (processes * k,); the same names on every process.
        """
        if not self.sums:
            return {}
        names = sorted(self.sums)
        mine = torch.stack([self.sums[n] / (1 if n in SUMMED else self.steps[n]) for n in names])
        means = gather(mine).view(-1, len(names)).mean(0).tolist()
        self.sums, self.steps = {}, {}
        return dict(zip(names, means, strict=True))
