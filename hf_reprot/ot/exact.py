"""Exact transport by POT's network simplex, on the CPU in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from .solution import Limits, Solution

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
    plans, fs, gs, converged = [], [], [], []
    for m, weights_a, weights_b in zip(
        matrix.detach().cpu().double(), a.detach().cpu().double(), b.detach().cpu().double(), strict=True
    ):
        forbidden = m == torch.inf
        if not bool((torch.isfinite(m) | forbidden).all()) or bool(forbidden.all()):
            plan, f, g, good = torch.full_like(m, torch.nan), weights_a * torch.nan, weights_b * torch.nan, False
        else:
            # POT wants both sides to carry the same mass to the last digit.
            weights_b = weights_b * (weights_a.sum() / weights_b.sum().clamp_min(torch.finfo(torch.double).tiny))
            # POT calls problems infeasible whose costs are all large (or negative): it gets them from 0 to 1.
            low = m[~forbidden].min()
            span = (m[~forbidden].max() - low).clamp_min(torch.finfo(torch.double).tiny)
            scaled = torch.where(forbidden, _FORBIDDEN, (m - low) / span)
            plan, log = ot.emd(weights_a.numpy(), weights_b.numpy(), scaled.numpy(), numItermax=10_000_000, log=True)
            plan = torch.from_numpy(plan)
            f, g = torch.from_numpy(log["u"]) * span + low, torch.from_numpy(log["v"]) * span
            good = log["warning"] is None
        plans.append(plan)
        fs.append(f)
        gs.append(g)
        converged.append(good)
    plan = torch.stack(plans).to(matrix)
    error = (plan.sum(-2) - b).abs().sum(-1)
    flags = torch.tensor(converged, device=matrix.device) & (error <= limits.tolerance)
    iterations = torch.zeros(len(plans), dtype=torch.long, device=matrix.device)
    return Solution(plan, torch.stack(fs).to(matrix), torch.stack(gs).to(matrix), error, iterations, flags)
