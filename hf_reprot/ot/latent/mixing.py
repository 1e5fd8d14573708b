"""Between the points of neighbouring cells: what a generator returns besides its training points."""

from __future__ import annotations

import torch
from torch import Tensor

# Cells that are asked for each noise.
CELLS = 8


def mix(scores: Tensor, targets: Tensor, gap: Tensor, reach: Tensor, mixing: float) -> Tensor:
    """Points (m, d) for scores (m, n): that of the best cell, mixed with those of near cells whose points are near.

        T(z) = sum_j w_j y_j,   w_j ~ exp((s_j - s_best) / (mixing * gap))   over |y_j - y_best| <= reach

    A cell whose point lies far from the best one's takes no part, so that no bridge leads from mode to mode: the map
    still jumps where the points do. The idea is that of An et al. (AE-OT, ICLR 2020), who leave out facets by the
    angle between their cells' points; here the distance decides, and the weights come from the scores.

    Args:
        scores: (m, n), -inf for cells that cannot be drawn.
        targets: (n, d).
        gap: (m,) Typical gap between the best score and the second one.
        reach: (m,) Largest distance between points that are mixed.
        mixing: Blur in units of the gap; 0: no mixing.
    """
    if mixing == 0:
        return targets[scores.max(1).indices]
    top = scores.topk(min(CELLS, scores.shape[1]), dim=1)
    points = targets[top.indices]  # (m, cells, d)
    apart = (points - points[:, :1]).norm(dim=2)
    near = (apart <= reach[:, None]) & torch.isfinite(top.values)
    logits = (top.values - top.values[:, :1]) / (mixing * gap[:, None])
    weights = torch.softmax(torch.where(near, logits, -torch.inf), dim=1)
    return (weights[:, :, None] * points).sum(1)
