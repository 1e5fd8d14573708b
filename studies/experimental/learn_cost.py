"""Learn a ground cost from matches, and transfer under it: `python -m studies.experimental.learn_cost [SEEDS]`."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from rich.console import Console
from sklearn.datasets import load_digits
from torch import Tensor

from hf_reprot.commands.demo import JOBS, run_demo, spread
from hf_reprot.experimental.inverse.costs import fix_gauge
from hf_reprot.experimental.inverse.fit import InverseTransport
from hf_reprot.experimental.inverse.loss import inverse_transport_loss
from hf_reprot.ot import solve

LEARNED = {"ot_weight": 2.0, "ot_cost": "learned"}


def adam(loss: Callable[[Tensor], Tensor], shape: torch.Size, steps: int = 300) -> Tensor:
    """What the last two ways of solving are given alike."""
    A = torch.nn.Parameter(torch.zeros(shape, dtype=torch.float64))
    optimizer = torch.optim.Adam([A], lr=0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(A).backward()
        optimizer.step()
    return A.detach()


def bilevel(A: Tensor, x: Tensor, y: Tensor, plan: Tensor) -> Tensor:
    """The baseline: KL(plan | P_A) with 50 Sinkhorn sweeps in the graph."""
    log_a, log_b, score = plan.sum(1).log(), plan.sum(0).log(), x @ A @ y.T
    g = torch.zeros_like(log_b)
    for _ in range(50):
        f = -torch.logsumexp(score + g + log_b, 1)
        g = -torch.logsumexp(score + (f + log_a)[:, None], 0)
    return -(plan * (score + (f + log_a)[:, None] + g + log_b)).sum()


def recover(seed: int, exact: bool) -> str:
    """A bilinear cost between 256 and 256 points of width 8, from the plan itself or from 20,000 matches drawn."""
    generator = torch.Generator().manual_seed(seed)
    x, y, A = (torch.randn(s, 8, generator=generator, dtype=torch.float64) for s in (256, 256, 8))
    A /= 8**0.5
    plan = solve(-x @ A @ y.T, epsilon=1.0, tolerance=1e-10, max_iterations=20_000).plan
    if not exact:
        drawn = torch.multinomial(plan.flatten(), 20_000, replacement=True, generator=generator)
        plan = torch.bincount(drawn, minlength=plan.numel()).double().view_as(plan) / len(drawn)
    ways = {
        "fit (L-BFGS)": lambda: InverseTransport().fit(x, y, plan).ground.A.detach(),
        "same loss, Adam": lambda: adam(lambda B: inverse_transport_loss(-x @ B @ y.T, plan), A.shape),
        "bi-level, Adam": lambda: adam(lambda B: bilevel(B, x, y, plan), A.shape),
    }
    found = ""
    for name, way in ways.items():
        began, error = time.perf_counter(), (way() - A).norm() / A.norm()
        found += f"\n    {name}: error {error:.3g}, {time.perf_counter() - began:.2f} s"
    return found


def halves(seed: int) -> dict[str, float]:
    """Which lower half of a digit belongs to which upper half? 900 pairs to learn from, 512 held out."""
    images = torch.tensor(load_digits().images) / 16
    images = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))]
    upper, lower = images[:, :4].flatten(1), images[:, 4:].flatten(1)
    upper, lower = upper - upper[:900].mean(0), lower - lower[:900].mean(0)
    known, x, y = (upper[:900], lower[:900]), upper[900:1412], lower[900:1412]
    ridge = torch.linalg.solve(known[0].T @ known[0] + 10 * torch.eye(32), known[0].T @ known[1])
    learned = InverseTransport(regularisation=1e-3).fit(*known)(x, y).detach()
    plans = {"plain L2": solve(torch.cdist(x, y).square(), relative_epsilon=0.05).plan}
    plans["L2 after ridge regression"] = solve(torch.cdist(x @ ridge, y).square(), relative_epsilon=0.05).plan
    plans["learned"] = solve(learned, epsilon=1.0).plan
    return {name: (plan.argmax(1) == torch.arange(512)).double().mean().item() for name, plan in plans.items()}


def main() -> None:
    seeds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    InverseTransport().fit(torch.rand(9, 2), torch.rand(9, 2), torch.rand(9, 9))  # the first call loads libraries
    print(f"exact plan: {recover(0, exact=True)}\n20,000 matches: {recover(0, exact=False)}", flush=True)
    cost = torch.rand(50, 40, dtype=torch.float64)
    free = InverseTransport("free", epsilon=0.1).fit(None, None, solve(cost, epsilon=0.1, tolerance=1e-12).plan)()
    print(f"free cost: largest error {(free - fix_gauge(cost)).abs().max():.1g}")
    recalls = [halves(seed) for seed in range(seeds)]
    for name in recalls[0]:
        print(f"held-out halves found, {name}:", ", ".join(f"{recall[name]:.1%}" for recall in recalls))
    # Under a very strong penalty the learned cost is the correlation: a frozen plan without anything learned.
    learned = {"learned cost": LEARNED, "frozen correlations": LEARNED | {"cost_regularisation": 1000.0}}
    jobs = {name: dataclasses.replace(job, methods={**job.methods, **learned}) for name, job in JOBS.items()}
    result = run_demo("demo/learn_cost", seeds=seeds, jobs=jobs)
    for table in result.tables():
        Console().print(table)
    for (job, name), found in result.accuracies.items():
        gain = np.subtract(result.accuracies[job, "learned cost"], found)
        print(f"learned against {name}, {jobs[job].title}: {spread(gain, sign=True)}, ahead in {sum(gain > 0)}")


if __name__ == "__main__":
    main()
