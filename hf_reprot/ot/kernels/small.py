"""Small and middle pairs: one program a pair makes all sweeps in one launch, and streams the costs out of the cache."""

from __future__ import annotations

import triton
import triton.language as tl

from .step import next_point, row_block


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
