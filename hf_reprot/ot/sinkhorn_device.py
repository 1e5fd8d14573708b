"""Sinkhorn on an accelerator: all pairs of a batch together, without a stall to ask whether they are done."""

from __future__ import annotations

import torch
from torch import Tensor

from .budget import SweepBudget
from .kernel import starting_potentials
from .log_domain import sinkhorn_log
from .solution import Limits, Solution
from .sweeps import Sweeps

# Sweeps between two absorptions of the scalings; the error is looked at after the same number.
CHUNK = 8

_budget = SweepBudget(first=4 * CHUNK)


def sinkhorn_device(
    matrix: Tensor,
    a: Tensor,
    b: Tensor,
    epsilon: Tensor,
    limits: Limits,
    g: Tensor | None = None,
) -> Solution:
    """Solves a batch (B, m, n) in the kernel domain; arguments as in `sinkhorn_host`.

    The number of chunks of sweeps that are launched follows from what earlier calls of the same shape needed. A pair
    that has reached its tolerance stays as it is during the sweeps that others still need, so that the result does not
    depend on how many there were. The first call of a shape asks the device after each chunk.
    """
    f, g = starting_potentials(matrix, g)
    sweeps = Sweeps(matrix, a, b, epsilon, f, g, torch.empty_like(matrix), limits.accelerate)
    sweeps.done = torch.zeros_like(sweeps.epsilon, dtype=torch.bool)
    iterations = torch.zeros(epsilon.shape, dtype=torch.long, device=matrix.device)
    key = (tuple(matrix.shape), matrix.dtype, matrix.device, limits.tolerance, limits.max_iterations)
    work = _budget.plan(key, CHUNK, limits.max_iterations)
    made = 0
    while True:
        chunk = min(CHUNK, limits.max_iterations - made)
        run_chunk(sweeps, chunk)
        made += chunk
        iterations += torch.where(sweeps.done[:, 0], 0, chunk)
        error = sweeps.error()
        sweeps.done |= (error <= limits.tolerance)[:, None]
        if made >= limits.max_iterations or work.enough(made, sweeps.done):
            break
        sweeps.advance()
        sweeps.absorb()
    work.learn(iterations, sweeps.done)
    f, g = sweeps.potentials()
    solution = Solution(sweeps.plan(), f, g, error, iterations, error <= limits.tolerance)
    if work.may_ask and not bool(torch.isfinite(error).all()):
        return _replace(solution, ~torch.isfinite(error), sinkhorn_log(matrix, a, b, epsilon, limits))
    return solution


def run_chunk(sweeps: Sweeps, count: int) -> None:
    """`count` sweeps, and the moves between them."""
    for sweep in range(count):
        if sweep:
            sweeps.advance()
        sweeps.sweep()


def _replace(old: Solution, where: Tensor, new: Solution) -> Solution:
    def choose(ours: Tensor, theirs: Tensor) -> Tensor:
        return torch.where(where.view(-1, *[1] * (ours.ndim - 1)), theirs, ours)

    names = ("plan", "f", "g", "error", "iterations", "converged")
    return Solution(*(choose(getattr(old, name), getattr(new, name)) for name in names))
