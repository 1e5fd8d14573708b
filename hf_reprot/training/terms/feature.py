"""`feature_loss`: a loss of `hf_reprot.losses.baselines` on the layer pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...features.activations import Activation, pair_maps
from ...losses.baselines import FEATURE_LOSSES
from ...losses.collective import world_size
from ..teachers import teacher_variance
from .base import Batch, Term, TermContext, TermOutput


class FeatureTerm(Term):
    """The loss that `feature_loss` names, one module a layer pair."""

    name = "feature"

    def __init__(self, context: TermContext):
        super().__init__(context)
        self.layers = context.layers
        self.kind = FEATURE_LOSSES[str(self.config.feature_loss)]
        self.losses = nn.ModuleList()

    def modules(self, widths: Sequence[tuple[int, int]], device: torch.device) -> Mapping[str, nn.Module]:
        """Makes the losses of the layer pairs; those with parameters train along.

        Raises:
            ValueError: a loss with parameters, and no widths.
        """
        if self.kind.learned and not widths:
            raise ValueError(
                f"feature_loss={self.config.feature_loss!r} has a projector, and the widths of the layers are not "
                "known before training: give a processing_class with the size of the images, and train without FSDP "
                "and DeepSpeed; or choose a feature_loss without one (attention, nst, rkd, similarity, cka)"
            )
        widths = widths or [(1, 1)] * len(self.layers.pairs)
        self.losses = nn.ModuleList(self.kind.for_widths(*pair) for pair in widths)
        return {"feature": self.losses} if self.kind.learned else {}

    def check(self, batch: Batch) -> None:
        """Refuses layers without positions where the loss needs them.

        Raises:
            ValueError: as `pair_maps` and `pair_neurons`.
        """
        for student, teacher in self.layers.sides(batch.student, batch.teachers):
            self._inputs(student, teacher, {})

    def __call__(self, batch: Batch) -> TermOutput:
        """See `Term`."""
        outputs, values = [], []
        for loss, sides in zip(self.losses, self.layers.sides(batch.student, batch.teachers), strict=True):
            student, teacher = self._inputs(*sides, batch.inputs)
            outputs.append(loss(student, teacher))
            values.append(outputs[-1].loss / self._unit(teacher))
        total = self.layers.mean(values)
        logs = {"feature_loss": total.detach()}
        for name in outputs[0].logs:
            logs[f"feature_{name}"] = self.layers.mean([output.logs[name] for output in outputs])
        return TermOutput(self.config.feature_weight * total, logs | self.layers.logs("feature_loss", values))

    def _inputs(self, student: Activation, teacher: Activation, inputs: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """A pair's activations as the feature loss takes them."""
        everywhere = self.config.ot_positions == "all"
        if self.kind.input_kind == "maps":
            return pair_maps(student, teacher)
        if self.kind.input_kind == "samples" and everywhere:  # one row an image, all its positions in it
            ours, theirs = pair_maps(student, teacher)
            return ours.flatten(1), theirs.flatten(1)
        return self.layers.tables(student, teacher, inputs)

    def _unit(self, teacher: Tensor) -> Tensor | float:
        """What a loss is divided by: with several teachers, raw values are brought to the scale of each."""
        if len(self.layers.teacher_names) < 2 or not self.kind.in_teacher_units:
            return 1.0
        return teacher_variance(teacher, everywhere=self.config.ot_global_batch and world_size() > 1)
