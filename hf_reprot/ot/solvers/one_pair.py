"""Sinkhorn for one pair on a CPU: the sweeps of `sweeps.py`, with as little around them as there can be."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ..result import Limits
from .kernel import fill_one, scale_to_plan
from .sweeps import INERTIA

# Scalings beyond these are taken up into the potentials, and the kernel is written anew.
LARGE = 1e12
# The error is looked at after each of the first sweeps, later after every second one: scalings cannot leave the range
# of float32 in between.
FIRST = 8
# Entries up to which numpy's products stay in the thread that asks. Beyond, torch's share the work out.
_ONE_THREAD = 1 << 18


def sinkhorn_one(
    matrix: Tensor, a: Tensor, b: Tensor, epsilon: float, f: Tensor, g: Tensor, out: Tensor, limits: Limits
) -> tuple[float, int]:
    """Solves one pair (m, n); f, g and the plan (in `out`) are written into the memory that is given.

    Between 256 neurons a side, a product with the kernel takes 3 microseconds, and torch 1 to 2 for an operation on a
    vector, of which a sweep has fifteen; numpy takes 0.3, on the same memory.

    Args:
        matrix: (m, n) contiguous, float32 or float64.
        a: (m,). b: (n,).
        epsilon: In units of the cost.
        f: (m,) Potential to start from. g: (n,). In the end those of the plan.
        out: (m, n) Memory for the kernel, in the end the plan.
        limits: When to stop.

    Returns:
        L1 error of the columns, and the number of sweeps. Where scalings overflowed, the error is not finite, and f, g
        and `out` mean nothing.
    """
    fill_one(out, matrix, f, g, 1 / epsilon)
    weights_a, weights_b = a.numpy(), b.numpy()
    (m, n), kind = matrix.shape, weights_a.dtype
    scalings = np.ones(m + n, kind)  # of rows and columns side by side: one look at the range of both
    rows, v = scalings[:m], scalings[m:]
    left = np.empty(m, kind)
    right, columns, residual, step, landed = (np.empty(n, kind) for _ in range(5))
    before = np.ones(n, kind)  # where the last step led, without momentum
    to_rows, to_columns = _product(out, right, rows), _product(out.t(), left, columns)
    momentum, steps, made = limits.accelerate, 0, 0
    far = 1.001 * limits.tolerance**2  # beyond what rounding can hide
    with np.errstate(all="ignore"):  # what overflows shows in the error
        while True:
            np.multiply(weights_b, v, right)
            to_rows()
            np.divide(weights_a, rows, left)
            to_columns()
            np.multiply(right, columns, residual)
            np.subtract(residual, weights_b, residual)
            made += 1
            last = made >= limits.max_iterations
            look = made <= FIRST or made % 2 == 0 or last
            # The L1 norm is at least the L2 norm, whose square costs a third.
            if look and (last or not far < np.dot(residual, residual) < math.inf):
                error = float(np.add.reduce(np.absolute(residual, step)))
                if error <= limits.tolerance or last or not math.isfinite(error):
                    break
            np.reciprocal(columns, landed)
            if momentum:
                np.log(np.divide(landed, before, step), step)
                if np.dot(residual, step) > 0:
                    steps = 0
                weight = steps / (steps + INERTIA)
                np.multiply(landed, np.exp(np.multiply(step, weight, step), step), v)
                landed, before = before, landed
                steps += 1
            else:
                v[:] = landed
            if look and not (np.minimum.reduce(scalings) > 1 / LARGE and np.maximum.reduce(scalings) < LARGE):
                moved_f, moved_g = f - epsilon * _log(rows), g + epsilon * _log(v)
                if bool(torch.isfinite(moved_f).all()) and bool(torch.isfinite(moved_g).all()):
                    f.copy_(moved_f), g.copy_(moved_g)
                    before /= v
                else:  # back to the potentials of the last time, and on without momentum
                    momentum = False
                v.fill(1)
                fill_one(out, matrix, f, g, 1 / epsilon)
    if math.isfinite(error):
        f.sub_(_log(rows), alpha=epsilon)
        g.add_(_log(v), alpha=epsilon)
        scale_to_plan(out[None], torch.from_numpy(left)[None], torch.from_numpy(right)[None])
    return error, made


def _product(matrix: Tensor, vector: np.ndarray, out: np.ndarray) -> Callable[[], object]:
    """What writes `matrix @ vector` over `out`."""
    if matrix.numel() <= _ONE_THREAD:
        return partial(np.dot, matrix.numpy(), vector, out)
    return partial(torch.mv, matrix, torch.from_numpy(vector), out=torch.from_numpy(out))


def _log(scaling: np.ndarray) -> Tensor:
    return torch.from_numpy(np.log(scaling))
