"""Semi-discrete transport: from a Gaussian to a set of points, by the cells of a power diagram."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ...ot.solve import solve

# Rows of noise that are compared with all points at once: larger blocks fall out of a core's cache.
_BLOCK = 256
# Entries of one table of noise against points: of a step, and of the start.
_ENTRIES, _START_ENTRIES = 1 << 22, 1 << 24
# Step sizes at the start and at the end, in units of the typical gap between the best and the second best point.
_FIRST, _LAST = 5.0, 0.1
_MOMENTUM, _SECOND = 0.9, 0.99
# Entropic strength of the start, in units of the mean cost.
_BLUR = 0.01
# Share of the steps at the end whose potentials are averaged.
_AVERAGED = 0.5


@dataclass
class SemiDiscretePlan:
    """The optimal map from N(0, I) to weighted points; leading dimensions `...` are problems side by side.

    Attributes:
        points: (..., n, k) Targets y.
        weights: (..., n) Their weights, summing to 1; 0 for a place that holds no point.
        centre: (..., 1, k) Weighted mean of the points.
        offsets: (..., n) h_i - |y_i|^2 / 2, for points measured from their centre (there an offset of h is free).
        value: (...) E |z - T(z)|^2 / 2, as the dual value, estimated on the draws of the last check.
        mass_error: (...) L1 distance between the cells' masses and the weights, measured on those draws.
        mass_noise: (...) The L1 distance that exact masses would show on as many draws.
    """

    points: Tensor
    weights: Tensor
    centre: Tensor
    offsets: Tensor
    value: Tensor
    mass_error: Tensor
    mass_noise: Tensor

    def scores(self, noise: Tensor) -> Tensor:
        """(..., m, n) What each point offers to noise (m, k) or (..., m, k): the cell is the largest one's."""
        return noise @ (self.points - self.centre).mT + self.offsets[..., None, :]

    def assign(self, noise: Tensor) -> Tensor:
        """(..., m) T(z) as the index of a point, for noise (m, k) or (..., m, k)."""
        return self.scores(noise).max(-1).indices


