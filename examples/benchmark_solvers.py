"""Our solver against the other packages' at an equal marginal error: time, sweeps, memory.

    python -m examples.benchmark_solvers                            # the shapes of the README, on the CPU
    python -m examples.benchmark_solvers --real --ablation          # activations of real networks on real photos
    python -m examples.benchmark_solvers --device cuda

Every solver gets the same costs and the same epsilon, and goes forward and back to dL/dM; those without a gradient of
their own, or with a wrong one, get ours for nothing (it is the plan). All are asked for the same L1 error of the
marginals; where a solver stops on another norm or after a number of iterations, the loosest setting is searched that
reaches it. The table says what was reached. Solvers take turns, so that all meet the same load of the machine; the time
is the median over the turns. POT must be installed; geomloss, OTT-JAX and flash-sinkhorn take part where they are.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import importlib.util
import os
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from hf_reprot.ot import neuron_cost, solve
from hf_reprot.ot.sinkhorn_host import sinkhorn_host
from hf_reprot.ot.solution import Limits

SHAPES = ("256x256", "512x2048", "2048x2048", "12x384x384")
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
Run = Callable[[], Tensor]  # forward and backward once; gives the plan (B, m, n)


class Problem:
    """Costs M (B, m, n) with an epsilon for each, and what every solver is asked for."""

    def __init__(self, name: str, matrix: Tensor, relative_epsilon: float, tolerance: float):
        self.name, self.tolerance = name, tolerance
        self.matrix = matrix.contiguous().requires_grad_()
        self.costs = matrix.detach()
        self.epsilon = relative_epsilon * self.costs.mean((-2, -1))
        batch, m, n = matrix.shape
        self.a = matrix.new_full((batch, m), 1 / m)
        self.b = matrix.new_full((batch, n), 1 / n)

    def error(self, plan: Tensor) -> float:
        """Largest L1 error of both marginals of a pair's plan."""
        plan = torch.as_tensor(plan).to(self.a)
        return float(((plan.sum(-1) - self.a).abs().sum(-1) + (plan.sum(-2) - self.b).abs().sum(-1)).max())

    def each(self, one: Callable[[Tensor, Tensor, Tensor, float], Tensor]) -> Run:
        """A solver of one pair, in a loop, with the plan as the gradient."""
        epsilons = self.epsilon.tolist()

        def run() -> Tensor:
            with torch.no_grad():
                return torch.stack([one(*pair) for pair in zip(self.a, self.b, self.costs, epsilons, strict=True)])

        return run

    def loosest(self, make: Callable[[float], Run], settings: list[float]) -> Run:
        """The first of ever stricter settings with which a solver reaches the tolerance."""
        for setting in settings:
            run = make(setting)
            if self.error(run()) <= self.tolerance:
                break
        return run


def ours(problem: Problem) -> Run:
    def run() -> Tensor:
        problem.matrix.grad = None
        result = solve(problem.matrix, epsilon=problem.epsilon, tolerance=problem.tolerance)
        result.value.sum().backward()
        return result.plan

    return run


def sweeps_alone(accelerate: bool) -> Callable[[Problem], Run]:
    """Without the value and the gradient; with or without momentum."""

    def solver(problem: Problem) -> Run:
        limits = Limits(problem.tolerance, 10_000, accelerate)
        return lambda: sinkhorn_host(problem.costs, problem.a, problem.b, problem.epsilon, limits).plan

    return solver


def ours_warm(problem: Problem) -> Run:
    """From the potentials of costs with 1 % noise."""
    noise = torch.rand(problem.costs.shape, generator=torch.Generator().manual_seed(0)).to(problem.costs)
    before = solve(problem.costs * (1 + 0.01 * noise), epsilon=problem.epsilon, tolerance=problem.tolerance)
    return lambda: (
        solve(problem.matrix, epsilon=problem.epsilon, tolerance=problem.tolerance, init=before.potentials).plan
    )


