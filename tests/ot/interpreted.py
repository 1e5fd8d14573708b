"""Every way against the float64 reference on random shapes, with Triton's kernels in its interpreter.

Run by `test_kernels.py` in a process of its own, since the interpreter must be chosen before Triton is imported:
python -m tests.ot.interpreted COUNT. Prints one line a disagreement; exit code 1 if there is any.
"""

from __future__ import annotations

import os
import sys

os.environ["TRITON_INTERPRET"] = "1"

import random
from unittest import mock

import torch

from hf_reprot.ot import solve
from hf_reprot.ot.kernels.solver import ProximalBlock, sinkhorn_triton
from hf_reprot.ot.result import Limits
from hf_reprot.ot.solvers import padding as together
from hf_reprot.ot.solvers.proximal import proximal
from hf_reprot.ot.solvers.sinkhorn_device import sinkhorn_device
from hf_reprot.ot.solvers.sinkhorn_host import sinkhorn_host
from tests.ot.problems import cost_matrix, weights

_VALUE, _PLAN, _GRADIENT = 1e-4, 1e-4, 1e-3
_LIMITS = Limits(1e-5, 1000)


def _problem(draw: random.Random, seed: int):
    batch, m, n = draw.choice([1, 1, 2, 3]), draw.randint(1, 70), draw.randint(1, 140)
    if draw.random() < 0.5:
        m, n = n, m
    matrix = torch.stack([cost_matrix(m, n, samples=draw.choice([16, 200]), seed=seed + i) for i in range(batch)])
    if draw.random() < 0.5:
        a, b = weights(m, seed), weights(n, seed + 1)
    else:
        a, b = torch.full((m,), 1 / m).double(), torch.full((n,), 1 / n).double()
    epsilon = draw.choice([0.05, 0.2, 1.0]) * matrix.mean((-2, -1))
    start = 0.1 * torch.randn(batch, n, dtype=torch.float64) if draw.random() < 0.3 else None
    return matrix, a.expand(batch, m).contiguous(), b.expand(batch, n).contiguous(), epsilon, start


def _ways():
    yield "host", sinkhorn_host
    yield "device", sinkhorn_device
    yield "one program per pair", lambda *problem: sinkhorn_triton(*problem, small=True)
    yield "whole device", lambda *problem: sinkhorn_triton(*problem, small=False)


def _value(solution, a, b):
    return (solution.f * a).sum(-1) + (solution.g * b).sum(-1)


def sinkhorn_disagreements(count: int) -> list[str]:
    draw, found = random.Random(0), []
    for seed in range(count):
        matrix, a, b, epsilon, start = _problem(draw, seed)
        reference = sinkhorn_host(matrix, a, b, epsilon, Limits(1e-10, 20_000))
        value = _value(reference, a, b)
        scale = value.abs().clamp_min(1e-2 * matrix.mean((-2, -1)))
        problem = [x if x is None else x.float() for x in (matrix, a, b, epsilon)]
        for name, way in _ways():
            solution = way(*problem, _LIMITS, None if start is None else start.float())
            off = (
                ((_value(solution, a, b) - value) / scale).abs().max().item(),
                (solution.plan - reference.plan).abs().amax().item() / reference.plan.max().item(),
                ((solution.plan - reference.plan).norm() / reference.plan.norm()).item(),
            )
            good = off[0] <= _VALUE and off[1] <= _PLAN and off[2] <= _GRADIENT
            if not (good and solution.converged.all()):
                found.append(
                    f"sinkhorn, {name}, seed {seed}, {tuple(matrix.shape)}: value, plan, gradient off by {off}"
                )
    return found


def padded_disagreements(count: int) -> list[str]:
    """Two pairs of different shapes in one call, against a call for each."""
    draw, found = random.Random(2), []
    for seed in range(count):
        matrices = [
            cost_matrix(draw.randint(1, 70), draw.randint(1, 140), samples=64, seed=2 * seed + i).float()
            for i in range(2)
        ]
        stacked, none = together.stack_padded(matrices), [None, None]
        a = together.stack_weights(none, [len(M) for M in matrices], stacked)
        b = together.stack_weights(none, [M.shape[1] for M in matrices], stacked)
        settings = {"tolerance": 1e-4, "relative_epsilon": 0.05, "backend": "triton"}
        for small in (1 << 18, 0):
            with mock.patch("hf_reprot.ot.kernels.solver.SMALL", small):
                whole = solve(stacked, a, b, **settings)
                apart = [solve(M, **settings) for M in matrices]
            for i, (M, alone) in enumerate(zip(matrices, apart, strict=True)):
                ours = together.without_padding(whole, i, *M.shape)
                off = ((ours.plan - alone.plan).abs().max() / alone.plan.max()).item()
                if off > _PLAN or abs(ours.value - alone.value) > _VALUE * alone.value.abs().clamp_min(1e-2):
                    found.append(f"padded, one program up to {small}, seed {seed}, {tuple(M.shape)}: plan off by {off}")
    return found


def _loops():
    """The CPU's loop, and the accelerator's with all pairs together."""
    for name, on_host in (("host", True), ("device", False)):
        yield name, _patched("hf_reprot.ot.solvers.proximal.on_host", lambda tensor, on_host=on_host: on_host)


def _kernels(whole_device: bool):
    for name, small in (("one program per pair", 1 << 18), ("whole device", 0))[: 1 + whole_device]:
        yield name, _patched("hf_reprot.ot.kernels.solver.SMALL", small, kernels=ProximalBlock)


def _patched(target: str, value, **settings):
    def way(*call):
        with mock.patch(target, value):
            return proximal(*call, **settings)

    return way


def proximal_disagreements(count: int) -> list[str]:
    """In float32, all take the reference's steps: 32, and in every 10th problem 160 (the interpreter is slow)."""
    draw, found = random.Random(3), []
    for seed in range(count):
        matrix, a, b, _, start = _problem(draw, seed)
        problem = matrix, a, b, 0.2 * matrix.mean((-2, -1)).clamp_min(1e-3)
        limits = Limits(2e-3, 32 if seed % 10 else 160)
        reference = proximal(*problem, limits, start)
        cost = (reference.plan * matrix).sum((-2, -1))
        scale = cost.abs().maximum(1e-2 * matrix.mean((-2, -1)))
        for name, way in (*_loops(), *_kernels(whole_device=seed % 5 == 0)):
            solution = way(*(x.float() for x in problem), limits, None if start is None else start.float())
            off = (
                (((solution.plan * matrix).sum((-2, -1)) - cost) / scale).abs().max().item(),
                (solution.plan - reference.plan).abs().amax().item() / reference.plan.max().item(),
                ((solution.plan - reference.plan).norm() / reference.plan.norm()).item(),
            )
            if not (off[0] <= _VALUE and off[1] <= _PLAN and off[2] <= _GRADIENT):
                found.append(f"proximal, {name}, seed {seed}, {tuple(matrix.shape)}: cost, plan, gradient off by {off}")
    return found


if __name__ == "__main__":
    number = int(sys.argv[1])
    lines = sinkhorn_disagreements(number) + proximal_disagreements(number)
    lines += padded_disagreements(max(1, number // 10))
    print("\n".join(lines))
    sys.exit(bool(lines))
