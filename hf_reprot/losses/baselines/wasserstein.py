"""Wasserstein distillation of features: each channel a Gaussian over positions (hf.co/papers/2412.08139)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from ..common import LossOutput
from .base import ProjectedLoss

_VARIANCE_FLOOR = 1e-5  # under the root, as in the authors' code


class GaussianWasserstein(ProjectedLoss):
    """2-Wasserstein distance between Gaussians with diagonal covariance, one an image, behind a learned projector.

    For every image, the p positions of the projected student layer have mean mu_s and standard deviations sigma_s (one
    a channel), the teacher's mu_t and sigma_t:

        loss = mean over images of  mean_weight * || mu_s - mu_t ||^2 + || sigma_s - sigma_t ||^2

    With `mean_weight` 1 this is the squared W2 distance of the two Gaussians.

    Args:
        student_width: c_s.
        teacher_width: c_t.
        mean_weight: Weight of the means beside the deviations.

    Inputs:
        | tensor | shape | gradient |
        |---|---|---|
        | student | (n, c_s, p), any float dtype | yes |
        | teacher | (n, c_t, p), any float dtype | no |

    Requirements: both layers have positions. The projector's parameters are in the optimiser.

    Returns: `LossOutput` with `loss` and, in `logs`, its parts `mean` and `deviation`.

    Relations: transport between positions of an image, in closed form, with channel i of the projected student compared
    to channel i of the teacher; `RepresentationTransport` transports neurons and needs no projector.

    Example:
        >>> import torch
        >>> from hf_reprot.losses.baselines import GaussianWasserstein
        >>> loss = GaussianWasserstein(6, 8)
        >>> out = loss(torch.randn(4, 6, 49, requires_grad=True), torch.randn(4, 8, 49))
        >>> out.loss.backward()

    References: Lv, Yang, Li: "Wasserstein Distance Rivals Kullback-Leibler Divergence for Knowledge Distillation",
    NeurIPS 2024 (WKD-F with diagonal covariances, the whole image as one cell, mean weight 2 of the authors' settings).
    The projector is a 1x1 convolution without the batch normalisation and ReLU of the authors' code, which a teacher
    with negative activations is out of reach of; variances are divided by p, not p - 1, so that one position is legal.
    """

    input_kind: ClassVar[str] = "maps"
    in_teacher_units: ClassVar[bool] = True

    citation = """@inproceedings{lv2024wasserstein,
  title={Wasserstein Distance Rivals Kullback-Leibler Divergence for Knowledge Distillation},
  author={Lv, Jiaming and Yang, Haoyuan and Li, Peihua},
  booktitle={NeurIPS},
  year={2024}
}"""

    def __init__(self, student_width: int, teacher_width: int, mean_weight: float = 2.0):
        super().__init__(student_width, teacher_width)
        if not 0 <= mean_weight < float("inf"):
            raise ValueError(f"mean_weight must be a finite number at least 0, got {mean_weight}")
        self.mean_weight = float(mean_weight)

    def compare(self, student: Tensor, teacher: Tensor) -> LossOutput:
        projected = self.projector(student.transpose(1, 2)).transpose(1, 2)  # (n, c_s, p) -> (n, c_t, p)
        mean = (projected.mean(2) - teacher.mean(2)).square().sum(1).mean()
        deviation = (_deviation(projected) - _deviation(teacher)).square().sum(1).mean()
        logs = {"mean": mean.detach(), "deviation": deviation.detach()}
        return LossOutput(self.mean_weight * mean + deviation, logs=logs)

    def extra_repr(self) -> str:
        return f"mean_weight={self.mean_weight}"


def _deviation(maps: Tensor) -> Tensor:
    return (maps.var(2, correction=0) + _VARIANCE_FLOOR).sqrt()  # (n, c, p) -> (n, c)
