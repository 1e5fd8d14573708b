"""Ground costs between neurons, from activations or from their moments."""

from __future__ import annotations

import torch
from torch import Tensor

from ..settings.names import COSTS
from ..utils.messages import check_choice
from .moments import PairMoments, attach, pair_moments


def neuron_cost(student: Tensor, teacher: Tensor, *, standardize: bool = True, cost: str = "sqeuclidean") -> Tensor:
    """Cost matrix between the neurons of two layers.

        M_ij = (1/n) sum_k (S_ki - T_kj)^2

    With `standardize`, of neurons brought to zero mean and unit variance over the samples: M_ij = 2 (1 - corr_ij).
    A neuron that is constant over the samples is then 0 everywhere.

    Args:
        student: S (n, d_s), any float dtype; column = neuron. Half precision is computed in float32.
        teacher: T (n, d_t), the same samples in the same order.
        standardize: Compare neurons by correlation rather than by raw values.
        cost: "sqeuclidean".

    Returns:
        M (d_s, d_t), differentiable in both.
    """
    check_choice("cost", cost, COSTS)
    for name, neurons in (("student", student), ("teacher", teacher)):
        if neurons.ndim != 2 or not neurons.is_floating_point():
            raise ValueError(
                f"{name} must be a float tensor (samples, neurons), got {neurons.dtype} {tuple(neurons.shape)}"
            )
    if student.shape[0] != teacher.shape[0]:
        raise ValueError(f"student has {student.shape[0]} samples and teacher {teacher.shape[0]}")
    with torch.autocast(device_type=student.device.type, enabled=False):
        moments = attach(pair_moments(student, teacher), student, teacher)
        return cost_from_moments(moments, standardize=standardize, cost=cost)


def cost_from_moments(moments: PairMoments, *, standardize: bool = True, cost: str = "sqeuclidean") -> Tensor:
    """Cost matrix (d_s, d_t) from moments, or stacked ones: see `neuron_cost`."""
    check_choice("cost", cost, COSTS)
    if standardize:
        alive = [varies(moments.mean_s, moments.var_s), varies(moments.mean_t, moments.var_t)]
        return _Standardised.apply(moments.cov, moments.var_s, moments.var_t, *alive)
    matrix = moments.var_s[..., :, None] + moments.var_t[..., None, :] - 2 * moments.cov
    matrix = matrix + (moments.mean_s[..., :, None] - moments.mean_t[..., None, :]).square()
    return matrix.clamp_min(0)


def varies(mean: Tensor, variance: Tensor) -> Tensor:
    """(d,) Whether a neuron's values differ over the samples by more than rounding.

    In float32, deviations under about 1e-13 count as none, too: what the gradient needs, variance^(-3/2), is infinite.
    """
    info = torch.finfo(variance.dtype)
    return variance.detach() > (4 * info.eps * mean.detach()).square().clamp_min(info.max ** (-2 / 3))


class _Standardised(torch.autograd.Function):
    """M_ij = alive_i + alive_j - 2 cov_ij / (sd_i sd_j), at least 0, where a neuron that is not alive is 0 everywhere.

        dL/dcov_ij = -2 G_ij / (sd_i sd_j)      dL/dvar_i = -(1 / (2 var_i)) sum_j cov_ij dL/dcov_ij

    for G = dL/dM where M > 0. In place: between wide layers, memory for a matrix is dearer than a pass over it.
    """

    @staticmethod
    def forward(ctx, cov: Tensor, var_s: Tensor, var_t: Tensor, alive_s: Tensor, alive_t: Tensor) -> Tensor:
        inverse_s, inverse_t = (
            torch.where(alive, variance, torch.inf).rsqrt() for alive, variance in ((alive_s, var_s), (alive_t, var_t))
        )
        matrix = torch.mul(cov, -2 * inverse_s[..., :, None]).mul_(inverse_t[..., None, :])
        matrix.add_(alive_s[..., :, None]).add_(alive_t[..., None, :]).clamp_min_(0)
        ctx.save_for_backward(cov, inverse_s, inverse_t, matrix)
        return matrix

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, d_matrix: Tensor):
        cov, inverse_s, inverse_t, matrix = ctx.saved_tensors
        d_cov = torch.where(matrix > 0, d_matrix, 0.0).mul_(-2 * inverse_s[..., :, None]).mul_(inverse_t[..., None, :])
        product = cov * d_cov
        d_var_s = -0.5 * inverse_s.square() * product.sum(-1)
        d_var_t = -0.5 * inverse_t.square() * product.sum(-2)
        return d_cov, d_var_s, d_var_t, None, None
