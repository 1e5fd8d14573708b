"""Our solver beside the other packages' on the device; arguments and terms as in `benchmarks.solvers`."""

from __future__ import annotations

from argparse import Namespace

import torch

from hf_reprot.ot import solve

from ..solver_peers import missing_peers
from ..solver_problems import Problem, synthetic_pairs
from ..solvers import measure_solvers
from .results import Results
from .sizes import Sizes
from .time_box import Box


def measure(results: Results, sizes: Sizes, box: Box) -> None:
    """Forward and backward on the solver's problems, one table each."""
    missing = missing_peers(sizes.device)
    if missing:
        results.note("solver", f"Not installed here, and left out: {', '.join(missing)}.")
    for epsilon in sizes.epsilons:
        for shape in sizes.shapes:
            if box.left < 3 * sizes.seconds:
                results.note("solver", f"No time was left for {shape} at relative epsilon {epsilon}.")
                continue
            _one(results, sizes, shape, epsilon)


def _one(results: Results, sizes: Sizes, shape: str, epsilon: float) -> None:
    pairs = [(s.to(sizes.device), t.to(sizes.device)) for s, t in synthetic_pairs(shape, sizes.samples)]
    problem = Problem(shape, pairs, epsilon, 1e-3, sizes.seconds)
    options = Namespace(
        device=sizes.device, ablation=False, activations=True, repeats=sizes.turns, seconds=sizes.seconds,
        clock="wall", cold=False,
    )  # fmt: skip
    rows = measure_solvers(problem, options)
    sweeps = solve(problem.costs, epsilon=problem.epsilon, tolerance=1e-3).iterations
    ours = rows[0].seconds
    for row in rows:
        results.row(
            "solver",
            f"{shape}, relative epsilon {epsilon}, {int(sweeps.min())} to {int(sweeps.max())} of our sweeps",
            **{
                "solver": row.solver,
                "ms": None if row.seconds is None else 1e3 * row.seconds,
                "times ours": None if row.seconds is None or ours is None else row.seconds / ours,
                "L1 error": row.error,
                "extra memory / costs": row.memory,
            },
        )
    if sizes.device == "cuda":
        torch.cuda.empty_cache()
