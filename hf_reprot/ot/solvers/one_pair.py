"""Sinkhorn for one pair on a CPU: the sweeps of `sweeps.py`, with as little around them as there can be."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..result import Limits
from .kernel import BLOCK, exponents_to_kernel, inner_one, mean_cost, trace
from .sweeps import INERTIA
from .units import plain, power_of_two

# Scalings beyond these are taken up into the potentials, and the kernel is written anew.
LARGE = 1e12
# Powers of two up to which a kernel is taken of the costs as they are, without potentials to start from.
_EASY = 60
# Entries up to which a pair is one block.
_WHOLE = 2 * BLOCK
# The error is looked at after each of the first sweeps, later after every second one: scalings cannot leave the range
# of float32 in between.
FIRST = 8


class OneSolved(NamedTuple):
    """What the solution of one pair is worth: L1 error of the columns, sweeps, epsilon, <P, M>, and f.a + g.b."""

    error: float
    iterations: int
    epsilon: float
    cost: float
    value: float


def sinkhorn_one(
    matrix: Tensor,
    a: np.ndarray,
    b: np.ndarray,
    out: Tensor,
    f: np.ndarray,
    g: np.ndarray,
    limits: Limits,
    *,
    epsilon: float | None = None,
    relative: float = 1.0,
    warm: bool = False,
) -> OneSolved:
    """Solves one pair (m, n); f, g and the plan (in `out`) are written into the memory that is given.

    Between 256 neurons a side, a pass over the costs takes 5 to 30 microseconds, and an operation of torch's on a
    vector 1 to 2, of which a sweep has fifteen; numpy takes 0.3, on the same memory. Wider pairs are gone through in
    blocks of rows, with all that is to be done with a block while the cache holds it.

    Args:
        matrix: (m, n) contiguous, float32 or float64.
        a: (m,) of the same dtype. b: (n,).
        out: (m, n) Memory for the kernel, in the end the plan.
        f: (m,) Memory for the potentials of the plan. g: (n,), with `warm` the potential to start from.
        limits: When to stop.
        epsilon: In units of the cost; None: `relative` times the mean cost.
        relative: Epsilon in units of the mean cost.
        warm: Whether to start from `g`, which must be finite.

    Returns:
        Where scalings overflowed, the error is not finite, and f, g and `out` mean nothing.
    """
    return _Pair(matrix, a, b, out, f, g, limits).solve(epsilon, relative, warm)


def is_easy(largest: Tensor | float, scale: Tensor | float) -> Any:
    """Whether the kernel 2^(-scale M) needs no potentials: no entry of costs up to `largest` is so small that a row or
    a column could vanish."""
    return largest * scale <= _EASY


class _Pair:
    def __init__(self, matrix: Tensor, a: np.ndarray, b: np.ndarray, out: Tensor, f: np.ndarray, g: np.ndarray, limits):
        self.a, self.b, self.out, self.f, self.g, self.limits = a, b, out, f, g, limits
        (m, n), kind = matrix.shape, a.dtype
        self.scalings = np.ones(m + n, kind)  # of rows and columns side by side: one look at the range of both
        self.rows, self.v = self.scalings[:m], self.scalings[m:]
        self.left, self.right, self.columns = np.empty(m, kind), np.empty(n, kind), np.empty(n, kind)
        self._take(matrix)
        self.part = np.empty(n, kind) if len(self.blocks) > 1 else self.columns

    def _take(self, matrix: Tensor) -> None:
        self.matrix = matrix
        (m, n), out = matrix.shape, self.out
        height = m if m * n <= _WHOLE else max(1, BLOCK // n)
        starts = range(0, m, height) if height < m else ()
        # Of each block of rows: where it lies, its costs, its part of `out`, and that as numpy sees it.
        self.blocks = [(slice(0, m), matrix, out, out.numpy())] if not starts else []
        for k in starts:
            rows = slice(k, k + height)
            self.blocks.append((rows, matrix[rows], out[rows], out[rows].numpy()))

    def solve(self, epsilon: float | None, relative: float, warm: bool) -> OneSolved:
        with np.errstate(all="ignore"):  # what overflows shows in the error
            return self._solve(epsilon, relative, warm, self._in_other_units)

    def _solve(self, given: float | None, relative: float, warm: bool, otherwise: Callable | None) -> OneSolved:
        mean, low, high = self._range(given is None)
        epsilon = relative * mean if given is None else given
        if otherwise is not None and not plain(self.out.dtype, epsilon):
            return otherwise(given, relative, warm)
        epsilon = max(epsilon, float(np.finfo(self.a.dtype).tiny))
        self.scale = math.log2(math.e) / epsilon
        depth = max(-low, high)
        easy = not warm and is_easy(depth, self.scale)
        if easy:
            self.f.fill(0)
            self.g.fill(0)
        elif warm:
            self._start_warm()
        else:
            self._start_cold()
        error, made = self._iterate(epsilon, self._write_easy if easy else self._write_started)
        if not math.isfinite(error):
            return OneSolved(error, made, epsilon, math.nan, math.nan)
        self.f -= epsilon * np.log(self.rows)
        self.g += epsilon * np.log(self.v)
        value = _dual_value(self.f, self.a) + _dual_value(self.g, self.b)
        return OneSolved(error, made, epsilon, self._plan(2.0 ** -(depth * self.scale) if easy else 0.0), value)

    def _in_other_units(self, epsilon: float | None, relative: float, warm: bool) -> OneSolved:
        """For costs at the ends of the dtype's range."""
        unit = power_of_two(self.matrix[None]).item()
        self._take(self.matrix / unit)
        self.g /= unit
        found = self._solve(None if epsilon is None else epsilon / unit, relative, warm, None)
        self.f *= unit
        self.g *= unit
        return found._replace(epsilon=found.epsilon * unit, cost=found.cost * unit, value=found.value * unit)

    def _range(self, weigh: bool) -> tuple[float, float, float]:
        """The mean cost a'|M|b, if asked to `weigh`, the least cost, and the largest."""
        mean, lows, highs = 0.0, [], []
        for rows, costs, _, _ in self.blocks:
            if weigh:
                mean += float(np.dot(self.a[rows], np.dot(costs.numpy(), self.b)))
            lows.append(costs.amin().item())
            highs.append(costs.amax().item())
        low, high = min(lows), max(highs)
        if weigh and not (math.isfinite(mean) and low >= 0):
            mean = mean_cost(self.matrix[None], *(torch.from_numpy(w)[None] for w in (self.a, self.b))).item()
        return mean, low, high

    def _start_cold(self) -> None:
        """Writes f - M into `out`, where f makes one entry of each row 0, and g so that f + g - M has a 0 in each
        column, too: no entry is above."""
        highest = []
        for rows, costs, out, _ in self.blocks:
            least = costs.amin(1)
            highest.append(torch.sub(least[:, None], costs, out=out).amax(0))
            self.f[rows] = least.numpy()
        np.negative(functools.reduce(torch.maximum, highest).numpy(), self.g)
        self.shift = torch.from_numpy(self.g * self.a.dtype.type(self.scale))

    def _start_warm(self) -> None:
        """The same for the g that is given."""
        for rows, costs, out, _ in self.blocks:
            most = torch.sub(torch.from_numpy(self.g), costs, out=out).amax(1)
            out.sub_(most[:, None])
            np.negative(most.numpy(), self.f[rows])
        self.shift = torch.zeros_like(self.out[0])

    def _write_easy(self, rows: slice, costs: Tensor, out: Tensor) -> None:
        torch.mul(costs, -self.scale, out=out).exp2_()

    def _write_started(self, rows: slice, costs: Tensor, out: Tensor) -> None:
        exponents_to_kernel(torch.add(self.shift, out, alpha=self.scale, out=out))

    def _write_anew(self, rows: slice, costs: Tensor, out: Tensor) -> None:
        f, g = torch.from_numpy(self.f[rows])[:, None], torch.from_numpy(self.g)
        exponents_to_kernel(torch.sub(f, costs, out=out).add_(g).mul_(self.scale))

    def _sweep(self, write: Callable[[slice, Tensor, Tensor], None] | None) -> None:
        """Takes the rows' scalings that fit `v`, and what the columns then sum up to, with a kernel that it writes."""
        np.multiply(self.b, self.v, self.right)
        for k, (rows, costs, out, kernel) in enumerate(self.blocks):
            if write is not None:
                write(rows, costs, out)
            sums, left = self.rows[rows], self.left[rows]
            np.dot(kernel, self.right, sums)
            np.divide(self.a[rows], sums, left)
            if k == 0:
                np.dot(left, kernel, self.columns)
            else:
                np.add(self.columns, np.dot(left, kernel, self.part), self.columns)

    def _iterate(self, epsilon: float, write: Callable[[slice, Tensor, Tensor], None] | None) -> tuple[float, int]:
        """Sweeps until the limits are reached, the first with a kernel to `write`: the error, and how many."""
        b, v, columns, limits = self.b, self.v, self.columns, self.limits
        residual, step, landed = (np.empty_like(b) for _ in range(3))
        before = np.ones_like(b)  # where the last step led, without momentum
        momentum, steps, made = limits.accelerate, 0, 0
        far = 1.001 * limits.tolerance**2  # beyond what rounding can hide
        while True:
            self._sweep(write)
            write = None
            np.multiply(self.right, columns, residual)
            np.subtract(residual, b, residual)
            made += 1
            last = made >= limits.max_iterations
            look = made <= FIRST or made % 2 == 0 or last
            # The L1 norm is at least the L2 norm, whose square costs a third.
            if look and (last or not far < np.dot(residual, residual) < math.inf):
                error = float(np.add.reduce(np.absolute(residual, step)))
                if error <= limits.tolerance or last or not math.isfinite(error):
                    return error, made
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
            if look and not (np.minimum.reduce(self.scalings) > 1 / LARGE and np.maximum.reduce(self.scalings) < LARGE):
                moved_f, moved_g = self.f - epsilon * np.log(self.rows), self.g + epsilon * np.log(v)
                if np.isfinite(moved_f).all() and np.isfinite(moved_g).all():
                    self.f[:], self.g[:] = moved_f, moved_g
                    before /= v
                else:  # back to the potentials of the last time, and on without momentum
                    momentum = False
                v.fill(1)
                write = self._write_anew

    def _plan(self, floor: float) -> float:
        """Makes the plan of the kernel, of whose entries none is below `floor`; <P, M>."""
        left, right, cost = torch.from_numpy(self.left)[:, None], torch.from_numpy(self.right), 0.0
        least = trace(self.out.dtype, self.a)
        whole = floor * float(np.minimum.reduce(self.left)) * float(np.minimum.reduce(self.right)) > least
        for rows, costs, out, _ in self.blocks:
            out.mul_(left[rows]).mul_(right)
            if not whole:
                torch.threshold_(out, least, 0.0)
            cost += inner_one(out, costs)
        return cost


def _dual_value(potential: np.ndarray, weights: np.ndarray) -> float:
    """f.a in float64, without what potentials of weight 0 are worth (they may be infinite)."""
    products = potential.astype(np.float64) * weights
    return float(np.add.reduce(products if math.isfinite(np.add.reduce(products)) else products[weights > 0]))
