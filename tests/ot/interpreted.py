"""Every way against the float64 reference on random shapes, with Triton's kernels in its interpreter.

Run by `test_kernels.py` in a process of its own, since the interpreter must be chosen before Triton is imported:
python -m tests.ot.interpreted COUNT. Prints one line a disagreement; exit code 1 if there is any.
"""

from __future__ import annotations

import os
import sys

os.environ["TRITON_INTERPRET"] = "1"

import random

import torch

from hf_reprot.ot import solve
from hf_reprot.ot.kernels.solver import ProximalBlock, sinkhorn_triton
from hf_reprot.ot.proximal import proximal
from hf_reprot.ot.sinkhorn_device import sinkhorn_device
from hf_reprot.ot.sinkhorn_host import sinkhorn_host
from hf_reprot.ot.solution import Limits
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
    yield "one program a pair", lambda *problem: sinkhorn_triton(*problem, small=True)
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


def proximal_disagreements(count: int) -> list[str]:
    draw, found = random.Random(1), []
    for seed in range(count):
        matrix, a, b, _, _ = _problem(draw, seed)
        matrix, a, b = matrix[:1], a[:1], b[:1]
        exact = solve(matrix, a, b, method="exact").cost.item()
        beta = 0.2 * matrix.mean((-2, -1)).clamp_min(1e-3)
        problem = [x.float() for x in (matrix, a, b, beta)]
        solution = proximal(*problem, Limits(2e-3, 160), kernels=ProximalBlock)
        cost = (solution.plan * matrix).sum().item()
        if not solution.error < 1e-2 or abs(cost - exact) > 1e-2 * max(exact, 1e-1):
            found.append(f"proximal, seed {seed}, {tuple(matrix.shape)}: {cost} for {exact}, {solution.error}")
    return found


if __name__ == "__main__":
    number = int(sys.argv[1])
    lines = sinkhorn_disagreements(number) + proximal_disagreements(max(1, number // 10))
    print("\n".join(lines))
    sys.exit(bool(lines))