@torch.no_grad()
def semidiscrete(
    points: Tensor,
    weights: Tensor | None = None,
    *,
    steps: int = 500,
    batch_size: int = 1024,
    check_draws: int | None = None,
    generator: torch.Generator | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> SemiDiscretePlan:
    """The transport map from a standard Gaussian to a set of points, under half the squared distance.

        max_h  E_z min_i (|z - y_i|^2 / 2 - h_i) + <b, h>        T(z) = y_argmin

    Each point owns a cell of the Gaussian of exactly its weight; the map is discontinuous where the points are apart,
    so that nothing falls between them. The gradient in h is b less the masses of the cells, of which a batch of noise
    gives an unbiased estimate. The start is the entropic solution (`solve`) on a sample of the Gaussian, which is right
    about the large distances. Steps of Adam then fall geometrically, in units of the gap between the best and the
    second best point, and the potentials of the last half are averaged. The number of draws bounds what can be known:
    the error goes down as the root of n / (steps * batch_size).

    Args:
        points: (..., n, k) Targets, any float dtype, computed in float32; finite and, with a positive weight,
            distinct. Units are free: shifting or scaling all points of a problem does not change its cells.
        weights: (..., n), nonnegative, summing to 1, 0 for places without a point; None: uniform.
        steps: Of the ascent.
        batch_size: Draws of noise per step, shared by the problems that stand side by side.
        check_draws: Draws that the masses are measured on; None: 100 for each point, between 10,000 and 1,000,000.
        generator: Source of the noise, on the points' device.
        on_step: Called with the number of steps made and `steps`.

    Returns:
        `SemiDiscretePlan`, in float32.

    Raises:
        TypeError: points are not of a floating point dtype.
        ValueError: shapes or settings that do not fit.

    Example:
        >>> import torch
        >>> from hf_reprot.experimental.latent.semidiscrete import semidiscrete
        >>> points = torch.tensor([[-1.0, 0.0], [1.0, 0.0]])
        >>> plan = semidiscrete(points, steps=50, generator=torch.Generator().manual_seed(0))
        >>> plan.assign(torch.tensor([[-2.0, 5.0], [0.5, -3.0]]))
        tensor([0, 1])

    References: Genevay, Cuturi, Peyré, Bach, "Stochastic Optimization for Large-scale Optimal Transport", NIPS 2016
    (arXiv 1605.08527), for the stochastic ascent. An et al., "AE-OT", ICLR 2020, for its use on latent features.
    """
    _check(points, weights, steps, batch_size, check_draws)
    points = points.to(torch.float32)
    if weights is None:
        weights = points.new_full(points.shape[:-1], 1 / points.shape[-2])
    weights = weights.to(points)
    centre = (weights[..., None] * points).sum(-2, keepdim=True)
    spread = torch.where(weights[..., None] > 0, points - centre, 0.0)
    # Cells do not depend on the unit of length: with one variance for all problems, one step size suits all.
    size = (weights * spread.square().mean(-1)).sum(-1)[..., None, None].sqrt().clamp_min(1e-30)  # (..., 1, 1)
    spread = spread / size
    with torch.autocast(device_type=points.device.type, enabled=False):
        offsets, gap = _start(spread, weights, generator)
        offsets = _ascend(offsets, gap, spread, weights, steps, batch_size, generator, on_step)
        draws = check_draws or min(max(100 * points.shape[-2], 10_000), 1_000_000)
        masses, best = _masses(offsets, spread, draws, generator)
    offsets = offsets * size[..., 0]
    seen = torch.where(weights > 0, offsets, 0.0)  # 0 * -inf
    value = points.shape[-1] / 2 - best * size[..., 0, 0] + (weights * (seen + points.square().sum(-1) / 2)).sum(-1)
    noise = (2 / torch.pi / draws) ** 0.5 * (weights * (1 - weights)).sqrt().sum(-1)
    return SemiDiscretePlan(
        points=points,
        weights=weights,
        centre=centre,
        offsets=offsets,
        value=value,
        mass_error=(masses - weights).abs().sum(-1),
        mass_noise=noise,
    )


def _start(spread: Tensor, weights: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Offsets (..., n), and the typical gap (..., 1) between the best and the second best, of the entropic solution."""
    n, k = spread.shape[-2:]
    rows = max(min(16 * n, _START_ENTRIES // spread[..., 0].numel()), 64)
    z = torch.randn(rows, k, generator=generator, device=spread.device)
    half = spread.square().sum(-1) / 2
    M = half[..., None, :] - z @ spread.mT  # the cost less |z|^2 / 2, which does not depend on the match
    # The mean cost of a pair is k here.
    h = solve(M, None, weights, epsilon=_BLUR * k, tolerance=0.01, max_iterations=300).column_potential
    offsets = torch.where(weights > 0, h.nan_to_num(0.0, 0.0, 0.0) - half, -torch.inf)
    if n == 1:
        return offsets, offsets.new_ones(offsets.shape)
    top = (z @ spread.mT + offsets[..., None, :]).topk(2, dim=-1).values
    gap = (top[..., 0] - top[..., 1]).median(-1, keepdim=True).values
    return offsets, gap.nan_to_num(1.0, 1.0, 1.0).clamp_min(1e-6)


def _ascend(offsets, gap, spread, weights, steps, batch_size, generator, on_step) -> Tensor:
    first, second, mean = (torch.zeros_like(weights) for _ in range(3))
    averaged = max(int(_AVERAGED * steps), 1)
    for step in range(steps):
        masses, _ = _masses(offsets, spread, batch_size, generator)
        gradient = weights - masses
        first.lerp_(gradient, 1 - _MOMENTUM)
        second.lerp_(gradient.square(), 1 - _SECOND)
        root = (second / (1 - _SECOND ** (step + 1))).sqrt().add_(1e-9)
        length = gap * _FIRST * (_LAST / _FIRST) ** (step / steps)
        # -inf, where there is no point, stays -inf
        offsets = offsets + length * first / (1 - _MOMENTUM ** (step + 1)) / root
        if step >= steps - averaged:
            mean += (offsets - mean) / (step - (steps - averaged) + 1)
        if on_step is not None:
            on_step(step + 1, steps)
    return torch.where(weights > 0, mean, -torch.inf)


def _masses(offsets: Tensor, spread: Tensor, draws: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """The cells' shares (..., n) of a number of draws, and the mean (...) of the best scores."""
    k = spread.shape[-1]
    counts = torch.zeros_like(offsets)
    total = offsets.new_zeros(offsets.shape[:-1])
    columns, added = spread.mT.contiguous(), offsets[..., None, :]
    rows = max(min(_BLOCK, _ENTRIES // max(offsets.numel(), 1)), 1)
    ones = offsets.new_ones(*offsets.shape[:-1], rows)
    for start in range(0, draws, rows):
        z = torch.randn(min(rows, draws - start), k, generator=generator, device=offsets.device)
        best = (z @ columns).add_(added).max(-1)  # its index comes several times as fast as argmax's
        counts.scatter_add_(-1, best.indices, ones[..., : len(z)])
        total += best.values.sum(-1)
    return counts / draws, total / draws


def _check(points: Tensor, weights: Tensor | None, steps: int, batch_size: int, check_draws: int | None) -> None:
    if not isinstance(points, Tensor) or not points.is_floating_point():
        got = getattr(points, "dtype", type(points).__name__)
        raise TypeError(f"points must be a tensor of a floating point dtype, got {got}")
    if points.ndim < 2 or 0 in points.shape:
        raise ValueError(f"points must have shape (..., n, k) with n and k at least 1, got {tuple(points.shape)}")
    if weights is not None and weights.shape != points.shape[:-1]:
        raise ValueError(f"weights must have shape {tuple(points.shape[:-1])}, got {tuple(weights.shape)}")
    for name, number in (("steps", steps), ("batch_size", batch_size), ("check_draws", check_draws)):
        if number is not None and number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}")
