"""What every loss of this package returns."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..ot.moments import Gate


@dataclass
class LossOutput:
    """One loss on one batch.

    Attributes:
        loss: Scalar, differentiable in the student.
        logs: Detached scalars worth a line in a training log, by name. Averaging them over steps is meaningful.
        plan: The coupling `(d_s, d_t)` that the loss used, detached, for the losses that have one.
    """

    loss: Tensor
    logs: dict[str, Tensor] = field(default_factory=dict)
    plan: Tensor | None = None


def check_sides(student: Tensor, teacher: Tensor, shape: str, dimensions: int) -> None:
    """Refuses tensors that cannot be compared sample by sample.

    Args:
        student, teacher: What a loss is given.
        shape: Their legal shape, in words.
        dimensions: How many dimensions that is.

    Raises:
        ValueError: another number of dimensions, or different numbers of samples.
        TypeError: not of a floating point dtype.
    """
    for side, x in (("student", student), ("teacher", teacher)):
        if x.ndim != dimensions:
            raise ValueError(f"{side} must have shape {shape}, got {tuple(x.shape)}")
        if not x.is_floating_point():
            raise TypeError(f"{side} must be of a floating point dtype, got {x.dtype}")
    if student.shape[0] != teacher.shape[0]:
        raise ValueError(
            f"student has {student.shape[0]} samples and teacher {teacher.shape[0]}: "
            "row k of both must come from the same sample"
        )


class GradientGate(Gate):
    """Lets a gradient through, or replaces it by 0, by a flag that may still fall after the forward pass.

    The gate is the identity forward; backward it selects the gradient or zeros by the flag.
    """

    def __init__(self, device: torch.device):
        super().__init__(torch.ones((), dtype=torch.bool, device=device))

    def __call__(self, x: Tensor) -> Tensor:
        return _Gated.apply(x, self)


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, gate: GradientGate) -> Tensor:
        ctx.gate = gate
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return torch.where(ctx.gate.open, gradient, torch.zeros((), dtype=gradient.dtype, device=gradient.device)), None
