"""Sinkhorn in the log domain: the reference, and the fall-back where the kernel domain overflows."""

from __future__ import annotations

import torch
from torch import Tensor

from .kernel import cold_potentials, marginal_error, with_exact_rows
from .solution import Limits, Solution

_LOOK_EVERY = 5


def sinkhorn_log(
    matrix: Tensor, a: Tensor, b: Tensor, epsilon: Tensor, limits: Limits, g: Tensor | None = None
) -> Solution:
    """Solves a batch (B, m, n) by log-sum-exp sweeps; arguments as in `sinkhorn_host`.

    Stops when all pairs are done (the host looks every few sweeps).
    """
    eps = epsilon[:, None]
    log_a, log_b = a.log(), b.log()
    _, g = cold_potentials(matrix, g)
    error = torch.full_like(epsilon, torch.inf)
    iterations = torch.zeros(epsilon.shape, dtype=torch.long, device=matrix.device)
    for sweep in range(1, limits.max_iterations + 1):
        f = -eps * _log_sum(((g[:, None, :] - matrix) / eps[..., None]).add_(log_b[:, None, :]), -1)
        towards = -eps * _log_sum(((f[:, :, None] - matrix) / eps[..., None]).add_(log_a[:, :, None]), -2)
        iterations += error > limits.tolerance
        if sweep % _LOOK_EVERY == 0 or sweep == limits.max_iterations:
            # b_j exp((g_j - g'_j) / eps) is the mass that column j has now.
            error = torch.where(b > 0, b * torch.expm1((g - towards) / eps), 0.0).abs().sum(-1)
            if bool((~(error > limits.tolerance)).all()) or sweep == limits.max_iterations:
                break
        g = towards
    plan = ((f[:, :, None] + g[:, None, :] - matrix) / eps[..., None]).add_(log_a[:, :, None]).add_(log_b[:, None, :])
    plan = with_exact_rows(plan.exp_(), a)
    error = marginal_error(plan, a, b)
    return Solution(plan, f, g, error, iterations, error <= limits.tolerance)


def _log_sum(x: Tensor, dim: int) -> Tensor:
    """log sum exp, -inf where all terms are -inf (and not NaN)."""
    return torch.logsumexp(x, dim)
