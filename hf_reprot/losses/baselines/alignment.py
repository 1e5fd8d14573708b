"""Linear centred kernel alignment, as a number and as a loss (hf.co/papers/1905.00414)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from ..common import LossOutput
from .base import FeatureLoss


class LinearCKA(FeatureLoss):
    """One less the alignment of the two layers' centred tables of similarities.

    loss = 1 - CKA,   CKA = || S'T ||_F^2 / (|| S'S ||_F || T'T ||_F)   with every column of S and T centred

    Inputs:
        | tensor | shape | gradient |
        |---|---|---|
        | student | (n, d_s), any float dtype | yes |
        | teacher | (n, d_t), any float dtype | no |

    Requirements: at least 2 samples, better more than neurons: between few samples in many dimensions CKA is near 1
    whatever they are. A layer that is constant over the samples has alignment 0 and gives no gradient.

    Returns: `LossOutput` with `loss` and `logs["cka"]`.

    Relations: compares the spaces that the neurons span, blind to rotations; `RepresentationTransport` compares the
    neurons.

    Example:
        >>> import torch
        >>> from hf_reprot.losses.baselines import LinearCKA
        >>> teacher = torch.randn(64, 5)
        >>> rotation = torch.linalg.qr(torch.randn(5, 5)).Q
        >>> LinearCKA()(3 * teacher @ rotation + 1, teacher).loss.item() < 1e-5
        True

    References: Kornblith, Norouzi, Lee, Hinton: "Similarity of Neural Network Representations Revisited", ICML 2019,
    section 3 (linear kernel).
    """

    input_kind: ClassVar[str] = "samples"

    citation = """@inproceedings{kornblith2019similarity,
  title={Similarity of Neural Network Representations Revisited},
  author={Kornblith, Simon and Norouzi, Mohammad and Lee, Honglak and Hinton, Geoffrey},
  booktitle={ICML},
  year={2019}
}"""

    def compare(self, student: Tensor, teacher: Tensor) -> LossOutput:
        cka = linear_cka(student, teacher)
        return LossOutput(1 - cka, logs={"cka": cka.detach()})


def linear_cka(s: Tensor, t: Tensor) -> Tensor:
    """Linear centred kernel alignment of two tables, by whichever products are smaller.

    Args:
        s: (n, d_s).
        t: (n, d_t), the same samples in the same order.

    Returns:
        A number from 0 to 1; 0 where a table is constant over the samples.
    """
    s, t = s - s.mean(0), t - t.mean(0)
    if len(s) < max(s.shape[1], t.shape[1]):
        gram_s, gram_t = s @ s.t(), t @ t.t()  # (n, n)
        return (gram_s * gram_t).sum() / (gram_s.norm() * gram_t.norm()).clamp_min(1e-30)
    return (s.t() @ t).square().sum() / ((s.t() @ s).norm() * (t.t() @ t).norm()).clamp_min(1e-30)
