"""`solve`: the single entry point to every coupling method."""

from __future__ import annotations

import importlib
import math

import torch
from torch import Tensor

from ..settings.names import CONTROLS, DIFFERENTIABLE_WEIGHTS, METHODS
from ..utils.messages import check_choice
from . import kernels
from .gradients import with_envelope_gradient
from .result import Limits, OTResult, Solution, ValuedSolution
from .solvers.controls import control_plan
from .solvers.kernel import dual_value, inner, mean_cost, on_host, without_traces
from .solvers.proximal import proximal
from .solvers.sinkhorn_device import sinkhorn_device
from .solvers.sinkhorn_host import many_small, sinkhorn_host, sinkhorn_pairs
from .solvers.units import unit_of

BACKENDS = ("auto", "torch", "triton")
DEFAULT_RELATIVE_EPSILON = {"sinkhorn": 0.01, "proximal": 0.2}


def solve(
    M: Tensor,
    a: Tensor | None = None,
    b: Tensor | None = None,
    *,
    method: str = "sinkhorn",
    relative_epsilon: float | None = None,
    epsilon: float | Tensor | None = None,
    tolerance: float = 1e-3,
    max_iterations: int = 1000,
    init: tuple[Tensor | None, Tensor] | Tensor | None = None,
    backend: str = "auto",
) -> OTResult:
    """Optimal transport between two sets of neurons, given the cost of each match.

        sinkhorn            min_P <P, M> + eps KL(P | a b')       P >= 0,  P 1 = a,  P' 1 = b
        proximal, exact     min_P <P, M>

    The gradient of `result.value` in M is the optimal plan (envelope theorem; `epsilon` held fixed): no iteration is
    differentiated through. In weights that require one it is the potentials f and g, less their mean f.a and g.b: the
    gradient of the value at a / sum(a), so that it does not depend on the constant that potentials leave open.
    `sinkhorn` reports the dual value f.a + g.b, whose error before convergence is of second order. The plan's rows sum
    to `a` exactly, so that every student neuron carries its whole weight.

    Args:
        M: (..., m, n) Costs, any float dtype; half precision is computed in float32. +inf forbids a match. Leading
            dimensions are problems solved side by side.
        a: (..., m) Weights of the rows, nonnegative, summing to 1; None: uniform. Broadcasts over leading dimensions.
            May require a gradient with "sinkhorn" and "exact" (there a subgradient: the optimum may have kinks); a
            weight of 0 then has its one-sided derivative. The error of that gradient is of first order in the
            marginal error: solve to a small `tolerance` where it matters.
        b: (..., n) Weights of the columns; likewise.
        method: "sinkhorn" (entropic), "proximal" (IPOT, no entropic bias), "exact" (POT's network simplex on the CPU),
            or a control: "identity" (m = n), "random" (a fixed permutation), "independent" (a b').
        relative_epsilon: Entropic (proximal) strength in units of the problem's mean cost a'|M|b, so that it means the
            same for every layer; the unit is detached. Default 0.01 (0.2).
        epsilon: The same in units of the cost, as POT's `reg`; a number or a tensor (...). Overrides
            `relative_epsilon`.
        tolerance: L1 error of the column sums at which a problem is done; for `proximal` also the relative error of its
            cost. The gradient's relative error is 1.5 to 10 times it.
        max_iterations: Maximum number of Sinkhorn iterations (or proximal steps).
        init: Potentials (f, g) of a similar problem, as in `result.potentials`, or g (..., n) alone: a warm start.
        backend: What runs "sinkhorn" and "proximal": "torch", "triton" (CUDA, float32), or "auto": Triton's kernels
            where they are, for float32 costs of up to 4096 columns and a tolerance of at least 3e-5.

    Returns:
        `OTResult`, with the leading dimensions of M.

    Raises:
        TypeError: M is not of a floating point dtype.
        ValueError: shapes, names or settings that do not fit. Values of tensors are never looked at, which would stall
            the device: what is wrong with them shows in `result.converged`.

    Example:
        >>> import torch
        >>> from hf_reprot.ot import solve
        >>> M = torch.rand(3, 5, requires_grad=True)
        >>> result = solve(M)
        >>> result.value.backward()
        >>> bool((M.grad == result.plan).all())
        True

    References: Cuturi, "Sinkhorn Distances", NeurIPS 2013. Xie et al., "A Fast Proximal Point Method for Computing
    Exact Wasserstein Distance", UAI 2019. Peyré, Cuturi, "Computational Optimal Transport", 2019, chapters 4 and 9.
    """
    _check_settings(method, relative_epsilon, epsilon, tolerance, max_iterations)
    _check_matrix(M)
    check_choice("backend", backend, BACKENDS)
    batch, (m, n) = M.shape[:-2], M.shape[-2:]
    matrix = M.detach().to(torch.promote_types(M.dtype, torch.float32)).reshape(-1, m, n).contiguous()
    given_a, given_b = (w if _learned(w) else None for w in (a, b))
    if method not in DIFFERENTIABLE_WEIGHTS and not (given_a is given_b is None):
        raise ValueError(
            f"method={method!r} has no gradient in the weights: a proximal step has the potentials of a sharper "
            "problem, and controls have none. Detach a and b, or use method='sinkhorn' or 'exact'"
        )
    a = _weights("a", a, batch, m, matrix)
    b = _weights("b", b, batch, n, matrix)
    limits = Limits(tolerance, max_iterations)
    triton = kernels.takes(matrix, tolerance) if backend == "auto" else backend == "triton"
    if backend == "triton" and (reason := kernels.refusal(matrix)):
        raise ValueError(reason)

    start = _start(init, batch, n, matrix)
    if method == "sinkhorn" and on_host(matrix) and not triton and not many_small(matrix):
        with torch.no_grad():
            relative = DEFAULT_RELATIVE_EPSILON[method] if relative_epsilon is None else relative_epsilon
            given = None if epsilon is None else _absolute(epsilon, batch, matrix)
            solution = sinkhorn_pairs(matrix, a, b, given, limits, start, relative=relative)
    else:
        with torch.no_grad(), torch.autocast(device_type=matrix.device.type, enabled=False):
            settings = (batch, method, relative_epsilon, epsilon)
            solution = _solution(matrix, a, b, settings, triton, limits, start)
    value, cost = solution.value, solution.cost
    # No mass on what is forbidden.
    converged = solution.converged & (value.abs() < torch.inf) & (cost.abs() < torch.inf)

    def restored(x: Tensor) -> Tensor:
        return x.reshape((*batch, *x.shape[1:]))

    plan = restored(solution.plan)
    value = restored(value)
    potentials = None if method in CONTROLS else (restored(solution.f), restored(solution.g))
    if torch.is_grad_enabled() and (M.requires_grad or not (given_a is given_b is None)):
        a, b = (None if w is None else w.expand(*batch, w.shape[-1]) for w in (given_a, given_b))
        value = with_envelope_gradient(value, M, plan, a, b, potentials)
    return OTResult(
        value=value,
        cost=restored(cost),
        plan=plan,
        potentials=potentials,
        marginal_error=restored(solution.error),
        iterations=restored(solution.iterations),
        converged=restored(converged),
        epsilon=None if solution.epsilon is None else restored(solution.epsilon),
    )


