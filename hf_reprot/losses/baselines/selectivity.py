"""Neuron selectivity transfer: one distribution of neurons' maps (hf.co/papers/1707.01219)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from ..common import LossOutput
from .base import FeatureLoss


class NeuronSelectivityTransfer(FeatureLoss):
    """Maximum mean discrepancy between the two layers' sets of neurons, each neuron its normalised map.

    For every sample, neuron i is the vector s_i = S_i / |S_i| over the p positions; with the kernel k(x, y) = (x'y)^2,

        loss = mean over samples of  (1/c_s^2) sum_ij k(s_i, s_j) + (1/c_t^2) sum_ij k(t_i, t_j)
                                     - (2/(c_s c_t)) sum_ij k(s_i, t_j)

    As (x'y)^2 = <xx', yy'>, this is || (1/c_s) sum_i s_i s_i' - (1/c_t) sum_j t_j t_j' ||_F^2: computed with p x p
    matrices or with c x c ones, whichever are smaller.

    Inputs:
        | tensor | shape | gradient |
        |---|---|---|
        | student | (n, c_s, p), any float dtype | yes |
        | teacher | (n, c_t, p), any float dtype | no |

    Requirements: both layers have the same positions.

    Relations: the baseline closest to `RepresentationTransport`: it, too, compares two unordered sets of neurons. It
    compares them through a kernel, image by image, and says of none which other it goes with.

    Example:
        >>> import torch
        >>> from hf_reprot.losses.baselines import NeuronSelectivityTransfer
        >>> teacher = torch.randn(4, 6, 49)
        >>> NeuronSelectivityTransfer()(teacher.flip(1), teacher).loss.item() < 1e-6  # order does not matter
        True

    References: Huang, Wang: "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer", 2017, with its
    polynomial kernel (x'y + c)^d, d = 2, c = 0.
    """

    input_kind: ClassVar[str] = "maps"

    citation = """@article{huang2017like,
  title={Like What You Like: Knowledge Distill via Neuron Selectivity Transfer},
  author={Huang, Zehao and Wang, Naiyan},
  journal={arXiv:1707.01219},
  year={2017}
}"""

    def compare(self, student: Tensor, teacher: Tensor) -> LossOutput:
        s, t = F.normalize(student, dim=2), F.normalize(teacher, dim=2)
        if s.shape[2] <= max(s.shape[1], t.shape[1]):
            difference = _second_moment(s) - _second_moment(t)  # (n, p, p)
            return LossOutput(difference.square().sum((1, 2)).mean())
        return LossOutput(_kernel_mean(s, s) + _kernel_mean(t, t) - 2 * _kernel_mean(s, t))


def _second_moment(maps: Tensor) -> Tensor:
    return maps.transpose(1, 2) @ maps / maps.shape[1]  # (n, p, c) @ (n, c, p) -> (n, p, p)


def _kernel_mean(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.transpose(1, 2)).square().mean()  # (n, c_x, p) @ (n, p, c_y) -> (n, c_x, c_y)
