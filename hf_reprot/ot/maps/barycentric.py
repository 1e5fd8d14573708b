"""Where a plan sends each row on average."""

from __future__ import annotations

import torch
from torch import Tensor


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
        >>> from hf_reprot.ot.maps import barycentric_map
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