def _solution(matrix: Tensor, a: Tensor, b: Tensor, settings, triton: bool, limits: Limits, start) -> ValuedSolution:
    """The solution and what it is worth, by any method and on any device."""
    batch, method, relative_epsilon, epsilon = settings
    unit = strength = None
    if method in CONTROLS:
        solution = _of_control(method, a, b, limits)
    elif method not in DEFAULT_RELATIVE_EPSILON:  # a solver of the cost alone: the function of its name
        solver = importlib.import_module(f"{__package__}.solvers.{method}")
        solution = getattr(solver, method)(matrix, a, b, limits)
    else:
        strength = _strength(matrix, a, b, *settings)
        unit = unit_of(matrix, strength, always=method == "proximal" and not on_host(matrix))
        if unit is not None:
            matrix = matrix / unit[:, None, None]
            start = None if start is None else start / unit[:, None]
            epsilon = None if epsilon is None else epsilon / unit.view(batch)
            strength = _strength(matrix, a, b, batch, method, relative_epsilon, epsilon)
        solution = _iterate(method, triton, matrix, a, b, strength, limits, start)
    solution.plan = without_traces(solution.plan, a)
    cost = inner(solution.plan, matrix)
    value = dual_value(solution.f, solution.g, a, b) if method == "sinkhorn" else cost
    if unit is not None and strength is not None:
        value, cost, strength = value * unit, cost * unit, strength * unit
        solution.f, solution.g = solution.f * unit[:, None], solution.g * unit[:, None]
    s = solution
    return ValuedSolution(s.plan, s.f, s.g, s.error, s.iterations, s.converged, cost, value, strength)


