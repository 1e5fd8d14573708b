"""The terms that transport is compared with, on the same layer pairs: `feature_loss`, `delta_weight`, `bss_weight`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..config import OTTransferConfig
from ..features.activations import Activation, pair_maps, pair_neurons, pooled_neurons
from ..features.architecture import last_layer
from ..features.pairs import LayerPair
from ..losses.baselines import FEATURE_LOSSES
from ..losses.baselines.delta import DELTA, relative_distance
from ..losses.baselines.spectral import BatchSpectralShrinkage
from ..losses.collective import world_size
from .teachers import teacher_logs, teacher_variance

# What a teacher in half precision may differ by from the student that is its copy.
_COPY_TOLERANCE = 0.05


class Rivals:
    """Feature losses, DELTA and batch spectral shrinkage for one student.

    Args:
        config: The settings.
        student: The unwrapped student.
        pairs: The layer pairs, resolved.
        names: What each pair is called in the logs.
        shares: Each pair's share of a term.
        teachers: What each teacher is called in the logs.
    """

    def __init__(
        self,
        config: OTTransferConfig,
        student: nn.Module,
        pairs: Sequence[LayerPair],
        names: Sequence[str],
        shares: Sequence[float],
        teachers: Sequence[str],
    ):
        self.config = config
        self.pairs = list(pairs)
        self.names = list(names)
        self.shares = list(shares)
        self.teachers = list(teachers)
        self.kind = FEATURE_LOSSES[config.feature_loss] if config.uses_feature_loss else None
        self.feature_losses = nn.ModuleList()
        self.delta = DELTA() if config.delta_weight > 0 else None
        self.shrinkage = BatchSpectralShrinkage(config.bss_k) if config.bss_weight > 0 else None
        self.last = last_layer(student) if self.shrinkage is not None else None
        # Layers of the student that are read besides those of the pairs.
        self.layers = [] if self.last is None else [self.last]

    def build(self, widths: Sequence[tuple[int, int]]) -> dict[str, nn.Module]:
        """Makes the losses of each layer pair; those with parameters, by the name that a checkpoint has them under.

        Args:
            widths: (d_s, d_t) of each pair; empty where they are not known.

        Raises:
            ValueError: a loss with parameters, and no widths.
        """
        if self.kind is None:
            return {}
        if self.kind.learned and not widths:
            raise ValueError(
                f"feature_loss={self.config.feature_loss!r} has a projector, and the widths of the layers are not "
                "known before training: give a processing_class with the size of the images, and train without FSDP "
                "and DeepSpeed; or choose a feature_loss without one (attention, nst, rkd, similarity, cka)"
            )
        widths = widths or [(1, 1)] * len(self.pairs)
        self.feature_losses = nn.ModuleList(self.kind.for_widths(*pair) for pair in widths)
        return {"feature": self.feature_losses} if self.kind.learned else {}

    def check(self, student: Mapping[str, Activation], teachers: Sequence[Mapping[str, Activation]]) -> None:
        """Refuses, on one batch in evaluation mode, layers that a loss cannot compare.

        Raises:
            ValueError: no positions where they are needed, or DELTA with a student that is no copy of its teacher.
        """
        for pair in self.pairs:
            s, t = student[pair.student], teachers[pair.teacher_index][pair.teacher]
            if self.kind is not None:
                self._see(s, t, {})
            if self.delta is not None:
                _check_copy(pair, *pair_maps(s, t))

    def __call__(
        self,
        student: Mapping[str, Activation],
        teachers: Sequence[Mapping[str, Activation]],
        inputs: Mapping[str, Any],
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """The weighed terms of one batch, and what to log."""
        terms, logs = [], {}
        sides = []
        if self.kind is not None or self.delta is not None:  # the pairs are those of the start
            sides = [(student[pair.student], teachers[pair.teacher_index][pair.teacher]) for pair in self.pairs]
        if self.kind is not None:
            outputs, losses = [], []
            for loss, (s, t) in zip(self.feature_losses, sides, strict=True):
                seen = self._see(s, t, inputs)
                outputs.append(loss(*seen))
                losses.append(outputs[-1].loss / self._unit(seen[1]))
            total = self._mean(losses)
            terms.append(self.config.feature_weight * total)
            logs["feature_loss"] = total.detach()
            for name in outputs[0].logs:
                logs[f"feature_{name}"] = self._mean([output.logs[name] for output in outputs])
            if len(outputs) > 1:
                for name, value in zip(self.names, losses, strict=True):
                    logs[f"feature_loss/{name}"] = value.detach()
                logs |= teacher_logs("feature_loss", losses, self.pairs, self.shares, self.teachers)
        if self.delta is not None:
            total = self._mean([self.delta(*pair_maps(s, t)).loss for s, t in sides])
            terms.append(self.config.delta_weight * total)
            logs["delta_loss"] = total.detach()
        if self.shrinkage is not None:
            tokens, mask = self.config.ot_tokens, inputs.get("attention_mask")
            output = self.shrinkage(pooled_neurons(student[self.last], tokens=tokens, mask=mask))
            terms.append(self.config.bss_weight * output.loss)
            logs["bss_loss"] = output.loss.detach()
            logs["bss_smallest"] = output.logs["smallest"]
        return terms, logs

    def _see(self, student: Activation, teacher: Activation, inputs: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """A pair's activations as the feature loss takes them."""
        everywhere = self.config.ot_positions == "all"
        if self.kind.sees == "maps":
            return pair_maps(student, teacher)
        if self.kind.sees == "samples" and everywhere:  # one row an image, all its positions in it
            return tuple(x.flatten(1) for x in pair_maps(student, teacher))
        return pair_neurons(
            student,
            teacher,
            positions=self.config.ot_positions,
            tokens=self.config.ot_tokens,
            mask=inputs.get("attention_mask"),
            teacher_mask=inputs.get("teacher_attention_mask"),
        )

    def _mean(self, values: Sequence[Tensor]) -> Tensor:
        """The mean over layer pairs, by their shares."""
        return torch.stack([share * value for share, value in zip(self.shares, values, strict=True)]).sum()

    def _unit(self, teacher: Tensor) -> Tensor | float:
        """What a loss is divided by: with several teachers, raw values are brought to the scale of each."""
        if len(self.teachers) < 2 or not self.kind.in_teacher_units:
            return 1.0
        return teacher_variance(teacher, everywhere=self.config.ot_global_batch and world_size() > 1)


def _check_copy(pair: LayerPair, student: Tensor, teacher: Tensor) -> None:
    """Refuses maps (n, c, positions) that are not those of a copy."""
    needs = "delta_weight needs a student that starts as a copy of the teacher, but"
    if student.shape != teacher.shape:
        raise ValueError(
            f"{needs} {pair.student} has maps of {tuple(student.shape[1:])} (channels, positions) and {pair.teacher} "
            f"of {tuple(teacher.shape[1:])}: use a feature_loss, or layers of one shape"
        )
    distance = relative_distance(student, teacher)
    if not distance <= _COPY_TOLERANCE:
        raise ValueError(
            f"{needs} on the same images {pair.student} differs from {pair.teacher} by {distance:.0%} of its length: "
            "load both from the same weights (to resume, too), or use a feature_loss"
        )
