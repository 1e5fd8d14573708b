"""Relational distillation: distances and angles among samples (hf.co/papers/1904.05068)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from ..common import LossOutput
from .base import FeatureLoss


class RelationalDistillation(FeatureLoss):
    """Samples lie to one another in the student's space as they do in the teacher's: same distances, same angles.

    With h the Huber function (quadratic below 1),

        distance: mean over i != j of h( |s_i - s_j| / mu_s - |t_i - t_j| / mu_t ),   mu: the batch's mean distance
        angle:    mean over distinct i, j, k of h( cos(s_i s_j s_k) - cos(t_i t_j t_k) ),   the angle at s_j
        loss = distance_weight * distance + angle_weight * angle

    Args:
        distance_weight: Weight of the distances.
        angle_weight: Weight of the angles; the paper's is twice that of the distances.

    Inputs:
        | tensor | shape | gradient |
        |---|---|---|
        | student | (n, d_s), any float dtype | yes |
        | teacher | (n, d_t), any float dtype | no |

    Requirements: at least 3 samples; with 2 there are no angles and with 1 the loss is 0. Memory grows with n^3.
    In a distributed run each process relates its own samples.

    Relations: blind to any rotation of the student's space, where `RepresentationTransport` asks for neurons.

    Example:
        >>> import torch
        >>> from hf_reprot.losses.baselines import RelationalDistillation
        >>> teacher = torch.randn(8, 5)
        >>> rotation = torch.linalg.qr(torch.randn(5, 5)).Q
        >>> RelationalDistillation()(2 * teacher @ rotation, teacher).loss.item() < 1e-6
        True

    References: Park, Kim, Lu, Cho: "Relational Knowledge Distillation", CVPR 2019 (RKD-DA). Means are over distinct
    samples; the authors' code counts the pairs of a sample with itself, which are 0, in its means.
    """

    input_kind: ClassVar[str] = "samples"

    citation = """@inproceedings{park2019relational,
  title={Relational Knowledge Distillation},
  author={Park, Wonpyo and Kim, Dongju and Lu, Yan and Cho, Minsu},
  booktitle={CVPR},
  year={2019}
}"""

    def __init__(self, distance_weight: float = 1.0, angle_weight: float = 2.0):
        super().__init__()
        for name, weight in (("distance_weight", distance_weight), ("angle_weight", angle_weight)):
            if not 0 <= weight < float("inf"):
                raise ValueError(f"{name} must be a finite number at least 0, got {weight}")
        self.distance_weight = float(distance_weight)
        self.angle_weight = float(angle_weight)

    def compare(self, student: Tensor, teacher: Tensor) -> LossOutput:
        n = student.shape[0]
        with torch.no_grad():
            t_distances, t_cosines = _relations(teacher)
        distances, cosines = _relations(student)
        # Pairs of a sample with itself and angles with a side of length 0 are 0 on both sides.
        distance = F.smooth_l1_loss(distances, t_distances, reduction="sum") / max(n * (n - 1), 1)
        angle = F.smooth_l1_loss(cosines, t_cosines, reduction="sum") / max(n * (n - 1) * (n - 2), 1)
        loss = self.distance_weight * distance + self.angle_weight * angle
        return LossOutput(loss, logs={"distance": distance.detach(), "angle": angle.detach()})

    def extra_repr(self) -> str:
        return f"distance_weight={self.distance_weight}, angle_weight={self.angle_weight}"


def _relations(x: Tensor) -> tuple[Tensor, Tensor]:
    """Distances (n, n) over their mean, and cosines (n, n, n): entry j, i, k is the angle at j between i and k."""
    x = x - x.mean(0)
    gram = x @ x.t()
    norms = gram.diagonal()
    squared = norms[:, None] + norms[None, :] - 2 * gram
    # Samples nearer than rounding can tell are equal: distance 0, no direction, and no gradient of a root at 0.
    floor = 16 * torch.finfo(x.dtype).eps * norms.detach().max()
    apart = (squared.detach() > floor) & ~torch.eye(len(x), dtype=torch.bool, device=x.device)
    distances = torch.where(apart, torch.where(apart, squared, torch.ones_like(squared)).sqrt(), 0.0)
    mean = distances.sum() / apart.sum().clamp_min(1)
    # <x_i - x_j, x_k - x_j> = G_ik - G_ij - G_jk + G_jj
    dots = gram[None] - gram[:, :, None] - gram[:, None, :] + norms[:, None, None]  # (j, i, k)
    inverse = torch.where(apart, 1 / torch.where(apart, distances, torch.ones_like(distances)), 0.0)
    cosines = dots * inverse[:, :, None] * inverse[:, None, :]
    cosines = cosines * ~torch.eye(len(x), dtype=torch.bool, device=x.device)  # no angle between a side and itself
    return distances / torch.where(mean > 0, mean, torch.ones_like(mean)), cosines
