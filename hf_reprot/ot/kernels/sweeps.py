"""Large pairs: a sweep of three kernels that reads the costs once, spread over the whole device."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def sweep_rows(
    M, a, b, f, g, inverse, done, partial, m, n,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Program (pair, k) of grid (B, programs): every programs-th block of rows gets its f, and its part of the column
    sums is added up in row k of `partial` (B, programs, n)."""
    pair, part_of, parts = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    if tl.load(done + pair) == 0:
        columns = tl.arange(0, COLUMNS)
        inside = columns < n
        weights = tl.load(b + pair * n + columns, mask=inside, other=0.0)
        point = tl.load(g + pair * n + columns, mask=inside, other=0.0)
        scale = tl.load(inverse + pair) * 1.4426950408889634
        sums = tl.zeros([COLUMNS], dtype=tl.float32)
        for first in range(part_of * ROWS, m, parts * ROWS):
            rows = first + tl.arange(0, ROWS)
            part, fresh, here = row_block(
                M + pair * m * n, f + pair * m, a + pair * m, point, weights, rows, columns, m, n, scale
            )
            tl.store(f + pair * m + rows, fresh, mask=here)
            sums += part
        tl.store(partial + (pair * parts + part_of) * n + columns, sums, mask=inside)


@triton.jit
def add_columns(done, partial, sums, n, parts, BLOCK: tl.constexpr, PARTS: tl.constexpr):
    """Program (pair, k) of grid (B, blocks of columns): `partial` (B, parts, n) summed over its parts, in one order."""
    pair = tl.program_id(0).to(tl.int64)
    if tl.load(done + pair) == 0:
        columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        total = tl.zeros([BLOCK], dtype=tl.float32)
        for first in range(0, parts, PARTS):
            which = first + tl.arange(0, PARTS)
            mask = (which < parts)[:, None] & (columns < n)[None, :]
            total += tl.sum(
                tl.load(partial + (pair * parts + which)[:, None] * n + columns[None, :], mask=mask, other=0.0), 0
            )
        tl.store(sums + pair * n + columns, total, mask=columns < n)


@triton.jit
def move(
    b, g, origin, plain, sums, inverse, growth, done, steps, error_out, sweeps_out, n, tolerance, most, more, gain,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """Program `pair` of grid (B,): the error, whether the pair is done, and, if it is not, its next point, where 1 /
    eps is larger by `more` times `growth`."""
    pair = tl.program_id(0).to(tl.int64)
    if tl.load(done + pair) == 0:
        columns = tl.arange(0, COLUMNS)
        inside = columns < n
        here = pair * n + columns
        point = tl.load(g + here, mask=inside, other=0.0)
        strength = tl.load(inverse + pair)
        # Before the sums of `next_point`, where threads wait for each other: none may see what another stores below.
        sweep = tl.load(sweeps_out + pair) + 1
        error, ahead, landed, count = next_point(
            point,
            tl.load(plain + here, mask=inside, other=0.0),
            tl.load(b + here, mask=inside, other=0.0),
            tl.load(sums + here, mask=inside, other=1.0),
            inside,
            strength * 1.4426950408889634,
            tl.load(steps + pair),
            gain,
        )
        # As in `solve_pairs`.
        begin = tl.load(origin + here, mask=inside, other=0.0)
        sharper = strength + more * tl.load(growth + pair)
        ahead = begin + (ahead - begin) * (strength / sharper)
        running = (error > tolerance) & (sweep < most)
        tl.store(g + here, tl.where(running, ahead, point), mask=inside)
        tl.store(plain + here, landed, mask=inside)
        tl.store(steps + pair, count)
        tl.store(error_out + pair, error)
        tl.store(sweeps_out + pair, sweep)
        tl.store(done + pair, tl.where(running, 0, 1))
        tl.store(inverse + pair, tl.where(running, sharper, strength))


@triton.jit
def solve_pairs(
    M, a, b, f, g, inverse, growth, error_out, sweeps_out, m, n, tolerance, most, growing, gain,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Program `pair` of grid (B,): sweeps until the L1 error is at most `tolerance`, or `most` sweeps are made.

    f (B, m) and g (B, n) are the potentials to start from, and in the end those of the last sweep's plan. Sweep t, from
    1, has the kernel of 1 / eps = inverse + min(t, growing) growth; momentum begins when the kernel stays.
    """
    pair = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, COLUMNS)
    inside = columns < n
    weights = tl.load(b + pair * n + columns, mask=inside, other=0.0)
    point = tl.load(g + pair * n + columns, mask=inside, other=0.0)
    origin = point
    plain = point
    start, more = tl.load(inverse + pair), tl.load(growth + pair)
    M += pair * m * n
    a += pair * m
    f += pair * m
    steps = tl.full([], 0.0, tl.float32)
    error = tl.full([], float("inf"), tl.float32)
    sweep = tl.full([], 0, tl.int32)
    running = sweep == 0
    while running:
        sweep += 1
        strength = start + more * tl.minimum(sweep, growing)
        scale = strength * 1.4426950408889634
        sums = tl.zeros([COLUMNS], dtype=tl.float32)
        for first in range(0, m, ROWS):
            rows = first + tl.arange(0, ROWS)
            part, fresh, here = row_block(M, f, a, point, weights, rows, columns, m, n, scale)
            tl.store(f + rows, fresh, mask=here)
            sums += part
        # The next sweep's loads of f come from other threads than its stores.
        tl.debug_barrier()
        now = tl.where(sweep > growing, gain, 0.0)
        error, ahead, landed, steps = next_point(point, plain, weights, sums, inside, scale, steps, now)
        # A kernel that grows sharper leaves the scalings exp((g - origin) / eps) as they are.
        ahead = origin + (ahead - origin) * (strength / (start + more * tl.minimum(sweep + 1, growing)))
        running = (error > tolerance) & (sweep < most)  # an error that is no number ends it
        point = tl.where(running, ahead, point)
        plain = landed
    tl.store(g + pair * n + columns, point, mask=inside)
    tl.store(error_out + pair, error)
    tl.store(sweeps_out + pair, sweep)


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
