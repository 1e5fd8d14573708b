"""Stops a run whose transport term is not finite again and again, without stalling the device to find out."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class NonFiniteWatch:
    """Counts, for each layer pair, the steps in a row whose term was dropped.

    The count stays on the device; what the host looks at is a copy that was started one step earlier.

    Args:
        limit: Steps in a row after which `check` raises.
    """

    def __init__(self, limit: int):
        self.limit = limit
        self.names: list[str] = []
        self._streak: Tensor | None = None
        self._copy: Tensor | None = None
        self._arrived: torch.cuda.Event | None = None

    def record(self, dropped: Tensor | None) -> None:
        """Takes in one step: 1 for each pair (pairs,) whose term was dropped, 0 for the others."""
        if dropped is None:
            return
        if self._streak is None or self._streak.shape != dropped.shape:
            self._streak = torch.zeros_like(dropped)
        self._streak = (self._streak.to(dropped) + 1) * dropped
        if self._streak.is_cuda:
            if self._arrived is not None and not self._arrived.query():
                return  # the former copy is still under way: look at it first
            self._copy = self._streak.to("cpu", non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()
        else:
            self._copy = self._streak

    def state_dict(self) -> dict[str, Tensor]:
        """The counts, for a checkpoint."""
        return {} if self._streak is None else {"watch.streak": self._streak}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restores what `state_dict` gave; from an empty one, starts anew."""
        self._streak, self._copy, self._arrived = state.get("watch.streak"), None, None

    def check(self) -> None:
        """Raises where a pair has been dropped too often.

        Raises:
            FloatingPointError: names the layer pairs.
        """
        if self._copy is None or (self._arrived is not None and not self._arrived.query()):
            return
        lost = [i for i, count in enumerate(self._copy.tolist()) if count >= self.limit]
        if lost:
            names = ", ".join(self.names[i] if i < len(self.names) else f"number {i}" for i in lost)
            raise FloatingPointError(
                f"the activations of layer pair {names} were not finite for {self.limit} steps in a row: the transport "
                "term was left out each time. Lower the learning rate, train in bfloat16 or float32 rather than "
                "float16, or look for the layer that overflows"
            )