def _iterate(method: str, triton: bool, matrix, a, b, strength, limits: Limits, start: Tensor | None) -> Solution:
    if triton:
        from .kernels.solver import ProximalBlock, sinkhorn_triton

        if method == "proximal":
            return proximal(matrix, a, b, strength, limits, start, kernels=ProximalBlock)
        return sinkhorn_triton(matrix, a, b, strength, limits, start)
    if method == "proximal":
        return proximal(matrix, a, b, strength, limits, start)
    way = sinkhorn_host if on_host(matrix) else sinkhorn_device
    return way(matrix, a, b, strength, limits, start)


def _of_control(method: str, a: Tensor, b: Tensor, limits: Limits) -> Solution:
    plan = control_plan(method, a, b)
    error = (plan.sum(-2) - b).abs().sum(-1)
    iterations = torch.zeros(error.shape, dtype=torch.long, device=error.device)
    return Solution(plan, torch.zeros_like(a), torch.zeros_like(b), error, iterations, error <= limits.tolerance)


def _strength(matrix, a, b, batch, method, relative_epsilon, epsilon) -> Tensor:
    """Epsilon (B,) in units of the cost, never so small that its inverse is not finite."""
    if epsilon is not None:
        strength = _absolute(epsilon, batch, matrix)
    else:
        relative = DEFAULT_RELATIVE_EPSILON[method] if relative_epsilon is None else relative_epsilon
        strength = relative * mean_cost(matrix, a, b)
    return strength.clamp_min(torch.finfo(matrix.dtype).tiny)


def _absolute(epsilon: float | Tensor, batch: torch.Size, matrix: Tensor) -> Tensor:
    if isinstance(epsilon, Tensor):
        return epsilon.detach().to(matrix).expand(batch).reshape(-1)
    return torch.full((matrix.shape[0],), float(epsilon), dtype=matrix.dtype, device=matrix.device)


def _weights(name: str, weights: Tensor | None, batch: torch.Size, size: int, matrix: Tensor) -> Tensor:
    if weights is None:
        return torch.full((matrix.shape[0], size), 1.0 / size, dtype=matrix.dtype, device=matrix.device)
    if not isinstance(weights, Tensor) or not weights.is_floating_point():
        raise TypeError(
            f"{name} must be a float tensor or None, got {getattr(weights, 'dtype', type(weights).__name__)}"
        )
    if weights.ndim == 0 or weights.shape[-1] != size:
        raise ValueError(f"{name} must have shape (..., {size}) to go with M, got {tuple(weights.shape)}")
    try:
        expanded = weights.detach().expand(*batch, size)
    except RuntimeError as error:
        raise ValueError(f"{name} of shape {tuple(weights.shape)} does not broadcast to {(*batch, size)}") from error
    return expanded.to(matrix).reshape(-1, size).contiguous()


def _learned(weights: Tensor | None) -> bool:
    return isinstance(weights, Tensor) and weights.requires_grad and torch.is_grad_enabled()


def _start(init, batch: torch.Size, n: int, matrix: Tensor) -> Tensor | None:
    g = init[1] if isinstance(init, tuple) else init
    if g is None:
        return None
    if tuple(g.shape) != (*batch, n):
        raise ValueError(f"init must hold potentials g of shape {(*batch, n)}, got {tuple(g.shape)}")
    return g.detach().to(matrix).reshape(-1, n)


def _check_matrix(M: Tensor) -> None:
    if not isinstance(M, Tensor) or not M.is_floating_point():
        raise TypeError(f"M must be a tensor of a floating point dtype, got {getattr(M, 'dtype', type(M).__name__)}")
    if M.ndim < 2 or M.shape[-1] == 0 or M.shape[-2] == 0:
        raise ValueError(f"M must have shape (..., m, n) with m and n at least 1, got {tuple(M.shape)}")


def _check_settings(method, relative_epsilon, epsilon, tolerance, max_iterations) -> None:
    check_choice("method", method, METHODS)
    for name, number in (("relative_epsilon", relative_epsilon), ("epsilon", epsilon), ("tolerance", tolerance)):
        if number is None or isinstance(number, Tensor):
            continue
        if not (number > 0 and math.isfinite(number)):
            raise ValueError(f"{name} must be a finite number above 0, got {number}")
    if max_iterations < 1:
        raise ValueError(f"max_iterations must be at least 1, got {max_iterations}")
