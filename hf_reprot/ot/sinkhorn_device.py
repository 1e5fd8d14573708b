"""Sinkhorn on an accelerator: all pairs of a batch together, without a stall to ask whether they are done."""

from __future__ import annotations

import torch
from torch import Tensor

from .budget import SweepBudget
from .kernel import cold_potentials, fill_kernel, scale_to_plan
from .log_domain import sinkhorn_log
from .solution import Limits, Solution

# Sweeps between two absorptions of the scalings; the error is looked at after the same number.
CHUNK = 8

_budget = SweepBudget(first=4 * CHUNK)


def sinkhorn_device(
    matrix: Tensor, a: Tensor, b: Tensor, epsilon: Tensor, limits: Limits, g: Tensor | None = None
) -> Solution:
    """Solves a batch (B, m, n) in the kernel domain; arguments as in `sinkhorn_host`.

    The number of chunks of sweeps that are launched follows from what earlier calls of the same shape needed. A pair
    that has reached its tolerance stays as it is during the sweeps that others still need, so that the result does not
    depend on how many there were. The first call of a shape asks the device after each chunk.
    """
    eps = epsilon[:, None]
    inverse = 1 / epsilon
    if g is not None:
        g = torch.where(torch.isfinite(g).all(-1, keepdim=True), g, 0.0)
    f, g = cold_potentials(matrix, g)
    g = g.clone()
    kernel = torch.empty_like(matrix)
    u, v = torch.ones_like(a), torch.ones_like(b)
    done = torch.zeros(epsilon.shape, dtype=torch.bool, device=matrix.device)
    error = torch.full_like(epsilon, torch.inf)
    iterations = torch.zeros(epsilon.shape, dtype=torch.long, device=matrix.device)

    key = (tuple(matrix.shape), matrix.dtype, matrix.device, limits.tolerance, limits.max_iterations)
    plan_of_work = _budget.plan(key, CHUNK, limits.max_iterations)
    made = 0
    while made < limits.max_iterations:
        chunk = min(CHUNK, limits.max_iterations - made)
        if made:
            f, g = f + eps * u.log(), g + eps * v.log()
            v = torch.ones_like(v)
        fill_kernel(kernel, matrix, f, g, inverse)
        for sweep in range(chunk):
            u = _times(kernel, b * v).reciprocal_()
            column_sums = _times_transposed(kernel, a * u)
            if sweep == chunk - 1:
                error = torch.where(done, error, ((v * column_sums - 1).abs_() * b).sum(-1))
                iterations += torch.where(done, 0, chunk)
                done = done | (error <= limits.tolerance)
            v = torch.where(done[:, None], v, column_sums.reciprocal_())
        made += chunk
        if plan_of_work.enough(made, done):
            break
    # v is one half-sweep ahead for pairs that are not done: rows are made exact once more.
    u = _times(kernel, b * v).reciprocal_()
    error = torch.where(done, error, ((v * _times_transposed(kernel, a * u) - 1).abs_() * b).sum(-1))
    plan_of_work.learn(iterations, done)
    solution = Solution(
        scale_to_plan(kernel, a * u, b * v), f + eps * u.log(), g + eps * v.log(), error, iterations, done
    )
    if plan_of_work.may_ask and not bool(torch.isfinite(error).all()):
        return _replace(solution, ~torch.isfinite(error), sinkhorn_log(matrix, a, b, epsilon, limits))
    return solution


def _times(kernel: Tensor, x: Tensor) -> Tensor:
    return torch.bmm(kernel, x[..., None]).squeeze(-1)  # (B, m, n) @ (B, n, 1) -> (B, m)


def _times_transposed(kernel: Tensor, x: Tensor) -> Tensor:
    return torch.bmm(x[:, None, :], kernel).squeeze(-2)  # (B, 1, m) @ (B, m, n) -> (B, n)


def _replace(old: Solution, where: Tensor, new: Solution) -> Solution:
    def choose(ours: Tensor, theirs: Tensor) -> Tensor:
        return torch.where(where.view(-1, *[1] * (ours.ndim - 1)), theirs, ours)

    names = ("plan", "f", "g", "error", "iterations", "converged")
    return Solution(*(choose(getattr(old, name), getattr(new, name)) for name in names))
