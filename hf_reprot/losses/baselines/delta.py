"""DELTA: a fine-tuned network keeps the feature maps that it started with (hf.co/papers/1901.09229)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from ..common import LossOutput
from .base import FeatureLoss


class DELTA(FeatureLoss):
    """Squared distance between a layer's maps and those of the pretrained network, channel by channel.

    loss = mean over samples of  (1/2) sum over channels j of  c w_j (1/p) || S_j - T_j ||^2

    w are the channels' attention weights and sum to 1; uniform ones (w_j = 1/c) weigh every channel alike. The paper
    sets them once, before training, to a softmax of how much the loss of a new head on the frozen network rises when
    channel j is put out: hand such weights in. The trainer's `delta_weight` uses uniform ones.

    Args:
        attention: (c,) nonnegative weights; they are brought to sum 1. None: uniform.

    Inputs:
        | tensor | shape | gradient |
        |---|---|---|
        | student | (n, c, p), any float dtype | yes |
        | teacher | (n, c, p), any float dtype | no |

    Requirements: the student started as a copy of the teacher, so that channel j means the same on both sides.

    Relations: the identity coupling of `RepresentationTransport` on every position, without standardising; anchors what
    `L2SP` anchors, on the outputs instead of the weights.

    Example:
        >>> import torch
        >>> from hf_reprot.losses.baselines import DELTA
        >>> maps = torch.randn(4, 6, 49)
        >>> DELTA(attention=torch.tensor([1.0, 0, 0, 0, 0, 0]))(maps, maps).loss.item()
        0.0

    References: Li, Xiong, Wang, Rao, Liu, Huan: "DELTA: Deep Learning Transfer using Feature Map with Attention for
    Convolutional Networks", ICLR 2019, scaled by c/p (as in the Transfer Learning Library) and averaged over the batch.
    """

    input_kind: ClassVar[str] = "maps"

    citation = """@inproceedings{li2019delta,
  title={DELTA: Deep Learning Transfer using Feature Map with Attention for Convolutional Networks},
  author={Li, Xingjian and Xiong, Haoyi and Wang, Hanchao and Rao, Yuxuan and Liu, Liping and Huan, Jun},
  booktitle={ICLR},
  year={2019}
}"""

    attention: Tensor | None

    def __init__(self, attention: Tensor | None = None):
        super().__init__()
        if attention is not None:
            if attention.ndim != 1 or not bool((attention >= 0).all()) or not bool(attention.sum() > 0):
                raise ValueError("attention must be one nonnegative weight per channel, (c,), and not all 0")
            attention = attention.detach().float() / attention.sum()
        self.register_buffer("attention", attention)

    def compare(self, student: Tensor, teacher: Tensor) -> LossOutput:
        squares = (student - teacher).square().mean(2)  # (n, c, p) -> (n, c)
        if self.attention is None:
            return LossOutput(0.5 * squares.sum(1).mean())
        weights = self.attention.to(squares)
        return LossOutput(0.5 * len(weights) * (squares @ weights).mean())

    def _check(self, student: Tensor, teacher: Tensor) -> None:
        super()._check(student, teacher)
        if student.shape != teacher.shape:
            raise ValueError(
                f"student maps have shape {tuple(student.shape)} and teacher maps {tuple(teacher.shape)}: DELTA needs "
                "a student that started as a copy of the teacher"
            )
        if self.attention is not None and len(self.attention) != student.shape[1]:
            raise ValueError(f"attention has {len(self.attention)} weights for {student.shape[1]} channels")


def relative_distance(student: Tensor, teacher: Tensor) -> float:
    """|S - T| / |T| of two tensors of one shape: 0 for a copy."""
    student, teacher = student.detach().float(), teacher.detach().float().to(student.device)
    return float((student - teacher).norm() / teacher.norm().clamp_min(torch.finfo(torch.float32).tiny))
