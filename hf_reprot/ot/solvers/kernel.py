"""The Gibbs kernel exp((f + g - M) / eps), and the potentials to start from. Everything is batched: (B, m, n)."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

# Entries written at a time on a CPU: the passes over a block then stay in its cache.
BLOCK = 1 << 17
# Entries up to which a scalar product stays in the thread that asks for it.
_ONE_THREAD = 1 << 16
# Powers of two below these count as 0 on a CPU. Subnormal numbers, which begin at 2^-126 in float32 and which the plan
# would hold sooner, make a product 50 to 70 times as slow there, and no scaling in use brings one back to what counts.
_VANISHED = {torch.float32: -100.0, torch.float64: -960.0}
# Scalar products below it may be sums of subnormal numbers, which have few digits.
_ROUGH = 1e-25
# Of the least weight of a row, what counts as 0 in a float32 plan on a CPU: all of it together is far below rounding.
_TRACE = 2.0**-60


def cold_potentials(matrix: Tensor, g: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Potentials f (B, m), g (B, n) at which no exponent f_i + g_j - M_ij is above 0, and one of each row is 0.

    Two passes of minima, without an exponential: f_i = min_j (M_ij - g_j), and, where no `g` is given to start from,
    g_j = min_i (M_ij - f_i) after f_i = min_j M_ij, so that each row and each column of the kernel holds a 1.
    """
    if g is not None:
        return (matrix - g[..., None, :]).amin(-1), g
    f = matrix.amin(-1)
    return f, (matrix - f[..., :, None]).amin(-2) if not on_host(matrix) else _column_minima(matrix, f)


def starting_potentials(matrix: Tensor, g: Tensor | None) -> tuple[Tensor, Tensor]:
    """`cold_potentials` from `g` (B, n), for those pairs whose g is finite."""
    if g is None:
        return cold_potentials(matrix)
    usable = torch.isfinite(g).all(-1, keepdim=True)
    if on_host(matrix) and bool(usable.all()):
        return cold_potentials(matrix, g)
    _, cold = cold_potentials(matrix)
    return cold_potentials(matrix, torch.where(usable, g, cold))


def fill_kernel(out: Tensor, matrix: Tensor, f: Tensor, g: Tensor, inverse_epsilon: Tensor) -> Tensor:
    """Writes exp((f + g - M) / eps) over `out` (B, m, n), for 1 / eps (B,).

    By powers of two, which a CPU raises 2 to 3 times as fast as those of e, and with the same accuracy. On a CPU, what
    is below 1e-30 (float32) is 0.
    """
    scale = (inverse_epsilon * math.log2(math.e))[:, None, None]
    f, g = f[..., :, None], g[..., None, :]
    if not on_host(matrix):
        torch.sub(f, matrix, out=out)
        return out.add_(g).mul_(scale).exp2_()
    for pairs, rows in _blocks(*matrix.shape):
        block = torch.sub(f[pairs, rows], matrix[pairs, rows], out=out[pairs, rows]).add_(g[pairs]).mul_(scale[pairs])
        exponents_to_kernel(block)
    return out


def exponents_to_kernel(exponents: Tensor) -> None:
    """Raises 2 to the exponents, in their place on a CPU: 0 where that is below 1e-30 (float32)."""
    torch.threshold_(exponents, _VANISHED[exponents.dtype], -math.inf).exp2_()


