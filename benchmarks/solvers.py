"""Our solver against the other packages' at an equal marginal error: time, sweeps, memory.

    python -m benchmarks.solvers                            # the shapes of the README, on the CPU
    python -m benchmarks.solvers --real --ablation          # activations of real networks on real photos
    python -m benchmarks.solvers --curves --plot docs/pictures/solver_curves.png
    python -m benchmarks.solvers --device cuda

Every solver gets the same costs and the same epsilon, and goes forward and back to dL/dM; those without a gradient of
their own, or with a wrong one, get ours for nothing (it is the plan). All are asked for the same L1 error of the
marginals; where a solver stops on another norm or after a number of iterations, the loosest setting is searched that
reaches it. The table says what was reached. Solvers take turns, so that all meet the same load of the machine, and
warm up in each; the time is the median over the turns, and beside it the range of the middle half. POT must be
installed; geomloss, OTT-JAX and flash-sinkhorn (on CUDA) take part where they are. On CUDA, a second table says how
near our kernels come to what the device can do.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import statistics
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from hf_reprot.ot import solve

from .solver_curves import measure_curves, plot_curves
from .solver_peers import solvers
from .solver_problems import Problem, Run, real_pairs, synthetic_pairs
from .solver_roofline import measured_peak, roofline

SHAPES = ("256x256", "512x2048", "2048x2048", "12x384x384")
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def measure(runs: dict[str, Run], options: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of each; every turn, each runs three times, or once where that is long, until it has had its time. The
    first of three pays for what the solver before left in the caches, and does not count without `options.cold`."""
    device, clock = options.device, CLOCKS[options.clock]
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(options.repeats):
        for name, run in runs.items():
            if sum(times[name]) > options.seconds:
                continue
            turn: list[float] = []
            while len(turn) < 3 and sum(turn) < 0.5:
                start = clock()
                run()
                if device == "cuda":
                    torch.cuda.synchronize()
                turn.append(clock() - start)
            times[name] += turn[:1] if options.cold else turn[1:] or turn
    return times


def peak_memory(run: Run, device: str) -> float:
    """Bytes at the peak of a run beyond what was there before; on the CPU of the whole process."""
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    status = Path("/proc/self/status")
    if not status.exists():
        return float("nan")

    def read(name: str) -> int:
        line = next(line for line in status.read_text().splitlines() if line.startswith(name))
        return 1024 * int(line.split()[1])

    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    before = read("VmRSS")
    run()
    return max(read("VmHWM") - before, 0)


@dataclass
class Row:
    """One solver on one problem; seconds None where it fails, which `error` says.

    Attributes:
        seconds: Median. low, high: The middle half.
        error: L1 error of the marginals that it reached.
        memory: At its peak, in units of the costs' own; None where what the process keeps in store hides it.
    """

    solver: str
    error: str
    seconds: float | None = None
    low: float | None = None
    high: float | None = None
    memory: float | None = None


def measure_solvers(problem: Problem, options: argparse.Namespace) -> list[Row]:
    """Every solver on one problem, in turn; ours first."""
    runs: dict[str, Run] = {}
    notes: dict[str, str] = {}
    for name, prepare in solvers(options.device, options.ablation, options.activations).items():
        try:
            runs[name] = prepare(problem)
            notes[name] = f"{problem.error(runs[name]()):.1e}"
        except Exception as trouble:  # a peer that fails is a line in the table, not the end of it
            runs.pop(name, None)
            notes[name] = f"fails: {type(trouble).__name__}"
    taken = measure(runs, options)
    size = problem.costs.numel() * problem.costs.element_size()
    rows = []
    for name, note in notes.items():
        if not taken.get(name):
            rows.append(Row(name, note))
            continue
        # Under a few megabytes, what the process keeps in store hides the difference.
        memory = peak_memory(runs[name], options.device) / size if size >= 4e6 or options.device == "cuda" else None
        low, _, high = statistics.quantiles(taken[name], n=4) if len(taken[name]) > 1 else 3 * taken[name]
        rows.append(Row(name, note, statistics.median(taken[name]), low, high, memory))
    return rows


