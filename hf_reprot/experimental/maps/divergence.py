"""How far two point clouds are apart: Sinkhorn divergences."""

from __future__ import annotations

import torch
from torch import Tensor

from ...ot.solve import solve

RELATIVE_EPSILON = 0.05
# Values to train on or to choose by: their own sampling error is far above this.
_TOLERANCE, _SWEEPS = 1e-2, 300


def half_squares(x: Tensor, y: Tensor) -> Tensor:
    """|x_i - y_j|^2 / 2, (..., n, m), at least float32, differentiable."""
    dtype = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
    x, y = x.to(dtype), y.to(dtype)
    shift = y.detach().mean(-2, keepdim=True)  # |x|^2 + |y|^2 - 2 x.y loses its digits at an offset
    x, y = x - shift, y - shift
    squares = (x.square().sum(-1)[..., :, None] + y.square().sum(-1)[..., None, :]) / 2
    return (squares - x @ y.mT).clamp_min(0)


def sinkhorn_divergence(
    x: Tensor, y: Tensor, *, relative_epsilon: float = RELATIVE_EPSILON, epsilon: float | Tensor | None = None
) -> Tensor:
    """How far two sets of points are apart, blind to their order and numbers.

        S(x, y) = W(x, y) - W(x, x) / 2 - W(y, y) / 2,   W = min_P <P, C> + eps KL(P | a b'),  C_ij = |x_i - y_j|^2 / 2

    with one eps in all three terms: 0 where the two sets are the same (Feydy et al., 2019, arXiv 1810.08278).

    Args:
        x: (n, d), any float dtype, computed in float32 or more.
        y: (m, d).
        relative_epsilon: Blur in units of the mean cost between x and y; the unit is detached.
        epsilon: Blur in units of the cost; overrides `relative_epsilon`.

    Returns:
        S (), differentiable in both by the envelope theorem.

    Example:
        >>> import torch
        >>> from hf_reprot.experimental.maps import sinkhorn_divergence
        >>> x = torch.rand(50, 3)
        >>> near = sinkhorn_divergence(x, x.flip(0) + 1.0)  # moved by (1, 1, 1): half the squared length
        >>> round(float(near), 2)
        1.5
    """
    with torch.autocast(device_type=x.device.type, enabled=False):
        cross = half_squares(x, y)
        if epsilon is None:
            epsilon = _strength(cross, relative_epsilon)
        within = [_value(half_squares(z, z), epsilon) for z in (x, y)]
        return _value(cross, epsilon) - (within[0] + within[1]) / 2


def halves_divergence(x: Tensor, y: Tensor, epsilon: Tensor) -> Tensor:
    """A Sinkhorn divergence of two laws, of which no term compares a sample with itself.

        D = mean_{k,l} W(x_k, y_l) - W(x_1, x_2) / 2 - W(y_1, y_2) / 2

    for halves x_1, x_2 of x and y_1, y_2 of y: the minibatch energy distance (Salimans et al., 2018, arXiv 1803.05573).
    In many dimensions points are far from their nearest neighbours in another sample, but at distance 0 from
    themselves: `sinkhorn_divergence` of two samples is then about W(x, y) alone, which is least where x shrinks to its
    mean. Here all terms carry the same error of sampling, and it cancels. May fall below 0.

    Args:
        x: (n, d). y: (m, d). Odd ones are left out.
        epsilon: () In units of the cost |.|^2 / 2.
    """
    x1, x2 = x[: len(x) // 2], x[len(x) // 2 : 2 * (len(x) // 2)]
    y1, y2 = y[: len(y) // 2], y[len(y) // 2 : 2 * (len(y) // 2)]
    cross = half_squares(torch.stack([x1, x2])[:, None], torch.stack([y1, y2]))
    within = (_value(half_squares(x1, x2), epsilon) + _value(half_squares(y1, y2), epsilon)) / 2
    return _value(cross, epsilon).mean() - within


def _strength(cost: Tensor, relative: float) -> Tensor:
    return relative * cost.detach().mean((-2, -1))


def _value(cost: Tensor, epsilon: float | Tensor) -> Tensor:
    return solve(cost, epsilon=epsilon, tolerance=_TOLERANCE, max_iterations=_SWEEPS).value
