"""Sinkhorn on an accelerator: all pairs of a batch together, without a stall to ask whether they are done."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..result import Limits, Solution
from .budget import SweepBudget
from .kernel import starting_potentials
from .sweeps import Sweeps, sinkhorn_log

# Sweeps between two absorptions of the scalings; the error is looked at after the same number.
CHUNK = 8

_budget = SweepBudget(first=4 * CHUNK)


class Chunks:
    """A batch of problems (B, m, n) on its way, some sweeps at a time.

    Never looks at a value, and writes only into the memory that it holds.
    """

    def __init__(self, matrix: Tensor, a: Tensor, b: Tensor, epsilon: Tensor, f: Tensor, g: Tensor, limits: Limits):
        self.sweeps = Sweeps(matrix, a, b, epsilon, f, g, torch.empty_like(matrix), limits.accelerate)
        self.done = torch.zeros_like(self.sweeps.epsilon, dtype=torch.bool)
        self.sweeps.done = self.done
        self.iterations = torch.zeros(epsilon.shape, dtype=torch.long, device=matrix.device)
        self.error = torch.full_like(epsilon, torch.inf)
        self.tolerance = limits.tolerance

    def run(self, count: int, first: bool) -> None:
        """`count` sweeps and the moves between them; the first chunk has nothing to move on from."""
        sweeps = self.sweeps
        if not first:
            sweeps.advance()
            sweeps.absorb()
        for sweep in range(count):
            if sweep:
                sweeps.advance()
            sweeps.sweep()
        self.iterations.add_(torch.where(self.done[:, 0], 0, count))
        self.error.copy_(sweeps.error())
        self.done.logical_or_((self.error <= self.tolerance)[:, None])


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
    chunks = Chunks(matrix, a, b, epsilon, f, g, limits)
    return run_chunks(chunks, chunks.run, limits)


def run_chunks(chunks: Chunks, run: Callable[[int, bool], None], limits: Limits) -> Solution:
    """Runs as many chunks as are needed; the solution lies in the memory of `chunks`.

    Args:
        chunks: Problems at their start.
        run: `chunks.run`, or what does the same.
        limits: When to stop.
    """
    sweeps = chunks.sweeps
    matrix = sweeps.matrix
    key = (tuple(matrix.shape), matrix.dtype, matrix.device, limits.tolerance, limits.max_iterations)
    work = _budget.plan(key, CHUNK, limits.max_iterations)
    made = 0
    while True:
        count = min(CHUNK, limits.max_iterations - made)
        run(count, made == 0)
        made += count
        if made >= limits.max_iterations or work.enough(made, chunks.done):
            break
    work.learn(chunks.iterations, chunks.done)
    f, g = sweeps.potentials()
    error = chunks.error
    solution = Solution(sweeps.plan(), f, g, error, chunks.iterations, error <= limits.tolerance)
    if work.may_ask and not bool(torch.isfinite(error).all()):
        again = sinkhorn_log(matrix, sweeps.a, sweeps.b, sweeps.epsilon[:, 0], limits)
        return _replace(solution, ~torch.isfinite(error), again)
    return solution


def _replace(old: Solution, where: Tensor, new: Solution) -> Solution:
    def choose(ours: Tensor, theirs: Tensor) -> Tensor:
        return torch.where(where.view(-1, *[1] * (ours.ndim - 1)), theirs, ours)

    names = ("plan", "f", "g", "error", "iterations", "converged")
    return Solution(*(choose(getattr(old, name), getattr(new, name)) for name in names))
