"""How the cost of a solution grows with the neurons, the samples and the pairs."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from .solver_peers import solvers, with_activations
from .solver_problems import Problem, Run, synthetic_pairs

WHO = ("hf_reprot", "POT sinkhorn", "POT ot.batch log", "POT emd2 (exact)", "OTT-JAX, jitted")
# Heading, values, (shape, samples) of a value.
CURVES = {
    "neurons a side": ([64, 128, 256, 512, 1024, 2048], lambda width: (f"{width}x{width}", 1024)),
    "pairs of 256 x 256": ([1, 2, 4, 8, 16], lambda pairs: (f"{pairs}x256x256", 1024)),
    "samples, 512 x 512": ([32, 128, 512, 2048, 8192, 32768], lambda samples: ("512x512", samples)),
}
_TOO_LONG = 0.5  # seconds: a solver that takes longer is not asked for the next value

Times = dict[str, dict[str, dict[int, float]]]  # heading, solver, value: seconds


def measure_curves(
    options: argparse.Namespace,
    measure: Callable[[dict[str, Run]], dict[str, float]],
    console: Console,
    curves: dict[str, tuple] | None = None,
) -> Times:
    """Seconds of each solver, forward and backward, along each curve; prints them.

    The other solvers know costs only, so that over the samples only ours is measured: from activations back to them,
    and the solution alone.

    Args:
        options: Of the command.
        measure: Median seconds of runs.
        console: Prints.
        curves: As `CURVES`.
    """
    found: Times = {}
    for heading, (values, problem_of) in (curves or CURVES).items():
        times: dict[str, dict[int, float]] = {}
        for value in values:
            shape, samples = problem_of(value)
            pairs = [tuple(x.to(options.device) for x in pair) for pair in synthetic_pairs(shape, samples)]
            problem = Problem(shape, pairs, options.relative_epsilon, options.tolerance, options.seconds)
            makers = {name: make for name, make in solvers(options.device).items() if name in WHO}
            if heading.startswith("samples"):
                makers = {"solution alone": makers["hf_reprot"], "from activations and back": with_activations}
            slow = {name for name, taken in times.items() if max(taken.values()) > _TOO_LONG}
            runs = {name: make(problem) for name, make in makers.items() if name not in slow}
            for name, seconds in measure(runs).items():
                times.setdefault(name, {})[value] = seconds
        found[heading] = times
        table = Table(title=f"ms over {heading}")
        table.add_column("solver")
        for value in values:
            table.add_column(str(value), justify="right")
        for name, taken in times.items():
            table.add_row(name, *(f"{1e3 * taken[value]:.2f}" if value in taken else "-" for value in values))
        console.print(table)
    return found


def plot_curves(times: Times, path: Path, clock: str) -> None:
    """A picture with one panel a curve, both axes logarithmic."""
    figure = Figure(figsize=(4.2 * len(times), 3.6), layout="tight")
    panels = figure.subplots(1, len(times), squeeze=False)
    for panel, (heading, solvers_times) in zip(panels[0], times.items(), strict=True):
        for name, taken in solvers_times.items():
            ours = name in ("hf_reprot", "from activations and back")
            panel.plot(list(taken), [1e3 * s for s in taken.values()], marker="o", lw=2.5 if ours else 1.2, label=name)
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        panel.set_xlabel(heading)
        panel.grid(alpha=0.3)
        panel.legend(fontsize="x-small")
    panels[0][0].set_ylabel(f"forward and backward, ms ({clock} time)")
    figure.savefig(path, dpi=150)
