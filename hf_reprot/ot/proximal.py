"""IPOT: unregularised optimal transport by inexact proximal steps (Xie, Wang, Wang, Zha, 2019, arXiv 1802.04307)."""

from __future__ import annotations

import torch
from torch import Tensor

from .kernel import cold_potentials, fill_kernel, inner, scale_to_plan
from .solution import Limits, Solution

_LOOK_EVERY = 16
_POLISH = 8  # sweeps at a fixed kernel before a look: one sweep a step leaves the columns slightly behind


def proximal(matrix: Tensor, a: Tensor, b: Tensor, beta: Tensor, limits: Limits, g: Tensor | None = None) -> Solution:
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
    """
    if matrix.device.type == "cpu" and matrix.shape[0] > 1:
        starts = [None] * matrix.shape[0] if g is None else [g[i : i + 1] for i in range(matrix.shape[0])]
        pairs = [(matrix[i : i + 1], a[i : i + 1], b[i : i + 1], beta[i : i + 1]) for i in range(matrix.shape[0])]
        solved = [proximal(*pair, limits, start) for pair, start in zip(pairs, starts, strict=True)]
        names = ("plan", "f", "g", "error", "iterations", "converged")
        return Solution(*(torch.cat([getattr(s, name) for s in solved]) for name in names))

    # A forbidden match becomes a very expensive one: 0 times infinity is no number.
    most = torch.where(torch.isfinite(matrix), matrix, 0.0).abs().amax((-2, -1), keepdim=True)
    matrix = torch.where(matrix == torch.inf, 1e3 * most, matrix)
    inverse = 1 / beta
    scale = inner(a[..., :, None] * b[..., None, :], matrix).abs()  # the mean cost: below it, "relative" means to it
    f, g = cold_potentials(matrix, g)
    step, kernel = torch.empty_like(matrix), torch.empty_like(matrix)
    sharpness = torch.zeros_like(beta)  # t
    sharpen = torch.ones_like(beta)
    done = torch.zeros(beta.shape, dtype=torch.bool, device=matrix.device)
    best, made = None, 0
    while made < limits.max_iterations:
        fill_kernel(step, matrix, f, g, inverse * sharpen)
        fill_kernel(kernel, matrix, f, g, inverse * sharpness)
        u, v = torch.ones_like(a), torch.ones_like(b)
        steps = min(_LOOK_EVERY, limits.max_iterations - made)
        for turn in range(steps + _POLISH):
            if turn < steps:
                kernel.mul_(step)
            v_before = v
            u = _reciprocal(torch.einsum("bmn,bn->bm", kernel, b * v))
            column_sums = torch.einsum("bm,bmn->bn", a * u, kernel)
            v = _reciprocal(column_sums)
        made += steps
        sharpness = sharpness + steps * sharpen
        unit = (beta / sharpness)[:, None]
        error = ((v_before * column_sums - 1).abs() * b).sum(-1)
        plan = scale_to_plan(kernel, a * u, b * v_before)
        f, g_of_plan, g = f + unit * u.log(), g + unit * v_before.log(), g + unit * v.log()
        cost = inner(plan, matrix)
        gap = cost - _lower_bound(matrix, a, b, g)
        arrived = (error <= limits.tolerance) & (gap <= limits.tolerance * torch.maximum(cost.abs(), 1e-2 * scale))
        found = Solution(plan.clone(), f, g_of_plan, error, torch.full_like(sharpness, made).long(), arrived)
        best = found if best is None else _keep(best, done, found)
        done = done | arrived
        if bool((done | ~torch.isfinite(error)).all()):
            break
        # A kernel sharpened before its marginals are right takes ever more sweeps to right them: those come first.
        sharpen = (error <= torch.where(sharpen > 0, 4 * limits.tolerance, limits.tolerance)).to(beta)
    return best


def _lower_bound(matrix: Tensor, a: Tensor, b: Tensor, g: Tensor) -> Tensor:
    """(B,) Dual value of the potentials that the costs allow: f_i = min_j M_ij - g_j, then g_j = min_i M_ij - f_i."""
    f = (matrix - g[..., None, :]).amin(-1)
    g = (matrix - f[..., :, None]).amin(-2)
    return (a * f).sum(-1) + (b * g).sum(-1)


def _reciprocal(sums: Tensor) -> Tensor:
    return sums.clamp_min(torch.finfo(sums.dtype).tiny).reciprocal()


def _keep(old: Solution, done: Tensor, new: Solution) -> Solution:
    names = ("plan", "f", "g", "error", "iterations", "converged")
    return Solution(
        *(
            torch.where(done.view(-1, *[1] * (getattr(old, n).ndim - 1)), getattr(old, n), getattr(new, n))
            for n in names
        )
    )
