"""Sinkhorn and proximal steps by Triton kernels."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from ..result import Limits, Solution
from ..solvers.budget import SweepBudget
from ..solvers.kernel import fill_kernel, marginal_error, scale_to_plan, starting_potentials, with_exact_rows
from .sweeps import add_columns, move, solve_pairs, sweep_rows


def sinkhorn_triton(
    matrix: Tensor,
    a: Tensor,
    b: Tensor,
    epsilon: Tensor,
    limits: Limits,
    g: Tensor | None = None,
    *,
    small: bool | None = None,
) -> Solution:
    """Solves a batch (B, m, n), float32; arguments as in `sinkhorn_host`. Never waits for the device, except in the
    first call of a shape with large pairs.

    Args:
        small: True: one program per pair; False: the whole device on every pair; None: by the size.
    """
    f, start = starting_potentials(matrix, g)
    g = start if g is None else start.clone()  # a start that was given stays as it is
    f, g, inverse = f.contiguous(), g.contiguous(), 1 / epsilon
    error, sweeps = run_sweeps(
        matrix,
        a,
        b,
        f,
        g,
        inverse,
        tolerance=limits.tolerance,
        most=limits.max_iterations,
        accelerate=limits.accelerate,
        small=small,
    )
    plan = _plan(matrix, a, b, f, g, inverse)
    # Of what the kernels found only the worse is believed: their own error knows no rounding of the potentials.
    error = torch.maximum(error, marginal_error(plan, a, b))
    return Solution(plan, f, g, error, sweeps.long(), error <= 1.1 * limits.tolerance)


def _plan(matrix: Tensor, a: Tensor, b: Tensor, f: Tensor, g: Tensor, inverse: Tensor) -> Tensor:
    kernel = fill_kernel(torch.empty_like(matrix), matrix, f, g, inverse)
    return with_exact_rows(scale_to_plan(kernel, a, b), a)


class ProximalBlock:
    """The steps of `hf_reprot.ot.solvers.proximal`: sweeps whose kernel grows sharper, then some whose kernel stays.

    In the potentials' own units a proximal step is a sweep at a smaller epsilon, so that it needs no kernel of its own.
    The steps are those of the loop in torch.
    """

    def __init__(self, matrix: Tensor, a: Tensor, b: Tensor, beta: Tensor):
        self.matrix, self.a, self.b, self.beta = matrix, a, b, beta

    def run(self, f: Tensor, g: Tensor, sharpness: Tensor, sharpen: Tensor, steps: int, polish: int):
        f, g = f.contiguous().clone(), g.contiguous().clone()
        run_sweeps(
            *(self.matrix, self.a, self.b, f, g, sharpness / self.beta, sharpen / self.beta),
            tolerance=-1,
            most=steps + polish,
            growing=steps,
        )
        inverse = (sharpness + steps * sharpen) / self.beta
        plan = _plan(self.matrix, self.a, self.b, f, g, inverse)
        landed = g - torch.where(self.b > 0, plan.sum(-2) / self.b, 1.0).log() / inverse[:, None]
        return plan, f, g, landed, marginal_error(plan, self.a, self.b)


# Columns are filled up to a multiple: where rows begin anywhere, a sweep takes three times the instructions.
_EVEN = 16
# Entries of a block of rows that a program holds in registers.
_BLOCK = 8192
# A pair up to this many entries is one program's: about 400 x 400, 5 microseconds a sweep out of the L2 cache.
SMALL = 1 << 18
_PARTS = 128  # programs a large pair is spread over
_CHUNK = 8  # sweeps of large pairs between two looks

_budget = SweepBudget(first=4 * _CHUNK)


def run_sweeps(
    matrix: Tensor,
    a: Tensor,
    b: Tensor,
    f: Tensor,
    g: Tensor,
    inverse: Tensor,
    growth: Tensor | None = None,
    *,
    tolerance: float,
    most: int,
    growing: int = 0,
    accelerate: bool = True,
    small: bool | None = None,
) -> tuple[Tensor, Tensor]:
    """Sweeps from the potentials f (B, m), g (B, n), which become those of the last sweep's plan.

    Args:
        matrix: (B, m, n) contiguous, float32.
        a: (B, m). b: (B, n).
        f: (B, m) contiguous, overwritten. g: (B, n), the same.
        inverse: (B,) 1 / eps.
        growth: (B,) What is added to `inverse` before each of the first `growing` sweeps; None: nothing.
        tolerance: L1 error at which a pair stops; negative: every pair makes `most` sweeps.
        most: Maximum number of Sinkhorn iterations.
        growing: Sweeps whose kernel grows sharper while the scalings stay, and that have no momentum.
        accelerate: With momentum, once the kernel stays the same.
        small: Which kernels; None: by the size.

    Returns:
        error (B,) at the last sweep, and the number of sweeps (B,).
    """
    extra = -matrix.shape[-1] % _EVEN
    if extra:
        # Copies of the last column, of weight 0: they change nothing, and rows begin where wide loads may.
        even = _more(g, extra)
        wide = _more(matrix, extra), a, torch.nn.functional.pad(b, (0, extra)), f, even, inverse, growth
        found = run_sweeps(*wide, tolerance=tolerance, most=most, growing=growing, accelerate=accelerate, small=small)
        g.copy_(even[..., :-extra])
        return found
    batch, m, n = matrix.shape
    growth = torch.zeros_like(inverse) if growth is None else growth
    error = torch.full_like(inverse, torch.inf)
    sweeps = torch.zeros(batch, dtype=torch.int32, device=matrix.device)
    columns = triton.next_power_of_2(n)
    rows = min(max(1, _BLOCK // columns), triton.next_power_of_2(m))
    warps = 8 if rows * columns > 4096 else 4
    gain = float(accelerate)
    if m * n <= SMALL if small is None else small:
        solve_pairs[(batch,)](
            matrix, a, b, f, g, inverse, growth, error, sweeps, m, n, tolerance, most, growing, gain,
            ROWS=rows, COLUMNS=columns,
            # More loads on their way: it is alone on its processor. But no two warps may hold one entry: one would see
            # the f that the other has stored.
            num_warps=min(2 * warps, max(1, rows * columns // 32)),
        )  # fmt: skip
        return error, sweeps
    parts = min(_PARTS, triton.cdiv(m, rows))
    partial = matrix.new_empty(batch, parts, n)
    sums, origin, plain, steps = torch.empty_like(b), g.clone(), g.clone(), torch.zeros_like(inverse)
    done = torch.zeros_like(sweeps)
    current = inverse + growth if growing else inverse.clone()
    block = min(128, columns)
    # A tolerance that nothing reaches asks for `most` sweeps.
    work = _budget.plan((tuple(matrix.shape), matrix.device, tolerance, most), _CHUNK, most) if tolerance >= 0 else None
    for made in range(1, most + 1):
        sweep_rows[(batch, parts)](
            matrix, a, b, f, g, current, done, partial, m, n, ROWS=rows, COLUMNS=columns, num_warps=warps
        )
        add_columns[(batch, triton.cdiv(n, block))](done, partial, sums, n, parts, BLOCK=block, PARTS=16)
        move[(batch,)](
            b, g, origin, plain, sums, current, growth, done, steps, error, sweeps, n, tolerance, most,
            float(made < growing), gain * (made > growing),
            COLUMNS=columns, num_warps=warps,
        )  # fmt: skip
        if work is not None and made % _CHUNK == 0 and work.enough(made, done > 0):
            break
    if work is not None:
        work.learn(sweeps, done > 0)
    return error, sweeps


def _more(x: Tensor, extra: int) -> Tensor:
    return torch.cat([x, x[..., -1:].expand(*x.shape[:-1], extra)], -1)
