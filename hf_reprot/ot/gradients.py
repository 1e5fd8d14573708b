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


def differentiable_plan(M: Tensor, plan: Tensor, epsilon: float) -> Tensor:
    """The plan of an entropic problem, differentiable in the cost; its marginals are held fixed.

    The plan P_ij = a_i b_j exp((f_i + g_j - M_ij) / eps) moves with M so that its marginals stay. For a loss with
    dL/dP = G the gradient is

        dL/dM = -(1/eps) P o (G - alpha 1' - 1 beta')

    where alpha (m,) and beta (n,) make all its row and column sums 0. Eliminating beta leaves one system of m
    equations, singular along the ones: m - 1 after the last alpha is set to 0. So it pays where the plan has few rows.
    Nothing is unrolled. The backward pass cannot be differentiated again.

    Args:
        M: (..., m, n) Costs.
        plan: (..., m, n) The plan that solves them, as in `solve(...).plan`, converged to its last digits: what is
            missing there is missing here.
        epsilon: Entropic strength that it was solved with, in units of the cost.

    Returns:
        (..., m, n) The plan.

    Example:
        >>> import torch
        >>> from hf_reprot.ot import solve
        >>> from hf_reprot.ot.gradients import differentiable_plan
        >>> M = torch.rand(3, 5, dtype=torch.float64, requires_grad=True)
        >>> plan = differentiable_plan(M, solve(M, epsilon=0.1, tolerance=1e-12).plan, 0.1)
        >>> plan[0, 0].backward()
        >>> M.grad.sum(0).abs().max().item() < 1e-9
        True

    References: the elimination as in Xie et al., "Differentiable Top-k with Optimal Transport", NeurIPS 2020,
    appendix; implicit differentiation of Sinkhorn: Luise et al., NeurIPS 2018.
    """
    return _Plan.apply(M, plan.detach(), float(epsilon))


class _Plan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, M: Tensor, plan: Tensor, epsilon: float) -> Tensor:
        ctx.save_for_backward(plan)
        ctx.epsilon, ctx.dtype = epsilon, M.dtype
        return plan.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, d_plan: Tensor):
        (plan,) = ctx.saved_tensors
        weighted = plan * d_plan
        rows, columns = plan.sum(-1), plan.sum(-2)
        per_column = columns.clamp_min(torch.finfo(plan.dtype).tiny).reciprocal()
        share = plan * per_column[..., None, :]  # P diag(1/b)
        # (diag(a) - P diag(1/b) P') alpha = (P o G) 1 - P diag(1/b) (P o G)' 1
        right = weighted.sum(-1) - (share @ weighted.sum(-2)[..., None])[..., 0]
        system = torch.diag_embed(rows) - share @ plan.mT
        # In units of the rows' weights. A plan that is hard in the last digit leaves 0 = 0, which the ridge decides.
        unit = rows.clamp_min(torch.finfo(plan.dtype).tiny).rsqrt()
        system = (system * unit[..., :, None] * unit[..., None, :])[..., :-1, :-1]
        ridge = torch.finfo(plan.dtype).eps * torch.eye(system.shape[-1], dtype=plan.dtype, device=plan.device)
        alpha = torch.linalg.solve_ex(system + ridge, (right * unit)[..., :-1, None])[0][..., 0]
        alpha = torch.nn.functional.pad(alpha, (0, 1)) * unit
        beta = (weighted.sum(-2) - (alpha[..., None, :] @ plan)[..., 0, :]) * per_column
        gradient = (plan * (alpha[..., :, None] + beta[..., None, :]) - weighted) / ctx.epsilon
        return gradient.to(ctx.dtype), None, None
