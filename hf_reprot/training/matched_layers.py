"""The layer pairs of a run: what they are called, what share of a term each has, their activations as tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..config import OTTransferConfig
from ..features.activations import Activation, kept_rows, pair_neurons
from ..features.pairs import LayerPair
from .teachers import pair_shares, teacher_logs


class MatchedLayers:
    """The layer pairs that terms compare, one object for all of them: a term may replace the pairs in training.

    Args:
        config: The settings.
        pairs: The pairs, resolved.
        teacher_names: What each teacher is called in logs.
        teacher_weights: One weight a teacher.
    """

    def __init__(
        self,
        config: OTTransferConfig,
        pairs: Sequence[LayerPair],
        teacher_names: Sequence[str],
        teacher_weights: Sequence[float],
    ):
        self.config = config
        self.teacher_names = list(teacher_names)
        self.teacher_weights = list(teacher_weights)
        self._changed: list[Callable[[], None]] = []
        self.pairs: list[LayerPair] = []
        self.shares: list[float] = []  # each pair's share of a term; they sum to 1
        self.names: list[str] = []  # what each pair is called in logs and errors
        self.replace(pairs)

    def replace(self, pairs: Sequence[LayerPair]) -> None:
        """Puts other pairs in the place of the present ones, and tells those who asked to be told."""
        self.pairs = list(pairs)
        self.shares = pair_shares(self.pairs, self.teacher_weights)
        self.names = [pair_name(pair, len(self.teacher_names)) for pair in self.pairs]
        for call in self._changed:
            call()

    def on_change(self, call: Callable[[], None]) -> None:
        """Calls back whenever the pairs have been replaced."""
        self._changed.append(call)

    def sides(
        self, student: Mapping[str, Activation], teachers: Sequence[Mapping[str, Activation]]
    ) -> list[tuple[Activation, Activation]]:
        """Each pair's activations, as they were recorded."""
        return [(student[pair.student], teachers[pair.teacher_index][pair.teacher]) for pair in self.pairs]

    def neurons(
        self,
        student: Mapping[str, Activation],
        teachers: Sequence[Mapping[str, Activation]],
        inputs: Mapping[str, Any],
        padded: bool = False,
    ) -> list[tuple[Tensor, Tensor]]:
        """Each pair's activations as two tables with the same samples: (n, d_s) and (n, d_t)."""
        return [self.tables(s, t, inputs, padded) for s, t in self.sides(student, teachers)]

    def tables(
        self, student: Activation, teacher: Activation, inputs: Mapping[str, Any], padded: bool = False
    ) -> tuple[Tensor, Tensor]:
        """One pair's activations as two tables with the same samples: (n, d_s) and (n, d_t).

        Args:
            student, teacher: The pair's layers.
            inputs: The batch, with its masks.
            padded: Leave the padding of texts in (`kept`), so that nothing waits for the device.
        """
        return pair_neurons(
            student,
            teacher,
            positions=self.config.ot_positions,
            tokens=self.config.ot_tokens,
            mask=inputs.get("attention_mask"),
            teacher_mask=inputs.get("teacher_attention_mask"),
            padded=padded,
        )

    def kept(self, student: Mapping[str, Activation], inputs: Mapping[str, Any]) -> list[Tensor | None]:
        """(n,) of each pair, 1 for the rows of its padded tables that count, and 0 for padding; None: all count."""
        how = {"positions": self.config.ot_positions, "tokens": self.config.ot_tokens}
        mask = inputs.get("attention_mask")
        return [kept_rows(student[pair.student], mask=mask, **how) for pair in self.pairs]

    def mean(self, values: Sequence[Tensor]) -> Tensor:
        """() The mean of one value a pair, by their shares."""
        return torch.stack([share * value for share, value in zip(self.shares, values, strict=True)]).sum()

    def logs(self, term: str, values: Sequence[Tensor]) -> dict[str, Tensor]:
        """One value a pair for the log: each pair's own where there are several, and each of several teachers'."""
        logs = {}
        if len(values) > 1:
            logs = {f"{term}/{name}": value.detach() for name, value in zip(self.names, values, strict=True)}
        return logs | teacher_logs(term, values, self.pairs, self.shares, self.teacher_names)


def pair_name(pair: LayerPair, teachers: int = 1) -> str:
    """A pair as it is written in logs and on the command line: student=teacher, teachers told apart by number."""
    return f"{pair.student}={pair.teacher}" + (f"@{pair.teacher_index}" if teachers > 1 else "")
