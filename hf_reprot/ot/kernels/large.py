"""Large pairs: a sweep of three kernels that reads the costs once, spread over the whole device."""

from __future__ import annotations

import triton
import triton.language as tl

from .step import next_point, row_block


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
        sweep = tl.load(sweeps_out + pair) + 1
        running = (error > tolerance) & (sweep < most)
        tl.store(g + here, tl.where(running, ahead, point), mask=inside)
        tl.store(plain + here, landed, mask=inside)
        tl.store(steps + pair, count)
        tl.store(error_out + pair, error)
        tl.store(sweeps_out + pair, sweep)
        tl.store(done + pair, tl.where(running, 0, 1))
        tl.store(inverse + pair, tl.where(running, sharper, strength))
