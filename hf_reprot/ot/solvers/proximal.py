"""IPOT: unregularised optimal transport by inexact proximal steps (Xie, Wang, Wang, Zha, 2019, arXiv 1802.04307)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..result import Limits, Solution
from .budget import SweepBudget, Work
from .kernel import fill_kernel, inner, mean_cost, on_host, starting_potentials
from .sweeps import Sweeps

_LOOK_EVERY = 16
_POLISH = 8  # sweeps at a fixed kernel before a look: one sweep a step leaves the columns slightly behind

_FORBIDDEN = 1e3  # times the largest cost, instead of infinity

_budget = SweepBudget(first=4 * _LOOK_EVERY)


def proximal(
    matrix: Tensor,
    a: Tensor,
    b: Tensor,
    beta: Tensor,
    limits: Limits,
    g: Tensor | None = None,
    kernels: Callable[[Tensor, Tensor, Tensor, Tensor], Any] | None = None,
) -> Solution:
    """Solves min <P, M> for a batch (B, m, n), without entropic bias.

    Step t makes P minimise <P, M> + beta KL(P | P of step t - 1) with one Sinkhorn sweep. Written out, P of step t has
    the kernel exp(t (f + g - M) / beta): the kernel grows sharper by one multiplication a step, and potentials are
    absorbed into it now and then so that nothing under- or overflows. Where the marginals fall behind, the kernel waits
    for them: it is the point of the method's inexact steps that they may not fall behind too far.

    Stops when the marginals are right to `tolerance` (L1) and the cost is within `tolerance` (relative) of a lower
    bound, the value of the dual potentials made feasible: so the cost is right to `tolerance`, too.

    Args:
        matrix: (B, m, n) contiguous, float32 or float64.
        a: (B, m). b: (B, n).
        beta: (B,) Proximal step in units of the cost. Smaller is faster until float32 runs out.
        limits: When to stop; the iterations are proximal steps.
        g: (B, n) Potential to start from.
        kernels: What makes the steps in the place of torch (`kernels.solver.ProximalBlock`).
    """
    if on_host(matrix) and matrix.shape[0] > 1 and kernels is None:
        starts = [None] * matrix.shape[0] if g is None else [g[i : i + 1] for i in range(matrix.shape[0])]
        pairs = [(matrix[i : i + 1], a[i : i + 1], b[i : i + 1], beta[i : i + 1]) for i in range(matrix.shape[0])]
        solved = [proximal(*pair, limits, start) for pair, start in zip(pairs, starts, strict=True)]
        names = ("plan", "f", "g", "error", "iterations", "converged")
        return Solution(*(torch.cat([getattr(s, name) for s in solved]) for name in names))

    forbidden = matrix == torch.inf
    most = torch.where(torch.isfinite(matrix), matrix, 0.0).abs().amax((-2, -1), keepdim=True)
    scale = mean_cost(matrix, a, b)  # what a small gap is small beside: of the matches that are allowed
    # A forbidden match becomes a very expensive one: 0 times infinity is no number.
    matrix = torch.where(forbidden, _FORBIDDEN * torch.where(most > 0, most, 1.0), matrix)
    # A neuron of weight 0 must be nobody's best match, which potentials would start from: the true ones would vanish.
    carries_a, carries_b = a > 0, b > 0
    matrix = torch.where(carries_a[..., :, None] & carries_b[..., None, :], matrix, most)
    f, start = starting_potentials(matrix, g)
    g = _of_columns(matrix, f, carries_a) if g is None else start
    sharpness = torch.zeros_like(beta)  # t
    sharpen = torch.ones_like(beta)
    done = torch.zeros(beta.shape, dtype=torch.bool, device=matrix.device)
    key = (tuple(matrix.shape), matrix.dtype, matrix.device, limits.tolerance, limits.max_iterations)
    work = _budget.plan(key, _LOOK_EVERY, limits.max_iterations)
    block = _TorchBlock(matrix, a, b, beta) if kernels is None else kernels(matrix, a, b, beta)
    best: Solution | None = None
    made = 0
    while True:
        steps = min(_LOOK_EVERY, limits.max_iterations - made)
        # Nothing holds the potentials of neurons without weight where they belong.
        g = torch.where(carries_b, g, _of_columns(matrix, f, carries_a))
        f = torch.where(carries_a, f, (matrix - g[..., None, :]).amin(-1))
        plan, f, g_of_plan, g, error = block.run(f, g, sharpness, sharpen, steps, _POLISH)
        made += steps
        sharpness = sharpness + steps * sharpen
        cost = inner(plan, matrix)
        gap = cost - _lower_bound(matrix, a, b, g, carries_a, carries_b)
        arrived = (error <= limits.tolerance) & (gap <= limits.tolerance * torch.maximum(cost.abs(), 1e-2 * scale))
        found = Solution(plan, f, g_of_plan, error, torch.full_like(sharpness, made).long(), arrived)
        best = found if best is None else _keep(best, done, found)
        done = done | arrived
        if _over(work, made, done | ~torch.isfinite(error)) or made >= limits.max_iterations:
            break
        # A kernel sharpened before its marginals are right takes ever more sweeps to right them: those come first.
        sharpen = (error <= torch.where(sharpen > 0, 4 * limits.tolerance, limits.tolerance)).to(beta)
    work.learn(best.iterations, done)
    return best


class _TorchBlock:
    """Some proximal steps, and sweeps at the last of their kernels."""

    def __init__(self, matrix: Tensor, a: Tensor, b: Tensor, beta: Tensor):
        self.matrix, self.a, self.b, self.beta = matrix, a, b, beta
        self.step, self.kernel = torch.empty_like(matrix), torch.empty_like(matrix)

    def run(self, f: Tensor, g: Tensor, sharpness: Tensor, sharpen: Tensor, steps: int, polish: int):
        """From f and g at `sharpness` (B,): the plan `steps` sharper, its f and g, the next g, its error."""
        fill_kernel(self.step, self.matrix, f, g, sharpen / self.beta)
        sweeps = Sweeps(self.matrix, self.a, self.b, self.beta / sharpness, f, g, self.kernel, accelerate=False)
        for turn in range(steps + polish):
            if turn:
                sweeps.advance()
            if turn < steps:
                self.kernel.mul_(self.step)
            sweeps.accelerate = turn >= steps  # momentum needs a kernel that stays
            sweeps.floor = torch.finfo(self.matrix.dtype).tiny  # a sharpened kernel may lose rows without weight
            sweeps.sweep()
        error = sweeps.error()
        epsilon = (self.beta / (sharpness + steps * sharpen))[:, None]
        f, g = sweeps.potentials(epsilon)
        plan = sweeps.plan().clone()
        sweeps.accelerate = False
        sweeps.advance()
        return plan, f, g, sweeps.potentials(epsilon)[1], error


def _over(work: Work, made: int, stopped: Tensor) -> bool:
    """Whether to stop: a CPU is asked, an accelerator only where nothing is known of such a call."""
    return bool(stopped.all()) if on_host(stopped) else work.enough(made, stopped)


def _of_columns(matrix: Tensor, f: Tensor, carries: Tensor) -> Tensor:
    """(B, n) g_j = min_i M_ij - f_i over the rows that carry weight."""
    return (matrix - torch.where(carries, f, -torch.inf)[..., :, None]).amin(-2)


def _lower_bound(matrix: Tensor, a: Tensor, b: Tensor, g: Tensor, carries_a: Tensor, carries_b: Tensor) -> Tensor:
    """(B,) Dual value of the potentials that the costs allow: f_i = min_j M_ij - g_j, then g_j = min_i M_ij - f_i."""
    f = _of_columns(matrix.transpose(-2, -1), g, carries_b)
    return (a * f).sum(-1) + (b * _of_columns(matrix, f, carries_a)).sum(-1)


def _keep(old: Solution, done: Tensor, new: Solution) -> Solution:
    names = ("plan", "f", "g", "error", "iterations", "converged")
    return Solution(
        *(
            torch.where(done.view(-1, *[1] * (getattr(old, n).ndim - 1)), getattr(old, n), getattr(new, n))
            for n in names
        )
    )
