"""`delta_weight`: the distance to the pretrained feature maps."""

from __future__ import annotations

from torch import Tensor

from ...features.activations import pair_maps
from ...features.pairs import LayerPair
from ...losses.baselines.delta import DELTA, relative_distance
from .base import Batch, Term, TermContext, TermOutput

# What a teacher in half precision may differ by from the student that is its copy.
_COPY_TOLERANCE = 0.05


class DeltaTerm(Term):
    """`DELTA` on the layer pairs, for a student that starts as a copy of its teacher."""

    name = "delta"

    def __init__(self, context: TermContext):
        super().__init__(context)
        self.layers = context.layers
        self.loss = DELTA()

    def __call__(self, batch: Batch) -> TermOutput:
        """See `Term`."""
        sides = self.layers.sides(batch.student, batch.teachers)
        total = self.layers.mean([self.loss(*pair_maps(s, t)).loss for s, t in sides])
        return TermOutput(self.config.delta_weight * total, {"delta_loss": total.detach()})

    def check(self, batch: Batch) -> None:
        """Refuses a student that is no copy of its teacher.

        Raises:
            ValueError: maps of other shapes, or that differ on the same images.
        """
        sides = self.layers.sides(batch.student, batch.teachers)
        for pair, (student, teacher) in zip(self.layers.pairs, sides, strict=True):
            _check_copy(pair, *pair_maps(student, teacher))


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
