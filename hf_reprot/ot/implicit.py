"""A gradient through the plan itself, from the optimality conditions of entropic transport."""

from __future__ import annotations

import torch
from torch import Tensor


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
        >>> from hf_reprot.ot.implicit import differentiable_plan
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
