"""The Gibbs kernel exp((f + g - M) / eps), and the potentials to start from. Everything is batched: (B, m, n)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

# Entries written at a time on a CPU: the passes over a block then stay in its cache.
_BLOCK = 1 << 17


def cold_potentials(matrix: Tensor, g: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Potentials f (B, m), g (B, n) at which no exponent f_i + g_j - M_ij is above 0, and one of each row is 0.

    Two passes of minima, without an exponential: f_i = min_j (M_ij - g_j), and, where no `g` is given to start from,
    g_j = min_i (M_ij - f_i) after f_i = min_j M_ij, so that each row and each column of the kernel holds a 1.
    """
    if g is not None:
        return (matrix - g[..., None, :]).amin(-1), g
    f = matrix.amin(-1)
    return f, (matrix - f[..., :, None]).amin(-2) if not _on_host(matrix) else _column_minima(matrix, f)


def fill_kernel(out: Tensor, matrix: Tensor, f: Tensor, g: Tensor, inverse_epsilon: Tensor) -> Tensor:
    """Writes exp((f + g - M) / eps) over `out` (B, m, n), for 1 / eps (B,)."""
    if _on_host(matrix):
        for pair in range(matrix.shape[0]):
            scale = float(inverse_epsilon[pair])
            row, column = f[pair][:, None], g[pair]
            for rows in _blocks(matrix.shape[-2], matrix.shape[-1]):
                block = out[pair, rows]
                torch.sub(row[rows], matrix[pair, rows], out=block)
                block.add_(column).mul_(scale).exp_()
        return out
    torch.sub(f[..., :, None], matrix, out=out)
    return out.add_(g[..., None, :]).mul_(inverse_epsilon[:, None, None]).exp_()


def scale_to_plan(kernel: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """diag(left) K diag(right) in the place of K (B, m, n); left (B, m), right (B, n)."""
    if _on_host(kernel):
        for pair in range(kernel.shape[0]):
            for rows in _blocks(kernel.shape[-2], kernel.shape[-1]):
                kernel[pair, rows].mul_(left[pair, rows, None]).mul_(right[pair])
        return kernel
    return kernel.mul_(left[..., :, None]).mul_(right[..., None, :])


def inner(plan: Tensor, matrix: Tensor) -> Tensor:
    """<P, M> (B,), counting 0 where the plan is 0, also at a forbidden (infinite) cost."""
    if _on_host(plan):
        products = torch.stack([torch.dot(p.reshape(-1), m.reshape(-1)) for p, m in zip(plan, matrix, strict=True)])
        if bool(torch.isfinite(products).all()):
            return products
    sums = torch.where(plan > 0, plan * matrix, 0.0).sum((-2, -1))
    return torch.where((plan.isnan() | matrix.isnan()).any(-1).any(-1), torch.nan, sums)


def _column_minima(matrix: Tensor, f: Tensor) -> Tensor:
    g = torch.full((matrix.shape[0], matrix.shape[-1]), torch.inf, dtype=matrix.dtype)
    for pair in range(matrix.shape[0]):
        for rows in _blocks(matrix.shape[-2], matrix.shape[-1]):
            torch.minimum(g[pair], (matrix[pair, rows] - f[pair, rows, None]).amin(0), out=g[pair])
    return g


def _blocks(m: int, n: int) -> Iterator[slice]:
    step = max(1, _BLOCK // n)
    for start in range(0, m, step):
        yield slice(start, start + step)


def _on_host(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu"