def _stops(problem: Problem) -> list[float]:
    """POT stops on the L2 norm of one side's error: from what L1 is at most, to what it is at least."""
    return [problem.tolerance / problem.b.shape[-1] ** 0.5 * factor for factor in (8, 4, 2, 1, 0.5, 0.1)]


def pot(method: str) -> Callable[[Problem], Run]:
    import ot

    def solver(problem: Problem) -> Run:
        return problem.loosest(
            lambda stop: problem.each(
                lambda a, b, M, eps: ot.sinkhorn(a, b, M, eps, method=method, stopThr=stop, numItermax=5000, warn=False)
            ),
            _stops(problem),
        )

    return solver


def pot_batch(problem: Problem) -> Run:
    import ot.batch

    epsilon = float(problem.epsilon.mean())  # one for the whole batch is all that it takes

    def make(stop: float) -> Run:
        def run() -> Tensor:
            with torch.no_grad():  # with a gradient asked for, it keeps the graph of every iteration
                return ot.batch.solve_batch(
                    problem.costs, epsilon, max_iter=5000, tol=stop, method="log_sinkhorn", grad="detach"
                ).plan

        return run

    return problem.loosest(make, _stops(problem))


def emd(problem: Problem) -> Run:
    import ot

    return problem.each(lambda a, b, M, eps: ot.emd2(a, b, M, return_matrix=True, numItermax=10_000_000)[1]["G"])


def geomloss(problem: Problem) -> Run:
    import geomloss.ot

    epsilon = float(problem.epsilon.mean())

    def make(iterations: float) -> Run:
        return lambda: geomloss.ot.solve_batch(problem.costs, reg=epsilon, max_iter=int(iterations)).plan

    return problem.loosest(make, [10, 50, 250])


def ott(problem: Problem) -> Run:
    import jax
    import numpy
    from ott.geometry import geometry
    from ott.problems.linear import linear_problem
    from ott.solvers.linear import sinkhorn

    def one(costs, epsilon):
        solver = sinkhorn.Sinkhorn(threshold=problem.tolerance, max_iterations=5000)
        solution = solver(linear_problem.LinearProblem(geometry.Geometry(cost_matrix=costs, epsilon=epsilon)))
        return solution.reg_ot_cost, solution.matrix

    both = jax.jit(jax.vmap(one))
    costs, epsilon = (jax.numpy.asarray(x.cpu().numpy()) for x in (problem.costs, problem.epsilon))

    def run() -> Tensor:
        _, plan = both(costs, epsilon)
        return torch.from_numpy(numpy.array(plan.block_until_ready(), copy=False))

    return run


def solvers(device: str, ablation: bool) -> dict[str, Callable[[Problem], Run]]:
    """Who takes part, by name; ours first."""
    found: dict[str, Callable[[Problem], Run]] = {"hf_reprot": ours}
    if ablation and device == "cpu":
        found |= {"our sweeps alone": sweeps_alone(True), "same, no momentum": sweeps_alone(False)}
        found["hf_reprot, warm start"] = ours_warm
    found |= {"POT sinkhorn": pot("sinkhorn"), "POT sinkhorn_log": pot("sinkhorn_log"), "POT ot.batch log": pot_batch}
    if device == "cpu":
        found["POT emd2 (exact)"] = emd
    if importlib.util.find_spec("geomloss"):
        found["geomloss"] = geomloss
    if importlib.util.find_spec("ott"):
        found["OTT-JAX, jitted"] = ott
    return found


def with_activations(problem: Problem, pairs: list[tuple[Tensor, Tensor]]) -> Run:
    """Costs from activations, solution, and the gradient back to the student's activations."""
    students = [s.clone().requires_grad_() for s, _ in pairs]

    def run() -> Tensor:
        for s in students:
            s.grad = None
        matrix = torch.stack([neuron_cost(s, t) for s, (_, t) in zip(students, pairs, strict=True)])
        result = solve(matrix, epsilon=problem.epsilon, tolerance=problem.tolerance)
        result.value.sum().backward()
        return result.plan

    return run


