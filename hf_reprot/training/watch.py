"""Stops a run whose transport term is not finite again and again, without stalling the device to find out."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from .streak import Streak


class NonFiniteWatch:
    """Counts, for each layer pair, the steps in a row whose term was dropped.

    Args:
        limit: Steps in a row after which `check` raises.
    """

    def __init__(self, limit: int):
        self.names: list[str] = []
        self._streak = Streak(limit)

    def record(self, dropped: Tensor | None) -> None:
        """Takes in one step: 1 for each pair (pairs,) whose term was dropped, 0 for the others."""
        if dropped is not None:
            self._streak.record(dropped)

    def state_dict(self) -> dict[str, Tensor]:
        """The counts, for a checkpoint."""
        return {} if self._streak.count is None else {"watch.streak": self._streak.count}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restores what `state_dict` gave; from an empty one, starts anew."""
        self._streak.reset(state.get("watch.streak"))

    def check(self) -> None:
        """Raises where a pair has been dropped too often.

        Raises:
            FloatingPointError: names the layer pairs.
        """
        lost = self._streak.reached()
        if lost:
            names = ", ".join(self.names[i] if i < len(self.names) else f"number {i}" for i in lost)
            raise FloatingPointError(
                f"the activations of layer pair {names} were not finite for {self._streak.limit} steps in a row: the "
                "transport term was left out each time. Lower the learning rate, train in bfloat16 or float32 rather "
                "than float16, or look for the layer that overflows"
            )