def compare(problem: Problem, options, console: Console) -> dict[str, float]:
    """Prints one problem's table; median seconds of each solver."""
    rows = measure_solvers(problem, options)
    times = {row.solver: row.seconds for row in rows if row.seconds is not None}
    table = Table(title=f"{problem.name}: {tuple(problem.costs.shape)} {problem.costs.dtype} on {options.device}")
    for heading in ("solver", "ms", "middle half", "times ours", "L1 error", "extra memory / costs"):
        table.add_column(heading, justify="left" if heading == "solver" else "right")
    for row in rows:
        if row.seconds is None or row.low is None or row.high is None:
            table.add_row(row.solver, "-", "-", "-", row.error, "-")
            continue
        middle = f"{1e3 * row.low:.2f} to {1e3 * row.high:.2f}"
        ratio = f"{row.seconds / times['hf_reprot']:.2f}"
        memory = "-" if row.memory is None else f"{row.memory:.1f}"
        table.add_row(row.solver, f"{1e3 * row.seconds:.2f}", middle, ratio, row.error, memory)
    console.print(table)
    console.print(f"sweeps: {solve(problem.costs, epsilon=problem.epsilon).iterations.tolist()}")
    return times


def plot(results: dict[str, dict[str, float]], path: Path) -> None:
    """Milliseconds of each solver over the problems, on a logarithmic scale."""
    names = list(dict.fromkeys(name for times in results.values() for name in times))
    if not names:
        return
    figure = Figure(figsize=(1.5 + 2.2 * len(results), 4), layout="tight")
    axes = figure.subplots()
    width = 0.8 / len(names)
    for k, name in enumerate(names):
        places = [i + k * width for i, times in enumerate(results.values()) if name in times]
        axes.bar(places, [1e3 * times[name] for times in results.values() if name in times], width, label=name)
    axes.set_xticks([i + 0.4 for i in range(len(results))], list(results))
    axes.set_yscale("log")
    axes.set_ylabel("forward and backward, ms")
    axes.legend(fontsize="small", ncols=2)
    figure.savefig(path, dpi=150)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "float64"])
    parser.add_argument("--shapes", nargs="*", default=SHAPES, help="(pairs x) student neurons x teacher neurons")
    parser.add_argument("--samples", type=int, default=1024, help="samples that costs are computed from")
    parser.add_argument("--relative-epsilon", type=float, default=0.01)
    parser.add_argument("--tolerance", type=float, default=1e-3, help="L1 error of the marginals")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument(
        "--seconds",
        type=float,
        default=20,
        help="a solver's time in a table at most (one run at least), and in its search",
    )
    parser.add_argument(
        "--clock", default="wall", choices=CLOCKS, help="cpu: seconds of computing, on a busy machine (one thread)"
    )
    parser.add_argument("--cold", action="store_true", help="the first run of each turn, right after another solver")
    parser.add_argument(
        "--flush-subnormals",
        action="store_true",
        help="let the processor take subnormal numbers for 0, for all solvers",
    )
    parser.add_argument("--real", action="store_true", help="activations of real networks instead of the shapes")
    parser.add_argument("--vit", help="folder that `python -m examples.carriers dinov2-small` wrote")
    parser.add_argument("--only", nargs="*", help="of these, the problems whose names begin so")
    parser.add_argument("--curves", action="store_true", help="how the cost grows with neurons, pairs, samples")
    parser.add_argument("--ablation", action="store_true", help="ours without momentum, and from a warm start, too")
    parser.add_argument("--activations", action="store_true", help="ours from activations back to them, too")
    parser.add_argument("--plot", type=Path, default=Path("benchmark_solvers.png"))
    options = parser.parse_args(arguments)
    warnings.filterwarnings("ignore")
    console = Console()
    torch.set_flush_denormal(options.flush_subnormals)
    if options.clock == "cpu":  # computing time adds up over threads
        torch.set_num_threads(1)
        os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    console.print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {options.clock} time")
    if options.curves:

        def medians(runs: dict[str, Run]) -> dict[str, float]:
            taken = measure(runs, options)
            return {name: statistics.median(seconds) for name, seconds in taken.items()}

        plot_curves(measure_curves(options, medians, console), options.plot, options.clock)
        console.print(f"plot: {options.plot}")
        return
    named = (
        real_pairs(options.vit, options.only or ())
        if options.real
        else {s: synthetic_pairs(s, options.samples) for s in options.shapes}
    )
    if options.only:
        named = {name: pairs for name, pairs in named.items() if name.startswith(tuple(options.only))}
    results = {}
    peak = measured_peak() if options.device == "cuda" else None
    for name, pairs in named.items():
        pairs = [tuple(x.to(options.device, getattr(torch, options.dtype)) for x in pair) for pair in pairs]
        problem = Problem(name, pairs, options.relative_epsilon, options.tolerance, options.seconds)
        results[name] = compare(problem, options, console)
        if peak is not None:
            roofline(problem, peak, console)
    plot(results, options.plot)
    console.print(f"plot: {options.plot}")


if __name__ == "__main__":
    main()
