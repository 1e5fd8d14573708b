"""Attention transfer: the student is active where the teacher is (hf.co/papers/1612.03928)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from ..common import LossOutput
from .base import FeatureLoss


class AttentionTransfer(FeatureLoss):
    """Squared distance between the two layers' normalised maps of activity, summed over channels.

    loss = (1/(n p)) sum_k || q(S_k) / |q(S_k)| - q(T_k) / |q(T_k)| ||^2,   q(F) = sum over channels c of F_c^2  in R^p

    Inputs:
        | tensor | shape | gradient |
        |---|---|---|
        | student | (n, c_s, p), any float dtype | yes |
        | teacher | (n, c_t, p), any float dtype | no |

    Requirements: both layers have positions, the same ones: a pooled layer has nothing to compare.

    Relations: sees where the neurons are active and not which; `RepresentationTransport` sees which.

    Example:
        >>> import torch
        >>> from hf_reprot.losses.baselines import AttentionTransfer
        >>> teacher = torch.randn(4, 6, 49)
        >>> AttentionTransfer()(3 * teacher, teacher).loss.item() < 1e-6
        True

    References: Zagoruyko, Komodakis: "Paying More Attention to Attention", ICLR 2017, equation 2 with F_sum^2, in the
    form of the authors' code: a mean of squares over samples and positions, where the paper writes a norm.
    """

    input_kind: ClassVar[str] = "maps"

    citation = """@inproceedings{zagoruyko2017paying,
  title={Paying More Attention to Attention: Improving the Performance of Convolutional Neural Networks via Attention
    Transfer},
  author={Zagoruyko, Sergey and Komodakis, Nikos},
  booktitle={ICLR},
  year={2017}
}"""

    def compare(self, student: Tensor, teacher: Tensor) -> LossOutput:
        return LossOutput((_attention(student) - _attention(teacher)).square().mean())


def _attention(maps: Tensor) -> Tensor:
    return F.normalize(maps.square().mean(1), dim=1)  # (n, c, p) -> (n, p)
