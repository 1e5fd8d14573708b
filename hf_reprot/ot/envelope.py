"""The gradient of an optimal value: the optimal plan (envelope theorem), whatever found the plan."""

from __future__ import annotations

import torch
from torch import Tensor


def with_plan_as_gradient(value: Tensor, matrix: Tensor, plan: Tensor) -> Tensor:
    """The value, differentiable in the cost matrix: dW/dM = P.

    Args:
        value: (...) without a gradient.
        matrix: (..., m, n) The cost matrix.
        plan: (..., m, n) without a gradient.
    """
    return _Envelope.apply(matrix, value, plan)


class _Envelope(torch.autograd.Function):
    @staticmethod
    def forward(ctx, matrix: Tensor, value: Tensor, plan: Tensor) -> Tensor:
        ctx.save_for_backward(plan)
        ctx.dtype = matrix.dtype
        return value.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, d_value: Tensor):
        (plan,) = ctx.saved_tensors
        return (d_value[..., None, None] * plan).to(ctx.dtype), None, None
