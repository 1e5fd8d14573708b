"""The gradient of an optimal value: the plan in the costs, the potentials in the weights, whatever found them."""

from __future__ import annotations

import torch
from torch import Tensor


def with_envelope_gradient(
    value: Tensor,
    matrix: Tensor,
    plan: Tensor,
    a: Tensor | None = None,
    b: Tensor | None = None,
    potentials: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """The value, differentiable in the cost matrix and in the weights (envelope theorem).

    For W(M, a, b) = min <P, M> + eps KL(P | a b') over the couplings of a and b, the dual function of f and g is

        f.a + g.b - eps sum_ij a_i b_j (exp((f_i + g_j - M_ij) / eps) - 1)

    At the best f and g only the direct dependence counts. In M it gives P, since P_ij = a_i b_j exp((f_i + g_j - M_ij)
    / eps). In a_i it gives f_i - eps (sum_j P_ij / a_i - sum_j b_j) = f_i - eps (1 - 1) = f_i, and in b_j likewise g_j:
    the reference a b', which moves along, adds nothing (against a fixed reference, eps log a would be missing). Without
    entropy the optimal f and g of the linear program are subgradients, and the gradient where they are unique.

    W is defined for weights of equal sum only, and f and g up to a constant c (f + c, g - c). The gradient given here
    is the one of W(M, a / sum a, b / sum b) at weights that sum to 1: f - f.a and g - g.b, which no constant changes.
    Along directions that keep the sum it is that of W. A weight of 0 gets the one-sided derivative, from the potential
    that the other side's plan implies; where that is not finite (all its matches are forbidden), 0.

    Args:
        value: (...) without a gradient.
        matrix: (..., m, n) The cost matrix.
        plan: (..., m, n) without a gradient.
        a: (..., m) Weights of the rows, connected to what they are learned from; None: constant.
        b: (..., n) Weights of the columns.
        potentials: f (..., m) and g (..., n), without a gradient; needed where weights are given.
    """
    f, g = (None, None) if potentials is None else potentials
    return _Envelope.apply(matrix, a, b, value, plan, f, g)


class _Envelope(torch.autograd.Function):
    @staticmethod
    def forward(ctx, matrix: Tensor, a, b, value: Tensor, plan: Tensor, f, g) -> Tensor:
        needed = [weights is not None and weights.requires_grad for weights in (a, b)]
        slopes = [_slope(x, w) if need else None for need, x, w in zip(needed, (f, g), (a, b), strict=True)]
        ctx.save_for_backward(plan, *slopes)
        ctx.dtypes = [None if x is None else x.dtype for x in (matrix, a, b)]
        return value.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, d_value: Tensor):
        plan, *slopes = ctx.saved_tensors
        gradients = [(d_value[..., None, None] * plan).to(ctx.dtypes[0]) if ctx.needs_input_grad[0] else None]
        for slope, dtype in zip(slopes, ctx.dtypes[1:], strict=True):
            gradients.append(None if slope is None else (d_value[..., None] * slope).to(dtype))
        return *gradients, None, None, None, None


def _slope(potential: Tensor, weights: Tensor) -> Tensor:
    """f - f.a, in float64 until the end: potentials may share a large constant."""
    sound = torch.isfinite(potential)
    slope = torch.where(sound, potential, 0.0).double()
    slope = slope - (slope * weights).sum(-1, keepdim=True) / weights.sum(-1, keepdim=True)
    return torch.where(sound, slope, 0.0).to(potential.dtype)
