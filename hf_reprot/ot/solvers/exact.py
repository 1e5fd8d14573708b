"""Exact transport by POT's network simplex, on the CPU in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from ..result import Limits, Solution

_FORBIDDEN = 1e4  # instead of infinity, where other costs are between 0 and 1


def exact(matrix: Tensor, a: Tensor, b: Tensor, limits: Limits) -> Solution:
    """Solves min <P, M> for a batch (B, m, n), one pair at a time; synchronises with the device.

    Args:
        matrix: (B, m, n), float32 or float64, on any device.
        a: (B, m). b: (B, n).
        limits: `tolerance` only decides what is called converged.

    Raises:
        ImportError: POT is not installed.
    """
    try:
        import ot
    except ImportError as error:
        raise ImportError("method='exact' needs POT: pip install pot") from error
    costs, a64, b64 = (x.detach().cpu().double() for x in (matrix, a, b))
    tiny = torch.finfo(torch.double).tiny
    # What can be done for the whole batch at once: small problems take POT less time than one call of torch.
    forbidden = costs == torch.inf
    legal = (torch.isfinite(costs) | forbidden).all(-1).all(-1) & ~forbidden.all(-1).all(-1)
    # POT calls problems infeasible whose costs are all large (or negative): it gets them from 0 to 1.
    low = torch.where(forbidden, torch.inf, costs).amin((-2, -1), keepdim=True)
    span = (torch.where(forbidden, -torch.inf, costs).amax((-2, -1), keepdim=True) - low).clamp_min(tiny)
    scaled = torch.where(forbidden, _FORBIDDEN, (costs - low) / span)
    # POT wants both sides to carry the same mass to the last digit.
    weights_b = b64 * (a64.sum(-1, keepdim=True) / b64.sum(-1, keepdim=True).clamp_min(tiny))

    plan, f, g = (torch.full_like(x, torch.nan) for x in (costs, a64, b64))
    converged = []
    for k, good in enumerate(legal.tolist()):
        if good:
            problem = (weights.numpy() for weights in (a64[k], weights_b[k], scaled[k]))
            found, log = ot.emd(*problem, numItermax=10_000_000, log=True)
            for part, values in ((plan, found), (f, log["u"]), (g, log["v"])):
                part[k] = torch.from_numpy(values)
            good = log["warning"] is None
        converged.append(good)
    f, g = _tight(scaled, a64, b64, f, g)
    f, g = f * span[..., 0] + low[..., 0], g * span[..., 0]
    plan = plan.to(matrix)
    off = (plan.sum(-2) - b).abs().sum(-1)
    flags = torch.tensor(converged, device=matrix.device) & (off <= limits.tolerance)
    iterations = torch.zeros(len(plan), dtype=torch.long, device=matrix.device)
    return Solution(plan, f.to(matrix), g.to(matrix), off, iterations, flags)


def _tight(costs: Tensor, a: Tensor, b: Tensor, f: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Potentials of which those of weight 0, which POT leaves anywhere, are what a first bit of weight would cost."""
    held_f, held_g = torch.where(a > 0, f, -torch.inf), torch.where(b > 0, g, -torch.inf)
    free_f, free_g = (costs - held_g[..., None, :]).amin(-1), (costs - held_f[..., :, None]).amin(-2)
    return torch.where(a > 0, f, free_f), torch.where(b > 0, g, free_g)
