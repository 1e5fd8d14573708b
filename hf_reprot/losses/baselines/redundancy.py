"""Redundancy suppression: each teacher neuron found again, and no other with it (hf.co/papers/2507.21844)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from ..common import LossOutput
from .base import FeatureLoss


class RedundancySuppression(FeatureLoss):
    """The student, through a network that is thrown away, correlates with each teacher neuron and with no other.

    With Z = mlp(S) (n, d_t), both sides standardised over the batch, and C = T'Z / n their correlations,

        loss = (1/d_t) [ sum_i (1 - C_ii)^2 + kappa sum_{i != j} C_ij^2 ]

    The network (linear, batch normalisation, GELU, linear) keeps the objective off the student's own representation.

    Args:
        student_width: d_s.
        teacher_width: d_t.
        kappa: Weight of the correlations with other neurons, at least 0.
        expansion: Width of the network's middle layer, in units of d_s.

    Inputs:
        | tensor | shape | gradient |
        |---|---|---|
        | student | (n, d_s), any float dtype | yes |
        | teacher | (n, d_t), any float dtype | no |

    Requirements: at least 2 samples; with 1 the loss is 0. The network's parameters are in the optimiser. In a
    distributed run each process correlates its own samples.

    Relations: FitNet asks a linear image of the student for the teacher's values; this asks a network for their
    correlations. `GaussianTransport` learns nothing beside the student.

    Example:
        >>> import torch
        >>> from hf_reprot.losses.baselines import RedundancySuppression
        >>> loss = RedundancySuppression(32, 48)
        >>> out = loss(torch.randn(16, 32, requires_grad=True), torch.randn(16, 48))
        >>> out.loss.backward()

    References: Zhang, Liu, Ran, Ma: "Cross-Architecture Distillation Made Simple with Redundancy Suppression", ICCV
    2025; kappa and the network as in the authors' code, the loss as a mean over teacher neurons where that is a sum.
    """

    learned: ClassVar[bool] = True

    citation = """@inproceedings{zhang2025redundancy,
  title={Cross-Architecture Distillation Made Simple with Redundancy Suppression},
  author={Zhang, Weijia and Liu, Yuehao and Ran, Wu and Ma, Chao},
  booktitle={ICCV},
  year={2025}
}"""

    def __init__(self, student_width: int, teacher_width: int, kappa: float = 0.01, expansion: int = 4):
        super().__init__()
        for name, value in (
            ("student_width", student_width),
            ("teacher_width", teacher_width),
            ("expansion", expansion),
        ):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not 0 <= kappa < float("inf"):
            raise ValueError(f"kappa must be a finite number at least 0, got {kappa}")
        self.kappa = float(kappa)
        middle = expansion * student_width
        self.network = nn.Sequential(
            nn.Linear(student_width, middle, bias=False),
            nn.BatchNorm1d(middle, track_running_stats=False),
            nn.GELU(),
            nn.Linear(middle, teacher_width, bias=False),
        )

    def compare(self, student: Tensor, teacher: Tensor) -> LossOutput:
        if len(student) < 2:  # no correlations, and nothing to normalise by
            return LossOutput(0.0 * student.sum())
        correlations = _standardised(teacher).t() @ _standardised(self.network(student)) / len(student)  # (d_t, d_t)
        diagonal = correlations.diagonal()
        others = correlations.square().sum() - diagonal.square().sum()
        loss = ((1 - diagonal).square().sum() + self.kappa * others) / len(correlations)
        return LossOutput(loss, logs={"correlation": diagonal.detach().mean()})

    def extra_repr(self) -> str:
        return f"kappa={self.kappa}"


def _standardised(x: Tensor) -> Tensor:
    x = x - x.mean(0)
    variance = x.square().mean(0)
    # The root has no gradient at 0.
    return x / (torch.where(variance > 0, variance, 1.0).sqrt() + 1e-5)
