"""What every loss of this package returns."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


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
