"""Sinkhorn on a CPU: pair by pair, or many small pairs together, of which each leaves when it is done."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from ..result import Limits, Solution, ValuedSolution
from .kernel import dual_value, inner, mean_cost, starting_potentials, without_traces
from .one_pair import FIRST, LARGE, is_easy, sinkhorn_one
from .sweeps import Sweeps, sinkhorn_log

# So many pairs of at most so many entries share their sweeps: the launches then cost more than the work does.
_MANY, _SMALL = 6, 1 << 14


def sinkhorn_host(
    matrix: Tensor,
    a: Tensor,
    b: Tensor,
    epsilon: Tensor | None,
    limits: Limits,
    g: Tensor | None = None,
    *,
    relative: float = 1.0,
) -> Solution:
    """Solves a batch (B, m, n); each pair as if it were alone.

    Where kernel-domain sweeps (see `Sweeps`) overflow, a pair is solved again from a cold start and without momentum;
    where that overflows too, in the log domain.

    Args:
        matrix: (B, m, n) contiguous, float32 or float64.
        a: (B, m). b: (B, n).
        epsilon: (B,); None: `relative` times the mean cost.
        limits: When to stop.
        g: (B, n) Potential to start from, in units of the cost.
        relative: See `epsilon`.
    """
    if not many_small(matrix):
        return sinkhorn_pairs(matrix, a, b, epsilon, limits, g, relative=relative)
    epsilon = relative * mean_cost(matrix, a, b) if epsilon is None else epsilon
    f, start = _start(matrix, a, b, epsilon, g)
    iterations = torch.zeros(len(matrix), dtype=torch.long)
    converged = torch.zeros(len(matrix), dtype=torch.bool)
    found = Solution(torch.empty_like(matrix), f, start, torch.empty_like(epsilon), iterations, converged)
    failed = _together(found, matrix, a, b, epsilon, limits)
    found.converged = found.error <= limits.tolerance
    if failed:
        _try_again(found, torch.tensor(failed), matrix, a, b, epsilon, limits, g)
    return found


def sinkhorn_pairs(
    matrix: Tensor,
    a: Tensor,
    b: Tensor,
    epsilon: Tensor | None,
    limits: Limits,
    g: Tensor | None = None,
    *,
    relative: float = 1.0,
) -> ValuedSolution:
    """`sinkhorn_host` pair by pair, with what the solutions are worth."""
    found, strength, failed = _one_by_one(matrix, a, b, epsilon, limits, g, relative)
    if failed:
        pairs = torch.tensor(failed)
        _try_again(found, pairs, matrix, a, b, strength if epsilon is None else epsilon, limits, g)
        found.cost[pairs] = inner(found.plan[pairs], matrix[pairs])
        found.value[pairs] = dual_value(found.f[pairs], found.g[pairs], a[pairs], b[pairs])
    return found


def _start(matrix: Tensor, a: Tensor, b: Tensor, epsilon: Tensor, g: Tensor | None) -> tuple[Tensor, Tensor]:
    """Potentials f (B, m), g (B, n) to start from, in memory of their own: where each pair alone would."""
    if g is not None:
        f, g = starting_potentials(matrix, g)
        return f.clone(), g.clone()
    plain = is_easy(matrix.abs().amax((-2, -1)), math.log2(math.e) / epsilon)
    if bool(plain.all()):
        return torch.zeros_like(a), torch.zeros_like(b)
    f, g = starting_potentials(matrix, None)
    return f.masked_fill(plain[:, None], 0), g.masked_fill(plain[:, None], 0)


def many_small(matrix: Tensor) -> bool:
    """Whether the pairs of a batch (B, m, n) share their sweeps."""
    return len(matrix) >= _MANY and matrix[0].numel() <= _SMALL


def _one_by_one(
    matrix: Tensor, a: Tensor, b: Tensor, epsilon: Tensor | None, limits: Limits, g: Tensor | None, relative: float
) -> tuple[ValuedSolution, Tensor, list[int]]:
    """The solution, its epsilon (B,), and those pairs whose scalings overflowed."""
    plan, f = torch.empty_like(matrix), torch.empty_like(a)
    given = [None] * len(matrix) if epsilon is None else epsilon.tolist()
    if g is None:
        g, warm = torch.empty_like(b), [False] * len(matrix)
    else:
        g, warm = g.clone(), torch.isfinite(g).all(-1).tolist()
    sides = (x.numpy() for x in (a, b, f, g))
    solved = [
        sinkhorn_one(M, row, column, out, f_one, g_one, limits, epsilon=size, relative=relative, warm=hot)
        for M, out, size, hot, row, column, f_one, g_one in zip(matrix, plan, given, warm, *sides, strict=True)
    ]
    errors, iterations, *numbers = zip(*solved, strict=True)
    error, strength, cost, value = torch.tensor([errors, *numbers], dtype=matrix.dtype).unbind()
    converged = torch.tensor([e <= limits.tolerance for e in errors])
    failed = [pair for pair, e in enumerate(errors) if not math.isfinite(e)]
    made = torch.tensor(iterations)
    return ValuedSolution(plan, f, g, error, made, converged, cost, value, strength), strength, failed


def _together(found: Solution, matrix: Tensor, a: Tensor, b: Tensor, epsilon: Tensor, limits: Limits) -> list[int]:
    """As `_one_by_one`, in sweeps of all pairs."""
    sweeps = Sweeps(matrix, a, b, epsilon, found.f, found.g, found.plan, limits.accelerate)
    pairs = list(range(len(matrix)))  # of the whole batch, that `sweeps` still holds
    open_pairs, failed, made = set(pairs), [], 0
    while open_pairs:
        sweeps.sweep()
        made += 1
        last = made >= limits.max_iterations
        if made <= FIRST or made % 2 == 0 or last:
            errors = sweeps.error().tolist()
            arrived = []
            for place, (pair, error) in enumerate(zip(pairs, errors, strict=True)):
                if pair in open_pairs and (error <= limits.tolerance or last or not math.isfinite(error)):
                    found.error[pair], found.iterations[pair] = error, made
                    open_pairs.remove(pair)
                    arrived.append(place)
                    if not math.isfinite(error):
                        failed.append(pair)
            # Pairs that are done ride along unchanged, until half of the work would be theirs.
            if arrived and (2 * len(open_pairs) <= len(pairs) or failed):
                sweeps, pairs = _leave(sweeps, pairs, open_pairs, found)
            elif arrived:
                sweeps.done = torch.tensor([[pair not in open_pairs] for pair in pairs])
            if not open_pairs:
                break
            sweeps.advance()
            if _extreme(sweeps.rows) or _extreme(sweeps.v):
                sweeps.absorb()
        else:
            sweeps.advance()
    return failed


def _leave(sweeps: Sweeps, pairs: list[int], stay: set[int], found: Solution) -> tuple[Sweeps, list[int]]:
    """Writes down the pairs that do not stay; returns the sweeps of those that do, in memory of their own."""
    staying = [place for place, pair in enumerate(pairs) if pair in stay]
    leaving = [place for place, pair in enumerate(pairs) if pair not in stay]
    rest = sweeps.select(torch.tensor(staying)) if staying else sweeps
    f, g = sweeps.potentials()
    plan = sweeps.plan()
    own_memory = plan.data_ptr() != found.plan.data_ptr()
    for place in leaving:
        found.f[pairs[place]], found.g[pairs[place]] = f[place], g[place]
        if own_memory:
            found.plan[pairs[place]] = plan[place]
    return rest, [pairs[place] for place in staying]


def _try_again(
    found: Solution,
    failed: Tensor,
    matrix: Tensor,
    a: Tensor,
    b: Tensor,
    epsilon: Tensor,
    limits: Limits,
    g: Tensor | None,
) -> None:
    """Solves pairs whose scalings overflowed in a safer way, and writes them into the solution."""
    problem = matrix[failed], a[failed], b[failed], epsilon[failed]
    if limits.accelerate or g is not None:
        again = sinkhorn_host(*problem, replace(limits, accelerate=False))
    else:
        again = sinkhorn_log(*problem, limits)
    again.plan = without_traces(again.plan, a[failed])
    for name in ("plan", "f", "g", "error", "iterations", "converged"):
        getattr(found, name)[failed] = getattr(again, name)


def _extreme(scaling: Tensor) -> bool:
    low, high = torch.aminmax(scaling)
    return not (float(low) > 1 / LARGE and float(high) < LARGE)
