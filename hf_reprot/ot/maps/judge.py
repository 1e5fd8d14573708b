"""Which of two maps is better, told by points that neither was fitted on."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from .divergence import RELATIVE_EPSILON, half_squares, halves_divergence

_SHARE, _MOST = 0.2, 512
FOLDS = 5

Referee = Callable[[nn.Module], float]


def referee(x: Tensor, y: Tensor) -> Referee:
    """Map -> `halves_divergence` of T(x) and y, with one epsilon whatever the map."""
    epsilon = RELATIVE_EPSILON * half_squares(y, y).mean().clamp_min(torch.finfo(y.dtype).tiny)

    @torch.no_grad()
    def judge(candidate: nn.Module) -> float:
        figure = float(halves_divergence(candidate(x), y, epsilon))
        return figure if math.isfinite(figure) else math.inf

    return judge


def held_out(points: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Most of the points, and a fifth (512 at most) to judge by."""
    order = _order(points, generator)
    held = min(_MOST, math.ceil(_SHARE * len(points)))
    return points[order[held:]], points[order[:held]]


def folds(points: Tensor, generator: torch.Generator) -> list[tuple[Tensor, Tensor]]:
    """Five ways to hold a fifth of the points out, each point once."""
    parts = _order(points, generator).chunk(FOLDS)
    return [
        (points[torch.cat([p for j, p in enumerate(parts) if j != k])], points[part]) for k, part in enumerate(parts)
    ]


def some(points: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """The points, or as many of them by chance."""
    return points if len(points) <= most else points[_order(points, generator)[:most]]


def _order(points: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randperm(len(points), generator=generator).to(points.device)
