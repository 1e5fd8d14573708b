"""Costs with parameters, between two sets of points: what inverse optimal transport learns."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class BilinearCost(nn.Module):
    """c(x, y) = -x' A y: how well two points fit, whatever the widths of their spaces.

    Between balanced marginals, adding to c any function of x alone and any of y alone changes no plan, so that this is
    also every squared distance |L x - R y|^2 with A = 2 L' R, and it does not see offsets of x or y.

    Args:
        width_x: d_x. width_y: d_y.
        dtype: Of the parameter `A` (d_x, d_y), which starts at 0.
    """

    def __init__(self, width_x: int, width_y: int, dtype: torch.dtype = torch.float64):
        super().__init__()
        self.A = nn.Parameter(torch.zeros(width_x, width_y, dtype=dtype))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """C (..., n, m) from x (..., n, d_x) and y (..., m, d_y)."""
        A = _like(self.A, x)
        return -(x.to(A) @ A) @ y.to(A).mT


class MahalanobisCost(nn.Module):
    """c(x, y) = |L (x - y)|^2: a squared distance with a learned metric M = L' L, for spaces of one width.

    The loss is convex in M; it is minimised over L, whose factorisation of full rank adds no bad minima (Burer,
    Monteiro, 2005). Across widths take `BilinearCost`.

    Args:
        width: d.
        dtype: Of the parameter `L` (d, d), which starts at a small multiple of the identity.
    """

    def __init__(self, width: int, dtype: torch.dtype = torch.float64):
        super().__init__()
        self.L = nn.Parameter(0.1 * torch.eye(width, dtype=dtype))

    @property
    def metric(self) -> Tensor:
        """M (d, d), positive semidefinite."""
        return self.L.mT @ self.L

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """C (..., n, m) from x (..., n, d) and y (..., m, d)."""
        L = _like(self.L, x)
        shift = y.to(L).mean(-2, keepdim=True)  # |x|^2 + |y|^2 - 2 x.y loses its digits at an offset
        x, y = (x.to(L) - shift) @ L.mT, (y.to(L) - shift) @ L.mT
        squares = x.square().sum(-1)[..., :, None] + y.square().sum(-1)[..., None, :]
        return (squares - 2 * x @ y.mT).clamp_min(0)


class FreeCost(nn.Module):
    """c(i, j) = C_ij: every entry a parameter, between numbered things that have no features.

    Args:
        rows: n. columns: m.
        dtype: Of the parameter `C` (n, m).
    """

    def __init__(self, rows: int, columns: int, dtype: torch.dtype = torch.float64):
        super().__init__()
        self.C = nn.Parameter(torch.zeros(rows, columns, dtype=dtype))

    def forward(self, x: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        """C (k, l) of rows numbered x (k,) and columns numbered y (l,); None: all of them."""
        C = self.C if x is None else self.C[x]
        return C if y is None else C[:, y]


def fix_gauge(cost: Tensor) -> Tensor:
    """The one among all costs C_ij + alpha_i + beta_j whose rows and columns each have the mean 0.

    A plan determines its cost up to such a sum, which is worth the same in every plan: compare costs after this.

    Args:
        cost: (..., n, m).

    Returns:
        (..., n, m)

    Example:
        >>> import torch
        >>> from hf_reprot.experimental.inverse import fix_gauge
        >>> C = torch.rand(4, 6)
        >>> torch.allclose(fix_gauge(C + torch.rand(4, 1) + torch.rand(6)), fix_gauge(C), atol=1e-6)
        True
    """
    cost = cost - cost.mean(-1, keepdim=True)
    return cost - cost.mean(-2, keepdim=True)


def _like(parameter: Tensor, x: Tensor) -> Tensor:
    """A parameter in the dtype that points are computed in: their own, and at least float32."""
    return parameter.to(dtype=torch.promote_types(x.dtype, torch.float32))
