"""Similarity-preserving distillation: which samples are alike, by the teacher (hf.co/papers/1907.09682)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from ..common import LossOutput
from .base import FeatureLoss


class SimilarityPreserving(FeatureLoss):
    """Squared difference of the two layers' tables of similarities among the samples of a batch.

    loss = (1/n^2) || G_s - G_t ||_F^2,   G = X X' with every row brought to unit length

    Inputs:
        | tensor | shape | gradient |
        |---|---|---|
        | student | (n, d_s), any float dtype | yes |
        | teacher | (n, d_t), any float dtype | no |

    A map (n, c, h, w) is given as (n, c h w).

    Requirements: at least 2 samples; with 1 the loss is 0. In a distributed run each process relates its own samples.

    Relations: `LinearCKA` compares the same tables after centring, by their angle instead of row by row.

    Example:
        >>> import torch
        >>> from hf_reprot.losses.baselines import SimilarityPreserving
        >>> teacher = torch.randn(8, 5)
        >>> SimilarityPreserving()(2 * teacher.flip(1), teacher).loss.item() < 1e-6
        True

    References: Tung, Mori: "Similarity-Preserving Knowledge Distillation", ICCV 2019.
    """

    input_kind: ClassVar[str] = "samples"

    citation = """@inproceedings{tung2019similarity,
  title={Similarity-Preserving Knowledge Distillation},
  author={Tung, Frederick and Mori, Greg},
  booktitle={ICCV},
  year={2019}
}"""

    def compare(self, student: Tensor, teacher: Tensor) -> LossOutput:
        return LossOutput((_similarities(student) - _similarities(teacher)).square().mean())


def _similarities(x: Tensor) -> Tensor:
    return F.normalize(x @ x.t(), dim=1)  # (n, d) @ (d, n) -> (n, n)