def measure(runs: dict[str, Run], repeats: int, device: str, clock: Callable[[], float]) -> dict[str, float]:
    """Median seconds of each; every turn, each runs once (twice where it is quick)."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            for _ in range(2):
                start = clock()
                run()
                if device == "cuda":
                    torch.cuda.synchronize()
                times[name].append(clock() - start)
                if times[name][-1] > 0.5:
                    break
    return {name: statistics.median(taken) for name, taken in times.items()}


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


def layer(samples: int, neurons: int, mixing: int) -> Tensor:
    """(samples, neurons) rectified neurons that 48 common factors drive, in the manner of a network's."""
    draw, weights = torch.Generator().manual_seed(0), torch.Generator().manual_seed(1000 + mixing)
    hidden = torch.randn(samples, 48, generator=draw) @ torch.randn(48, neurons, generator=weights)
    return torch.relu(hidden + torch.randn(samples, neurons, generator=weights))


def synthetic_pairs(shape: str, samples: int) -> list[tuple[Tensor, Tensor]]:
    *batch, m, n = (int(part) for part in shape.split("x"))
    count = batch[0] if batch else 1
    return [(layer(samples, m, 2 * i + 1), layer(samples, n, 2 * i + 2)) for i in range(count)]


def real_pairs() -> dict[str, list[tuple[Tensor, Tensor]]]:
    """Layers of an untrained ResNet-10 and of EfficientNet-Lite1 against ImageNet's EfficientNet-Lite0, on photos."""
    import numpy
    import timm

    from .carriers import efficientnet_lite, photo_cutouts

    photos = [image.convert("RGB").resize((160, 160)) for image in photo_cutouts.load()["train"]["image"]]
    images = torch.stack([torch.from_numpy(numpy.array(p)).permute(2, 0, 1) for p in photos]).float() / 127.5 - 1

    def lite(number: int) -> torch.nn.Module:
        model = timm.create_model(f"tf_efficientnet_lite{number}")
        model.load_state_dict(efficientnet_lite._renamed(efficientnet_lite._weights(number), model))
        return model

    def activations(model: torch.nn.Module, names: list[str], pooled: bool) -> list[Tensor]:
        caught: dict[str, list[Tensor]] = {name: [] for name in names}
        for name in names:
            model.get_submodule(name).register_forward_hook(
                lambda module, args, output, name=name: caught[name].append(
                    output.mean((2, 3)) if pooled else output.permute(0, 2, 3, 1).flatten(0, 2)
                )
            )
        with torch.no_grad():
            for chunk in images.split(50):
                model.eval()(chunk)
        return [torch.cat(caught[name]) for name in names]

    torch.manual_seed(0)
    resnet = activations(timm.create_model("resnet10t"), ["layer3", "layer4"], pooled=True)
    resnet_positions = activations(timm.create_model("resnet10t"), ["layer4"], pooled=False)
    lite0 = activations(lite(0), ["blocks.4", "blocks.6", "bn2"], pooled=True)
    lite0_positions = activations(lite(0), ["blocks.6", "bn2"], pooled=False)
    lite1 = activations(lite(1), ["bn2"], pooled=True)
    return {
        "resnet layer3 ~ lite0 blocks.4": [(resnet[0], lite0[0])],
        "resnet layer4 ~ lite0 bn2": [(resnet[1], lite0[2])],
        "same, every position": [(resnet_positions[0], lite0_positions[1])],
        "lite1 bn2 ~ lite0 bn2": [(lite1[0], lite0[2])],
    }


