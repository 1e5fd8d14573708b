"""The map that an entropic plan between samples implies, also where there was no sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ...ot.solve import solve
from .divergence import half_squares
from .learn import folds, referee

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

    sources: Tensor | None
    targets: Tensor
    potential: Tensor
    self_potential: Tensor | None
    epsilon: Tensor

    def __init__(
        self,
        start: nn.Module,
        sources: Tensor | None,
        targets: Tensor,
        potential: Tensor,
        self_potential: Tensor | None,
        epsilon: Tensor,
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
        g = solve(cost, epsilon=epsilon, tolerance=_TOLERANCE).column_potential
        own = solve(half_squares(z, z), epsilon=epsilon, tolerance=_TOLERANCE).column_potential if debiased else None
        return cls(start, z, y, g, own, epsilon)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self._mapped(block) for block in x.split(_BLOCK)]) if len(x) else self.start(x)

    def _mapped(self, x: Tensor) -> Tensor:
        z = self.start(x)
        image = self._mean(z, self.targets, self.potential)
        if self.sources is None or self.self_potential is None:
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


def barycentric_map(plan: Tensor, y: Tensor) -> Tensor:
    """The mean of the points that each row of a plan is matched with.

        T_i = sum_j P_ij y_j / sum_j P_ij

    For the squared distance this is the best single image of row i under P (Ferradans et al., 2014; Courty et al.,
    2017, arXiv 1507.00504). A row of zero mass is matched with nothing: it gets what a product plan would give it, the
    mean of y under the plan's column sums (the plain mean where the whole plan is zero).

    Args:
        plan: P (..., m, n), nonnegative, any float dtype; half precision is computed in float32.
        y: (..., n, d). Leading dimensions broadcast.

    Returns:
        T (..., m, d), differentiable in both.

    Raises:
        TypeError: not float tensors.
        ValueError: shapes that do not fit.

    Example:
        >>> import torch
        >>> from hf_reprot.experimental.maps import barycentric_map
        >>> barycentric_map(torch.tensor([[0.25, 0.25], [0.0, 0.5]]), torch.tensor([[0.0, 0.0], [2.0, 4.0]]))
        tensor([[1., 2.],
                [2., 4.]])
    """
    for name, value in (("plan", plan), ("y", y)):
        if not isinstance(value, Tensor) or not value.is_floating_point():
            raise TypeError(f"{name} must be a float tensor, got {getattr(value, 'dtype', type(value).__name__)}")
        if value.ndim < 2 or 0 in value.shape[-2:]:
            raise ValueError(f"{name} must have two dimensions or more, none empty, got {tuple(value.shape)}")
    if plan.shape[-1] != y.shape[-2]:
        raise ValueError(f"plan has {plan.shape[-1]} columns and y {y.shape[-2]} points")
    dtype = torch.promote_types(torch.promote_types(plan.dtype, y.dtype), torch.float32)
    with torch.autocast(device_type=plan.device.type, enabled=False):
        plan, y = plan.to(dtype), y.to(dtype)
        rows, columns = plan.sum(-1, keepdim=True), plan.sum(-2, keepdim=True)
        total = columns.sum(-1, keepdim=True)
        share = torch.where(total > 0, columns / torch.where(total > 0, total, 1.0), 1.0 / plan.shape[-1])
        weights = torch.where(rows > 0, plan / torch.where(rows > 0, rows, 1.0), share)
        return weights @ y
