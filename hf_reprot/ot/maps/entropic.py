"""The map that an entropic plan between samples implies, also where there was no sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..solve import solve
from .divergence import half_squares
from .judge import folds, referee

# From the start itself to nearly the discrete matching.
GRID = (None, 1.0, 0.3, 0.1, 0.05, 0.02, 0.01)
_TOLERANCE = 1e-3
_BLOCK = 4096  # points that are mapped at a time


class Entropic(nn.Module):
    """The map between two samples that Sinkhorn's potentials extend to all points, after a linear start z = A x.

        T(z) = sum_j w_j(z) y_j,   w_j(z) = softmax_j((g_j - |z - y_j|^2 / 2) / eps)

    (Pooladian, Niles-Weed, 2021, arXiv 2109.12004.) That shrinks toward the mean of y as eps grows. `debiased` adds z
    and takes off what the same map does between the z and themselves: at a large eps nothing is left but the start.

    Args:
        start: Linear map of centred points.
        sources: z (n, d): the start's images of the samples of x.
        targets: y (m, d).
        potential: g (m,) between z and y.
        self_potential: (n,) between z and z; None: not debiased.
        epsilon: () In units of the cost.
    """

    def __init__(
        self, start: nn.Module, sources: Tensor, targets: Tensor, potential: Tensor, self_potential: Tensor, epsilon
    ):
        super().__init__()
        self.start = start
        for name, value in (("targets", targets), ("potential", potential), ("epsilon", epsilon)):
            self.register_buffer(name, value)
        self.register_buffer("sources", None if self_potential is None else sources)
        self.register_buffer("self_potential", self_potential)

    @classmethod
    def between(
        cls, start: nn.Module, x: Tensor, y: Tensor, relative_epsilon: float, debiased: bool = True
    ) -> Entropic:
        """Solves between the samples; `relative_epsilon` in units of the mean cost between z and y."""
        z = start(x)
        cost = half_squares(z, y)
        epsilon = (relative_epsilon * cost.mean()).clamp_min(torch.finfo(cost.dtype).tiny)
        g = solve(cost, epsilon=epsilon, tolerance=_TOLERANCE).potentials[1]
        own = solve(half_squares(z, z), epsilon=epsilon, tolerance=_TOLERANCE).potentials[1] if debiased else None
        return cls(start, z, y, g, own, epsilon)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self._mapped(block) for block in x.split(_BLOCK)]) if len(x) else self.start(x)

    def _mapped(self, x: Tensor) -> Tensor:
        z = self.start(x)
        image = self._mean(z, self.targets, self.potential)
        if self.self_potential is None:
            return image
        return z + image - self._mean(z, self.sources, self.self_potential)

    def _mean(self, z: Tensor, points: Tensor, potential: Tensor) -> Tensor:
        weights = torch.softmax((potential - half_squares(z, points)) / self.epsilon, -1)
        return weights @ points


def choose(
    start: Callable[[Tensor, Tensor], nn.Module],
    x: Tensor,
    y: Tensor,
    grid: Sequence[float | None],
    debiased: bool,
    generator: torch.Generator,
) -> tuple[float | None, float, float]:
    """The relative epsilon for which held-out images fit, by five-fold cross-validation.

    Chosen is the smallest one of which the folds cannot tell that it is worse than the best: a map's bias grows with
    epsilon, and hides in the noise of a few held-out points sooner than its variance does.

    Args:
        start: Samples -> linear map.
        x: (n, d). y: (m, d).
        grid: Relative epsilons, falling; None: the start alone.

    Returns:
        What was chosen of the grid, its mean divergence, and that of the start.
    """
    figures: list[list[float]] = []
    for (known_x, held_x), (known_y, held_y) in zip(folds(x, generator), folds(y, generator), strict=True):
        judge, linear = referee(held_x, held_y), start(known_x, known_y)
        maps = (linear if e is None else Entropic.between(linear, known_x, known_y, e, debiased) for e in grid)
        figures.append([judge(linear), *map(judge, maps)])
    table = torch.tensor(figures, dtype=torch.double)
    at_start, table = table[:, 0].mean().item(), table[:, 1:]
    means = table.mean(0)
    worse = table - table[:, means.argmin()][:, None]
    as_good = worse.mean(0) <= worse.std(0) / len(table) ** 0.5
    chosen = int(as_good.nonzero().amax()) if bool(as_good.any()) else 0
    return grid[chosen], means[chosen].item(), at_start
