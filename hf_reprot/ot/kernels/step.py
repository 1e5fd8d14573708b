"""What every sweep ends with: the error, and the next point with Nesterov's momentum (see `hf_reprot.ot.sweeps`)."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def next_point(g, plain, b, columns, inside, scale, steps, gain):
    """From the column sums of one pair's plan, divided by b: (error, next g, next plain, next steps).

    Vectors over the columns in units of the cost; `scale` is log2(e) / eps; `gain` is 1, or 0 without momentum.
    """
    columns = tl.where(inside, columns, 1.0)
    residual = b * (columns - 1.0)
    error = tl.sum(tl.abs(residual), 0)
    landed = g - tl.log2(columns) / scale
    step = tl.where(inside, landed - plain, 0.0)
    # Against the gradient b - column sums: the momentum starts anew.
    steps = tl.where(tl.sum(residual * step, 0) > 0, 0.0, steps)
    return error, landed + steps / (steps + 3.0) * step, landed, steps + gain


@triton.jit
def row_block(M, f, a, g, b, rows, columns, m, n, scale):
    """One block of rows of one pair: (its part of the column sums divided by b, its new f, which rows are inside).

    The kernel is computed from the costs on the way, at potentials that are never older than a sweep: nothing over- or
    underflows that matters, nothing has to be absorbed, and a sweep reads the costs once and writes no matrix.
    """
    inside = rows < m
    both = inside[:, None] & (columns < n)[None, :]
    costs = tl.load(M + rows.to(tl.int64)[:, None] * n + columns[None, :], mask=both, other=0.0)
    old = tl.load(f + rows, mask=inside, other=0.0)
    weights = tl.load(a + rows, mask=inside, other=0.0)
    kernel = tl.where(both, tl.exp2((old[:, None] - costs + g[None, :]) * scale), 0.0)
    sums = tl.sum(kernel * b[None, :], 1)
    # A row of weight 0 may have lost all its mass; it carries nothing, and says nothing.
    empty = (weights == 0.0) & (sums == 0.0)
    sums = tl.where(empty | (rows >= m), 1.0, sums)
    return tl.sum(kernel * (weights / sums)[:, None], 0), old - tl.log2(sums) / scale, inside
