"""What the losses on a layer pair have in common: shapes that are checked, and float32 outside autocast."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from ..common import LossOutput, check_sides

_SHAPES = {"neurons": "(samples, neurons)", "samples": "(samples, neurons)", "maps": "(samples, channels, positions)"}


class FeatureLoss(nn.Module):
    """A loss between a layer of the student and one of the teacher, on the same samples.

    A subclass says in `input_kind` what a row of its inputs is, and writes `compare`:

    - "neurons": (samples, neurons); a sample is an image, or an image position: the loss is one about neurons.
    - "samples": (samples, neurons); a sample is an image: the loss is about which images are alike.
    - "maps": (samples, channels, positions); both layers have the same positions.

    `learned` says whether it has parameters of its own, which train along with the student and are thrown away;
    `in_teacher_units` whether it grows with the square of the teacher's activations, as a squared difference does.
    """

    input_kind: ClassVar[str] = "neurons"
    learned: ClassVar[bool] = False
    in_teacher_units: ClassVar[bool] = False

    @classmethod
    def for_widths(cls, student_width: int, teacher_width: int) -> FeatureLoss:
        """The loss with its default settings for a layer pair of these widths."""
        return cls(student_width, teacher_width) if cls.learned else cls()

    def forward(self, student: Tensor, teacher: Tensor) -> LossOutput:
        """See the class; the teacher gets no gradient."""
        self._check(student, teacher)
        # Means of squares and kernels in half precision overflow or lose all digits.
        with torch.autocast(device_type=student.device.type, enabled=False):
            dtype = torch.promote_types(student.dtype, torch.float32)
            return self.compare(student.to(dtype), teacher.detach().to(student.device, dtype))

    def compare(self, student: Tensor, teacher: Tensor) -> LossOutput:
        """The loss of two clean tensors in at least float32."""
        raise NotImplementedError

    def _check(self, student: Tensor, teacher: Tensor) -> None:
        dimensions = 3 if self.input_kind == "maps" else 2
        check_sides(student, teacher, _SHAPES[self.input_kind], dimensions)
        if dimensions == 3 and student.shape[2] != teacher.shape[2]:
            raise ValueError(
                f"student has {student.shape[2]} positions and teacher {teacher.shape[2]}: bring both to the coarser "
                "grid first (pair_maps does)"
            )


class ProjectedLoss(FeatureLoss):
    """A loss that sees the student through a learned linear projector to the teacher's width.

    Args:
        student_width: d_s.
        teacher_width: d_t.
    """

    learned: ClassVar[bool] = True

    def __init__(self, student_width: int, teacher_width: int):
        super().__init__()
        for name, width in (("student_width", student_width), ("teacher_width", teacher_width)):
            if width < 1:
                raise ValueError(f"{name} must be at least 1, got {width}")
        self.projector = nn.Linear(student_width, teacher_width)

    def _check(self, student: Tensor, teacher: Tensor) -> None:
        super()._check(student, teacher)
        built = (self.projector.in_features, self.projector.out_features)
        given = (student.shape[1], teacher.shape[1])
        if built != given:
            raise ValueError(f"the projector was built for widths {built} (student, teacher), got {given}")
