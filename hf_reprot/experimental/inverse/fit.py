"""`InverseTransport`: a cost that is learned from an observed matching."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...utils.messages import check_choice
from .costs import BilinearCost, FreeCost, MahalanobisCost, fix_gauge
from .loss import check_plan, matched

KINDS = ("bilinear", "mahalanobis", "free")
# Parameter of each kind, by which a saved cost is recognised.
_PARAMETERS = {"bilinear": "A", "mahalanobis": "L", "free": "C"}
_HISTORY = 20  # of steps, in which L-BFGS sees the curvature
_MAX_SWEEPS = 20_000
_SEPARATED = 1e-3  # nats: pairs that noise mixes up at all are far above


@dataclass
class FitReport:
    """How a fit ended.

    Attributes:
        loss: `inverse_transport_loss` at the end, over epsilon: KL(P^ | P_C) in nats, mean over mini-batches. For n
            pairs a cost that knows nothing has log n.
        gradient: Largest absolute derivative of the objective (loss and penalty).
        evaluations: Times that loss and gradient were computed.
        converged: Whether the gradient fell below what was asked for.
    """

    loss: float
    gradient: float
    evaluations: int
    converged: bool


class InverseTransport(nn.Module):
    """The cost for which an observed matching is the optimal transport plan.

        min_theta  L(C_theta) / eps + (regularisation / 2) |theta|^2      C_theta (n, m) between x (n, d_x), y (m, d_y)

    with L of `inverse_transport_loss`: one convex problem (for a cost that is linear in its parameters), whose gradient
    <P^ - P_C, dC/dtheta> / eps needs the optimal plan P_C only (envelope theorem). L-BFGS minimises it, in float64.

    A plan knows its cost up to alpha_i + beta_j, and in units of epsilon. A fitted cost is a callable and a module:
    `inverse(x, y)` gives the matrix for any points of the two spaces, for `solve(..., epsilon=inverse.epsilon)`, and
    `state_dict()` goes into a safetensors file.

    Args:
        cost: "bilinear" (c = -x' A y, two spaces of any widths), "mahalanobis" (c = |L (x - y)|^2, one width), "free"
            (a matrix for numbered things, in closed form), or a module of your own: (n, d_x), (m, d_y) -> (n, m).
        epsilon: Entropic strength of the observed plan, in units of the cost.
        regularisation: Weight of the penalty. Needed where some cost separates the pairs perfectly (more parameters
            than pairs, noiseless one-to-one matchings): without it the best cost is infinite.
        batch_size: Pairs that are matched with each other at a time. More pairs are split, by chance but once, into
            problems that are solved side by side: the objective is the mean over them.
        max_iterations: Maximum number of L-BFGS steps.
        tolerance: Largest derivative at which the fit is done.
        seed: Of the split of pairs.

    Example:
        >>> import torch
        >>> from hf_reprot.experimental.inverse import InverseTransport
        >>> from hf_reprot.ot import solve
        >>> generator = torch.Generator().manual_seed(0)
        >>> x, y, A = (torch.randn(40, 3, generator=generator, dtype=torch.float64) for _ in range(3))
        >>> observed = solve(-x @ A[:3] @ y.T, epsilon=1.0, tolerance=1e-9).plan
        >>> inverse = InverseTransport("bilinear").fit(x, y, observed)
        >>> torch.allclose(inverse.ground.A, A[:3], atol=1e-4)
        True
        >>> inverse(x[:5], y).shape
        torch.Size([5, 40])

    References: Ma, Sun, Ye, Zha, Zhou, "Learning Cost Functions for Optimal Transport", 2020 (arXiv 2002.09650).
    """

    def __init__(
        self,
        cost: str | nn.Module = "bilinear",
        epsilon: float = 1.0,
        *,
        regularisation: float = 0.0,
        batch_size: int = 512,
        max_iterations: int = 500,
        tolerance: float = 1e-6,
        seed: int = 0,
    ):
        super().__init__()
        if not isinstance(cost, nn.Module):
            check_choice("cost", cost, KINDS)
        for name, value in (("epsilon", epsilon), ("tolerance", tolerance)):
            if not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{name} must be a finite number above 0, got {value}")
        if not (regularisation >= 0 and math.isfinite(regularisation)):
            raise ValueError(f"regularisation must be a finite number at least 0, got {regularisation}")
        for name, count, least in (("batch_size", batch_size, 2), ("max_iterations", max_iterations, 1)):
            if count < least:
                raise ValueError(f"{name} must be at least {least}, got {count}")
        if cost == "free" and regularisation > 0:
            raise ValueError("a free cost has a closed form and takes no regularisation: set it to 0")
        self.kind = "module" if isinstance(cost, nn.Module) else cost
        self.ground: nn.Module | None = cost if isinstance(cost, nn.Module) else None
        self.epsilon = float(epsilon)
        self.regularisation = float(regularisation)
        self.batch_size, self.max_iterations = batch_size, max_iterations
        self.tolerance, self.seed = tolerance, seed
        self.report: FitReport | None = None

    @property
    def fitted(self) -> bool:
        """Whether there is a cost to call: after `fit` or `load_state_dict`, or a module of the user's."""
        return self.ground is not None

    def forward(self, x: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        """C (n, m) between x (n, d_x) and y (m, d_y); a free cost takes numbers of rows (n,) and columns (m,)."""
        return self._learned()(x, y)

    def _learned(self) -> nn.Module:
        if self.ground is None:
            raise RuntimeError("this cost has not been learned yet: call fit or load_state_dict first")
        return self.ground

    def fit(
        self, x: Tensor | None, y: Tensor | None, plan: Tensor | None = None, *, matches: Tensor | None = None
    ) -> InverseTransport:
        """Learns the cost from what was matched with what.

        Args:
            x: (n, d_x), any float dtype. None for a free cost.
            y: (m, d_y).
            plan: (n, m) An observed plan, nonnegative; it is scaled to the sum 1. None, and no `matches`: pairs, row k
                of x was matched with row k of y.
            matches: (k, 2) integers: rows of x and rows of y that were seen matched, as often as they were.

        Returns:
            Itself, with `ground` the learned cost and `report`.

        Raises:
            TypeError, ValueError: what was given does not fit together.
        """
        if plan is not None and matches is not None:
            raise ValueError("give either a plan or matches: both say what was matched with what")
        if self.kind == "free":
            return self._fit_free(x, y, plan, matches)
        x, y = _points("x", x), _points("y", y)
        if matches is not None:
            plan = plan_of_matches(matches, len(x), len(y)).to(x.device)
        problems = self._pairs(x, y) if plan is None else [(x, y)]
        if plan is not None:
            plan = _normalised(check_plan(plan, x.new_empty(len(x), len(y))))
        if self.kind != "module":
            self.ground = self._new_ground(x.shape[1], y.shape[1]).to(x.device)
        self._descend(self._learned(), problems, plan)
        return self

    def _fit_free(self, x, y, plan: Tensor | None, matches: Tensor | None) -> InverseTransport:
        if x is not None or y is not None or plan is None or matches is not None:
            raise ValueError("a free cost is fitted from a plan alone: fit(None, None, plan)")
        if not plan.is_floating_point() or plan.ndim != 2:
            raise ValueError(f"plan must be a float tensor (n, m), got {plan.dtype} {tuple(plan.shape)}")
        plan = _normalised(plan.detach().double())
        if not bool((plan > 0).all()):
            raise ValueError(
                f"{int((plan <= 0).sum())} of {plan.numel()} entries of the plan are 0, where a free cost is infinite: "
                "mix a little of the product of the marginals into it, or learn a bilinear cost"
            )
        free = FreeCost(*plan.shape).to(plan.device)
        with torch.no_grad():
            free.C.copy_(fix_gauge(-self.epsilon * plan.log()))
        self.ground = free
        self.report = FitReport(loss=0.0, gradient=0.0, evaluations=0, converged=True)
        return self

    def _new_ground(self, width_x: int, width_y: int) -> nn.Module:
        if self.kind == "bilinear":
            return BilinearCost(width_x, width_y)
        if width_x != width_y:
            raise ValueError(
                f"cost='mahalanobis' compares points of one space, but x has {width_x} columns and y {width_y}: "
                "choose cost='bilinear', which is every squared distance |L x - R y|^2 across widths"
            )
        return MahalanobisCost(width_x)

    def _pairs(self, x: Tensor, y: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Pairs as problems of one size, near `batch_size`."""
        if len(x) != len(y):
            raise ValueError(
                f"without a plan or matches row k of x goes with row k of y, but they have {len(x)} and {len(y)} rows"
            )
        if len(x) < 2:
            raise ValueError("one pair says nothing about a cost: give two or more")
        count = math.ceil(len(x) / self.batch_size)
        size = len(x) // count
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(self.seed)).to(x.device)
        rows = order[: size * count].split(size) if count > 1 else [slice(None)]
        return [(x[chosen], y[chosen]) for chosen in rows]

    @torch.enable_grad()
    def _descend(self, ground: nn.Module, problems: list[tuple[Tensor, Tensor]], plan: Tensor | None) -> None:
        parameters = [p for p in ground.parameters() if p.requires_grad]
        if not parameters:
            raise ValueError(f"the cost {type(ground).__name__} has no parameters that could be learned")
        optimizer = torch.optim.LBFGS(
            parameters,
            max_iter=self.max_iterations,
            max_eval=3 * self.max_iterations,
            tolerance_grad=self.tolerance,
            tolerance_change=0.0,
            history_size=_HISTORY,
            line_search_fn="strong_wolfe",
        )
        start: Tensor | None = None  # the potentials of the last evaluation
        evaluations, loss = 0, torch.tensor(0.0)

        def closure() -> Tensor:
            nonlocal start, evaluations, loss
            optimizer.zero_grad()
            cost = torch.stack([ground(x, y) for x, y in problems])
            # A tenth of what the gradient is asked for, since its error is a few times that of the marginals.
            values, result = matched(
                cost, plan, self.epsilon, tolerance=0.1 * self.tolerance, max_iterations=_MAX_SWEEPS, init=start
            )
            start, evaluations = result.column_potential, evaluations + 1
            value = values.mean() / self.epsilon
            loss = value.detach()
            penalty = sum(p.double().square().sum() for p in parameters)
            objective = value + 0.5 * self.regularisation * penalty
            objective.backward()
            return objective

        optimizer.step(closure)
        closure()
        gradient = max(float(p.grad.abs().max()) for p in parameters if p.grad is not None)
        optimizer.zero_grad()
        self.report = FitReport(float(loss), gradient, evaluations, gradient <= 2 * self.tolerance)
        if plan is None and self.regularisation == 0 and self.report.loss < _SEPARATED:
            warnings.warn(
                "this cost separates the pairs perfectly, so that the best one is infinite and this one is where the "
                "fit stopped: set regularisation (0.01, say)",
                stacklevel=3,
            )
        elif not self.report.converged:
            warnings.warn(
                f"the cost is not at its optimum after {evaluations} evaluations: its largest derivative is "
                f"{gradient:.1e}, asked for {self.tolerance:.1e}. Raise max_iterations or regularisation",
                stacklevel=3,
            )

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        # What is fitted takes its shape from the data: a fresh object takes it from the state.
        key = f"{prefix}ground.{_PARAMETERS.get(self.kind)}"
        if key in state_dict:
            shape = state_dict[key].shape
            if self.kind == "free":
                self.ground = FreeCost(*shape)
            else:
                self.ground = self._new_ground(shape[0], shape[1])
            self.ground.to(state_dict[key].device)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        return f"{self.kind}, epsilon={self.epsilon}, regularisation={self.regularisation}"


def plan_of_matches(matches: Tensor, rows: int, columns: int) -> Tensor:
    """The observed plan (rows, columns), float64, of sampled matches (k, 2): the share of each pair."""
    if matches.ndim != 2 or matches.shape[1] != 2 or matches.is_floating_point() or len(matches) == 0:
        raise ValueError(f"matches must be integers (k, 2), got {matches.dtype} {tuple(matches.shape)}")
    low, high = matches.amin(0).tolist(), matches.amax(0).tolist()
    if min(low) < 0 or high[0] >= rows or high[1] >= columns:
        raise ValueError(f"matches name rows up to {high[0]} of {rows} and columns up to {high[1]} of {columns}")
    flat = matches[:, 0] * columns + matches[:, 1]
    return torch.bincount(flat.long(), minlength=rows * columns).double().view(rows, columns) / len(matches)


def _points(name: str, points: Tensor | None) -> Tensor:
    if not isinstance(points, Tensor) or points.ndim != 2 or not points.is_floating_point():
        found = f"{points.dtype} {tuple(points.shape)}" if isinstance(points, Tensor) else type(points).__name__
        raise ValueError(f"{name} must be a float tensor (points, width), got {found}")
    if not bool(torch.isfinite(points).all()):
        raise ValueError(f"{name} has values that are not finite")
    return points.detach().double()


def _normalised(plan: Tensor) -> Tensor:
    plan = plan.double()
    total = float(plan.sum())
    if not (bool((plan >= 0).all()) and 0 < total < math.inf):
        raise ValueError("plan must be nonnegative, finite and not all 0")
    return plan / total