def compare(problem: Problem, pairs, options, console: Console) -> dict[str, float]:
    """Prints one problem's table; seconds of each solver."""
    runs: dict[str, Run] = {}
    notes: dict[str, str] = {}
    for name, prepare in solvers(options.device, options.ablation).items():
        try:
            runs[name] = prepare(problem)
            notes[name] = f"{problem.error(runs[name]()):.1e}"
        except Exception as trouble:  # a peer that fails is a line in the table, not the end of it
            runs.pop(name, None)
            notes[name] = f"fails: {type(trouble).__name__}"
    if options.activations:
        runs["hf_reprot from activations"] = with_activations(problem, pairs)
        notes["hf_reprot from activations"] = f"{problem.error(runs['hf_reprot from activations']()):.1e}"
    times = measure(runs, options.repeats, options.device, CLOCKS[options.clock])
    size = problem.costs.numel() * problem.costs.element_size()
    table = Table(title=f"{problem.name}: {tuple(problem.costs.shape)} {problem.costs.dtype} on {options.device}")
    for heading in ("solver", "ms", "times ours", "L1 error", "extra memory / costs"):
        table.add_column(heading, justify="left" if heading == "solver" else "right")
    for name, note in notes.items():
        if name not in runs:
            table.add_row(name, "-", "-", note, "-")
            continue
        # Under a few megabytes, what the process keeps in store hides the difference.
        memory = f"{peak_memory(runs[name], options.device) / size:.1f}" if size >= 4e6 else "-"
        table.add_row(name, f"{1e3 * times[name]:.2f}", f"{times[name] / times['hf_reprot']:.2f}", note, memory)
    console.print(table)
    console.print(f"sweeps: {solve(problem.costs, epsilon=problem.epsilon).iterations.tolist()}")
    return times


def plot(results: dict[str, dict[str, float]], path: Path) -> None:
    """Milliseconds of each solver over the problems, on a logarithmic scale."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(dict.fromkeys(name for times in results.values() for name in times))
    figure, axes = pyplot.subplots(figsize=(1.5 + 2.2 * len(results), 4))
    width = 0.8 / len(names)
    for k, name in enumerate(names):
        places = [i + k * width for i, times in enumerate(results.values()) if name in times]
        axes.bar(places, [1e3 * times[name] for times in results.values() if name in times], width, label=name)
    axes.set_xticks([i + 0.4 for i in range(len(results))], list(results))
    axes.set_yscale("log")
    axes.set_ylabel("forward and backward, ms")
    axes.legend(fontsize="small", ncols=2)
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "float64"])
    parser.add_argument("--shapes", nargs="*", default=SHAPES, help="(pairs x) student neurons x teacher neurons")
    parser.add_argument("--samples", type=int, default=1024, help="samples that costs are computed from")
    parser.add_argument("--relative-epsilon", type=float, default=0.01)
    parser.add_argument("--tolerance", type=float, default=1e-3, help="L1 error of the marginals")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument(
        "--clock", default="wall", choices=CLOCKS, help="cpu: seconds of computing, on a busy machine (one thread)"
    )
    parser.add_argument("--real", action="store_true", help="activations of real networks instead of the shapes")
    parser.add_argument("--ablation", action="store_true", help="ours without momentum, and from a warm start, too")
    parser.add_argument("--activations", action="store_true", help="ours from activations back to them, too")
    parser.add_argument("--plot", type=Path, default=Path("benchmark_solvers.png"))
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    console = Console()
    if options.clock == "cpu":  # computing time adds up over threads
        torch.set_num_threads(1)
        os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    console.print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {options.clock} time")
    named = real_pairs() if options.real else {s: synthetic_pairs(s, options.samples) for s in options.shapes}
    results = {}
    for name, pairs in named.items():
        pairs = [tuple(x.to(options.device, getattr(torch, options.dtype)) for x in pair) for pair in pairs]
        matrix = torch.stack([neuron_cost(s, t) for s, t in pairs])
        results[name] = compare(
            Problem(name, matrix, options.relative_epsilon, options.tolerance), pairs, options, console
        )
    plot(results, options.plot)
    console.print(f"plot: {options.plot}")


if __name__ == "__main__":
    main()
