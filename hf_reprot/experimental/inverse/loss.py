"""The convex loss of inverse optimal transport: how far an observed plan is from the optimal one of a cost."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from ...ot.result import OTResult
from ...ot.solve import solve


def inverse_transport_loss(
    cost: Tensor,
    plan: Tensor | None = None,
    epsilon: float | Tensor = 1.0,
    *,
    tolerance: float = 1e-6,
    max_iterations: int = 10_000,
) -> Tensor:
    """How far an observed plan is from being optimal for a cost.

        L(C) = <P^, C> + eps KL(P^ | a b') - W_eps(C)  =  eps KL(P^ | P_C)        a = P^ 1,  b = P^' 1

    P_C is the optimal entropic plan of C between the marginals of the observed one, P^, and W_eps(C) its value. L is at
    least 0, and 0 exactly where P^ is optimal for C; it is convex in C, being the Fenchel-Young loss of entropic
    transport (up to its entropy the Monge gap of P^). So min_C KL(P^ | P_C), which reads as a problem with a problem
    inside, is a single convex one, and its gradient in C is P^ - P_C (envelope theorem): no solver is differentiated.

    Where plan is None, row k was matched with column k: P^ = I / n. Then L / eps is a contrastive loss in which both
    sides are balanced, log n for a cost that knows nothing; InfoNCE is its one-sided version.

    Args:
        cost: C (..., n, m), any float dtype; half precision is computed in float32.
        plan: P^ (..., n, m), nonnegative, summing to 1, broadcast over leading dimensions; constant. None: pairs, for
            n = m.
        epsilon: eps, in units of the cost; a number or a tensor (...). Only C / eps can be learned from a plan.
        tolerance: L1 error of P_C's column sums. The gradient's error is about as large.
        max_iterations: Maximum number of Sinkhorn iterations.

    Returns:
        L (...), in units of the cost, differentiable in `cost`.

    Raises:
        TypeError: `cost` or `plan` is not of a floating point dtype.
        ValueError: shapes or settings that do not fit.

    Example:
        >>> import torch
        >>> from hf_reprot.experimental.inverse import inverse_transport_loss
        >>> from hf_reprot.ot import solve
        >>> C = torch.rand(4, 6, dtype=torch.float64)
        >>> plan = solve(C, epsilon=0.5, tolerance=1e-9).plan
        >>> round(float(inverse_transport_loss(C, plan, 0.5)), 6)
        0.0
        >>> bool(inverse_transport_loss(C.flip(0), plan, 0.5) > 0)
        True

    References: Ma, Sun, Ye, Zha, Zhou, "Learning Cost Functions for Optimal Transport", 2020 (arXiv 2002.09650): the
    single-level problem. Blondel, Martins, Niculae, "Learning with Fenchel-Young losses", JMLR 2020. Uscidda, Cuturi,
    "The Monge Gap", ICML 2023.
    """
    return matched(cost, plan, epsilon, tolerance=tolerance, max_iterations=max_iterations)[0]


def matched(
    cost: Tensor,
    plan: Tensor | None,
    epsilon: float | Tensor,
    *,
    tolerance: float,
    max_iterations: int,
    init: Tensor | None = None,
) -> tuple[Tensor, OTResult]:
    """The loss of `inverse_transport_loss`, and the solution P_C that it rests on.

    Args:
        init: (..., m) Potential g of a similar problem, a warm start.
    """
    if not isinstance(cost, Tensor) or not cost.is_floating_point():
        raise TypeError(f"cost must be a float tensor (..., n, m), got {getattr(cost, 'dtype', type(cost).__name__)}")
    if cost.ndim < 2:
        raise ValueError(f"cost must have shape (..., n, m), got {tuple(cost.shape)}")
    solved = partial(solve, cost, epsilon=epsilon, tolerance=tolerance, max_iterations=max_iterations, init=init)
    rows, columns = cost.shape[-2:]
    if plan is None:
        if rows != columns:
            raise ValueError(
                f"without a plan row k goes with column k, but the cost is {rows} x {columns}: give the observed plan"
            )
        result = solved()
        entropy = torch.tensor(float(rows), dtype=torch.float64).log().to(result.cost)  # KL(I / n | 1 1' / n^2)
        observed = cost.to(result.cost.dtype).diagonal(dim1=-2, dim2=-1).mean(-1)
    else:
        plan = check_plan(plan, cost).to(torch.promote_types(cost.dtype, torch.float32))
        a, b = plan.sum(-1), plan.sum(-2)
        result = solved(a, b)
        entropy = _divergence(plan, a, b)
        observed = torch.where(plan > 0, plan * cost.to(plan.dtype), 0.0).sum((-2, -1))
    strength = epsilon if result.epsilon is None else result.epsilon
    return observed + (strength * entropy - result.value), result


def check_plan(plan: Tensor, cost: Tensor) -> Tensor:
    """The plan without a gradient.

    Raises:
        TypeError, ValueError: its dtype or shape does not fit the cost.
    """
    if not isinstance(plan, Tensor) or not plan.is_floating_point():
        raise TypeError(
            f"plan must be a float tensor or None, got {getattr(plan, 'dtype', type(plan).__name__)} "
            "(sampled matches go to InverseTransport.fit(matches=...))"
        )
    if plan.ndim < 2 or plan.shape[-2:] != cost.shape[-2:]:
        raise ValueError(
            f"plan must have the cost's shape (..., {', '.join(map(str, cost.shape[-2:]))}), got {tuple(plan.shape)}"
        )
    return plan.detach()


def _divergence(plan: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """KL(P | a b') (...) of a plan with the marginals a, b: the entropies of these less that of the plan."""
    return torch.special.xlogy(plan, plan).sum((-2, -1)) - sum(torch.special.xlogy(x, x).sum(-1) for x in (a, b))
