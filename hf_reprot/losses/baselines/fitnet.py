"""FitNets: the student's neurons, through a learned projector, copy the teacher's (hf.co/papers/1412.6550)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from ..common import LossOutput
from .base import ProjectedLoss


class FitNet(ProjectedLoss):
    """Mean squared error between the teacher's neurons and a learned linear image of the student's.

    loss = (1/(n d_t)) sum_k || T_k - (A S_k + c) ||^2

    A is d_t x d_s and trains along with the student. With every position as a sample, A is a 1x1 convolution.

    Args:
        student_width: d_s.
        teacher_width: d_t.

    Inputs:
        | tensor | shape | gradient |
        |---|---|---|
        | student | (n, d_s), any float dtype | yes |
        | teacher | (n, d_t), any float dtype | no |

    Requirements: row k of both comes from the same sample. The projector's parameters are in the optimiser.

    Relations: `RepresentationTransport` needs no projector, so that nothing can be learnt beside the student.

    Example:
        >>> import torch
        >>> from hf_reprot.losses.baselines import FitNet
        >>> loss = FitNet(32, 48)
        >>> out = loss(torch.randn(16, 32, requires_grad=True), torch.randn(16, 48))
        >>> out.loss.backward()
        >>> tuple(loss.projector.weight.grad.shape)
        (48, 32)

    References: Romero et al.: "FitNets: Hints for Thin Deep Nets", ICLR 2015, equation 3, as a mean where that is half
    a sum. The regressor is linear: those with batch normalisation and a ReLU behind (RepDistiller) cannot reach a
    teacher's negative activations.
    """

    citation = """@inproceedings{romero2015fitnets,
  title={FitNets: Hints for Thin Deep Nets},
  author={Romero, Adriana and Ballas, Nicolas and Kahou, Samira Ebrahimi and Chassang, Antoine and Gatta, Carlo and
    Bengio, Yoshua},
  booktitle={ICLR},
  year={2015}
}"""

    in_teacher_units: ClassVar[bool] = True

    def compare(self, student: Tensor, teacher: Tensor) -> LossOutput:
        return LossOutput((self.projector(student) - teacher).square().mean())
