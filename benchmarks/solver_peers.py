"""Our solver and the other packages' as functions of one problem, all asked for the same marginal error."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor

from hf_reprot.ot import neuron_cost, solve
from hf_reprot.ot.result import Limits
from hf_reprot.ot.solvers.sinkhorn_host import sinkhorn_host

from .solver_problems import Problem, Run


def ours_by(backend: str) -> Callable[[Problem], Run]:
    """`hf_reprot.ot.solve` by one of its ways."""

    def solver(problem: Problem) -> Run:
        def run() -> Tensor:
            problem.matrix.grad = None
            result = solve(problem.matrix, epsilon=problem.epsilon, tolerance=problem.tolerance, backend=backend)
            result.value.sum().backward()
            return result.plan

        return run

    return solver


ours = ours_by("auto")


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


def flash(problem: Problem) -> Run:
    """It knows no cost matrix: it goes from activations to the gradient of the student's, and only on CUDA.

    Each standardised neuron is a point with as many coordinates as there are samples. A pair a call, as it does with a
    batch itself; exact float32 products, and the unregularised plan's schedule left out, since the epsilon is small.
    """
    from flash_sinkhorn import SamplesLoss

    points = []
    for student, teacher in problem.pairs:
        x, y = ((z - z.mean(0)) / z.std(0, correction=0).clamp_min(1e-12) / len(z) ** 0.5 for z in (student, teacher))
        points.append((x.t().contiguous().requires_grad_(), y.t().contiguous()))
    epsilons = problem.epsilon.tolist()

    def make(iterations: float) -> Run:
        def loss(epsilon: float, potentials: bool):
            return SamplesLoss(
                backend="alternating", use_epsilon_scaling=False, eps=epsilon, n_iters=int(iterations),
                potentials=potentials, allow_tf32=False,
            )  # fmt: skip

        def plan(x: Tensor, y: Tensor, costs: Tensor, epsilon: float) -> Tensor:
            f, g = loss(epsilon, True)(x.detach(), y)
            return ((f[:, None] + g - costs) / epsilon).exp() / costs.numel()

        found = torch.stack([plan(*p, M, e) for p, M, e in zip(points, problem.costs, epsilons, strict=True)])
        losses = [loss(epsilon, False) for epsilon in epsilons]

        def run() -> Tensor:
            for one, (x, y) in zip(losses, points, strict=True):
                torch.autograd.grad(one(x, y), x)
            return found

        return run

    return problem.loosest(make, [10, 20, 40, 80, 160, 320])


def with_activations(problem: Problem) -> Run:
    """Costs from activations, solution, and the gradient back to the student's activations."""
    students = [s.clone().requires_grad_() for s, _ in problem.pairs]

    def run() -> Tensor:
        for s in students:
            s.grad = None
        matrix = torch.stack([neuron_cost(s, t) for s, (_, t) in zip(students, problem.pairs, strict=True)])
        result = solve(matrix, epsilon=problem.epsilon, tolerance=problem.tolerance)
        result.value.sum().backward()
        return result.plan

    return run


PEERS = {"ot": "POT", "geomloss": "geomloss", "ott": "OTT-JAX", "flash_sinkhorn": "flash-sinkhorn"}


def missing_peers(device: str) -> list[str]:
    """Packages that cannot take part: not installed, or made for another device."""
    return [
        name
        for package, name in PEERS.items()
        if not importlib.util.find_spec(package) or (package == "flash_sinkhorn" and device != "cuda")
    ]


def solvers(device: str, ablation: bool = False, activations: bool = False) -> dict[str, Callable[[Problem], Run]]:
    """Who takes part, by name; ours first."""
    found: dict[str, Callable[[Problem], Run]] = {"hf_reprot": ours}
    if ablation and device == "cpu":
        found |= {"our sweeps alone": sweeps_alone(True), "same, no momentum": sweeps_alone(False)}
        found["hf_reprot, warm start"] = ours_warm
    if device == "cuda":
        found |= {"our torch loop": ours_by("torch")}
    if importlib.util.find_spec("ot"):
        found |= {"POT sinkhorn": pot("sinkhorn"), "POT sinkhorn_log": pot("sinkhorn_log")}
        found["POT ot.batch log"] = pot_batch
        if device == "cpu":
            found["POT emd2 (exact)"] = emd
    if importlib.util.find_spec("geomloss"):
        found["geomloss"] = geomloss
    if importlib.util.find_spec("ott"):
        found["OTT-JAX, jitted"] = ott
    if device == "cuda" and importlib.util.find_spec("flash_sinkhorn"):
        found["flash-sinkhorn, from activations"] = flash
    if activations or (device == "cuda" and importlib.util.find_spec("flash_sinkhorn")):
        found["hf_reprot from activations"] = with_activations
    return found