def scale_to_plan(kernel: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """diag(left) K diag(right) in the place of K (B, m, n); left (B, m), right (B, n)."""
    left, right = left[..., :, None], right[..., None, :]
    if not on_host(kernel) or kernel.numel() <= BLOCK:
        return kernel.mul_(left).mul_(right)
    for pairs, rows in _blocks(*kernel.shape):
        kernel[pairs, rows].mul_(left[pairs, rows]).mul_(right[pairs])
    return kernel


def with_exact_rows(plan: Tensor, a: Tensor) -> Tensor:
    """Scales the rows of a plan (B, m, n) to `a`, in its place: what rounding of potentials that are large beside
    epsilon left of a row is no longer its weight. A row that vanished stays 0."""
    sums = plan.sum(-1)
    return plan.mul_(torch.where(sums > 0, a / sums, 0.0)[..., None])


def without_traces(plan: Tensor, a: Tensor) -> Tensor:
    """Makes 0 of what is far below the rounding of its row, in the place of a float32 plan (B, m, n) on a CPU. Factors
    of a gradient would make subnormal numbers of it, and the product with the activations 10 to 20 times as slow."""
    if not on_host(plan) or plan.dtype != torch.float32:
        return plan
    return torch.threshold_(plan, trace(plan.dtype, a.numpy()), 0.0)


def trace(dtype: torch.dtype, a: np.ndarray) -> float:
    """What `without_traces` makes 0 of, in a plan of rows that weigh `a`."""
    if dtype != torch.float32:
        return 0.0
    least = float(np.minimum.reduce(a, None))
    if not least > 0:
        least = float(np.minimum.reduce(np.where(a > 0, a, np.inf), None))
    return max(_TRACE * least, torch.finfo(dtype).tiny)


def marginal_error(plan: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """(B,) L1 distance of both marginals of a plan from a and b."""
    return (plan.sum(-1) - a).abs().sum(-1) + (plan.sum(-2) - b).abs().sum(-1)


def inner(plan: Tensor, matrix: Tensor) -> Tensor:
    """<P, M> (B,), counting 0 where the plan is 0, also at a forbidden (infinite) cost."""
    if on_host(plan):
        return torch.tensor([inner_one(p, m) for p, m in zip(plan, matrix, strict=True)], dtype=plan.dtype)
    return _careful_inner(plan, matrix)


def inner_one(plan: Tensor, matrix: Tensor) -> float:
    """<P, M> of one pair (m, n) on a CPU."""
    product = _dot(plan, matrix)
    if 0 < abs(product) < _ROUGH and plan.dtype == torch.float32:
        product = _dot(plan.double(), matrix.double())
    return product if math.isfinite(product) else float(_careful_inner(plan, matrix))


def _careful_inner(plan: Tensor, matrix: Tensor) -> Tensor:
    unused = (matrix.abs() == torch.inf) & (plan == 0)
    flat = matrix.masked_fill(unused, 0).flatten(-2), plan.flatten(-2)
    return (flat[0][..., None, :] @ flat[1][..., :, None])[..., 0, 0]


def dual_value(f: Tensor, g: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """f.a + g.b (B,) in float64, without what potentials of weight 0 are worth (they may be infinite)."""
    potentials, weights = torch.cat([f, g], -1), torch.cat([a, b], -1)
    products = potentials.masked_fill(weights == 0, 0).double().mul_(weights)
    return products.sum(-1).to(a.dtype)


def mean_cost(matrix: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """a'|M|b (B,) over the matches that are not forbidden."""
    if on_host(matrix):
        size = matrix.abs() if bool(matrix.amin() < 0) else matrix
        mean = torch.bmm(torch.bmm(a[:, None, :], size), b[..., None]).view(-1)
        if bool(torch.isfinite(mean).all()):
            return mean
    size = matrix.abs()
    forbidden = size == torch.inf
    total = torch.bmm(torch.bmm(a[:, None, :], size.masked_fill_(forbidden, 0)), b[..., None]).view(-1)
    mass = (a[..., :, None] * b[..., None, :]).masked_fill_(forbidden, 0).sum((-2, -1))
    return total / mass.clamp_min_(torch.finfo(matrix.dtype).tiny)


def _dot(x: Tensor, y: Tensor) -> float:
    """<x, y> of two matrices, in one thread where they are small: waking others up for them can take 2,000 times as
    long as the product where the machine has other work (8 ms instead of 4 microseconds, on two cores)."""
    if x.numel() > _ONE_THREAD or torch.get_num_threads() == 1:
        return float(torch.dot(x.reshape(-1), y.reshape(-1)))
    return float(np.einsum("ij,ij->i", x.numpy(), y.numpy()).sum())


def on_host(tensor: Tensor) -> bool:
    """Whether a tensor lives where Python does, so that looking at it stalls nothing."""
    return tensor.device.type == "cpu"


def _column_minima(matrix: Tensor, f: Tensor) -> Tensor:
    if matrix.numel() <= BLOCK:
        return (matrix - f[..., None]).amin(-2)
    g = torch.full((matrix.shape[0], matrix.shape[-1]), torch.inf, dtype=matrix.dtype)
    for pairs, rows in _blocks(*matrix.shape):
        torch.minimum(g[pairs], (matrix[pairs, rows] - f[pairs, rows, None]).amin(-2), out=g[pairs])
    return g


def _blocks(batch: int, m: int, n: int) -> Iterator[tuple[slice, slice]]:
    """Several small pairs at once, or some rows of a large one."""
    pairs = max(1, BLOCK // (m * n))
    rows = max(1, BLOCK // n) if pairs == 1 else m
    for pair in range(0, batch, pairs):
        for row in range(0, m, rows):
            yield slice(pair, pair + pairs), slice(row, row + rows)
