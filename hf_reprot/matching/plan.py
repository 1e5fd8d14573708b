"""`LayerPlan`: a soft matching of two models' layers, by transport over the costs between them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..choices import check_choice
from ..ot import solve
from .pairs import LayerPair

OUTER = ("exact", "sinkhorn")


@dataclass
class LayerPlan:
    """How the layers of a student and of a teacher go together.

    Attributes:
        plan: (L_s, L_t) Share of each pair; every student layer carries 1 / L_s, every teacher layer 1 / L_t.
        cost: (L_s, L_t) What the plan was made from: the transport between two layers' neurons in units of what chance
            gives (0: the same neurons, 1: nothing in common), without the order prior.
        student_layers, teacher_layers: Names, in order of depth.
    """

    plan: Tensor
    cost: Tensor
    student_layers: list[str]
    teacher_layers: list[str]

    @property
    def value(self) -> float:
        """<plan, cost>: how far apart the two models are, from 0 to about 1."""
        return float((self.plan * self.cost).sum())

    @property
    def depth_correlation(self) -> float:
        """Rank correlation of the depths of matched layers: 1 where depth goes with depth, 0 without any order.

        Pearson's correlation of i and j under the plan, that is Spearman's of the matched layers, since they are ranks.
        NaN where a model has one layer only.
        """
        plan = self.plan.double()
        plan = plan / plan.sum()
        i, j = (torch.arange(size, dtype=torch.float64) for size in plan.shape)
        i, j = i - plan.sum(1) @ i, j - plan.sum(0) @ j
        scale = ((plan.sum(1) @ i.square()) * (plan.sum(0) @ j.square())).sqrt()
        return float((i @ plan @ j) / scale) if scale > 0 else math.nan

    @property
    def entropy(self) -> float:
        """Mean entropy of a student layer's row, in nats: 0 where each has one partner, log(L_t) where it has all."""
        rows = self.plan.double() / self.plan.double().sum(1, keepdim=True)
        return float(-torch.special.xlogy(rows, rows).sum(1).mean())

    def sparse(self, keep: int) -> LayerPlan:
        """The same with the `keep` largest entries of each row, which take over the mass of the others.

        Raises:
            ValueError: keep is below 1.
        """
        return LayerPlan(_kept(self.plan, keep), self.cost, self.student_layers, self.teacher_layers)

    def pairs(self, teacher_index: int = 0) -> list[LayerPair]:
        """The pairs that carry mass, with it as their weight."""
        return [
            LayerPair(self.student_layers[i], self.teacher_layers[j], float(self.plan[i, j]), teacher_index)
            for i, j in self.plan.gt(0).nonzero().tolist()
        ]

    def greedy(self) -> list[int]:
        """For each student layer, the teacher layer that costs least: the cheap control, which uses few of them."""
        return self.cost.argmin(1).tolist()


def plan_layers(
    cost: Tensor,
    student_layers: Sequence[str] | None = None,
    teacher_layers: Sequence[str] | None = None,
    *,
    order_prior: float = 0.0,
    keep: int | None = None,
    method: str = "exact",
    relative_epsilon: float | None = None,
) -> LayerPlan:
    """The outer transport: matches layers, given what it costs to match any two of them.

        min_P <P, C> + order_prior * sum_ij P_ij (i / (L_s - 1) - j / (L_t - 1))^2       P 1 = 1/L_s,  P' 1 = 1/L_t

    Equal shares on both sides: a model of fewer layers spreads each over several of the deeper one, and no layer is
    left out, where taking the cheapest partner of each (`LayerPlan.greedy`) would use a few of them again and again.

    Args:
        cost: C (L_s, L_t), finite.
        student_layers, teacher_layers: Names, in order of depth; None: their numbers.
        order_prior: Weight of the penalty on pairs of different relative depth, in units of C; 0 leaves order to be
            found.
        keep: Keep this many teacher layers of each student layer; None: all that carry mass.
        method: "exact" (sparse: at most L_s + L_t - 1 pairs), or "sinkhorn" for a softer plan.
        relative_epsilon: Of `solve`, for "sinkhorn".

    Raises:
        ValueError: a cost that is no finite matrix, names that do not fit it, or a setting that is out of range.

    Example:
        >>> import torch
        >>> from hf_reprot.matching import plan_layers
        >>> plan_layers(torch.tensor([[0.1, 0.2, 0.9, 0.9], [0.8, 0.9, 0.3, 0.2]])).plan
        tensor([[0.2500, 0.2500, 0.0000, 0.0000],
                [0.0000, 0.0000, 0.2500, 0.2500]])

    References: the hierarchy of transports is that of Yurochkin et al., "Hierarchical Optimal Transport for Document
    Representation", NeurIPS 2019 (arXiv 1906.10827), there over words and topics; over neurons and layers, Shah, Khosla
    (arXiv 2510.01706), there to compare networks.
    """
    check_choice("method", method, OUTER)
    if not isinstance(cost, Tensor) or cost.ndim != 2 or 0 in cost.shape or not bool(torch.isfinite(cost).all()):
        raise ValueError("cost must be a finite matrix (student layers, teacher layers)")
    if not (math.isfinite(order_prior) and order_prior >= 0):
        raise ValueError(f"order_prior must be a finite number of at least 0, got {order_prior}")
    names = [
        list(given) if given is not None else [str(i) for i in range(size)]
        for given, size in zip((student_layers, teacher_layers), cost.shape, strict=True)
    ]
    if tuple(map(len, names)) != tuple(cost.shape):
        raise ValueError(f"cost is {tuple(cost.shape)}, but there are {len(names[0])} and {len(names[1])} names")
    cost = cost.detach().double().cpu()
    i, j = (torch.arange(size, dtype=torch.float64) / max(size - 1, 1) for size in cost.shape)
    whole = cost + order_prior * (i[:, None] - j).square()
    plan = solve(whole, method=method, relative_epsilon=relative_epsilon, tolerance=1e-6).plan
    # What the solver leaves of an empty entry would be a pair of its own.
    plan = torch.where(plan > 1e-6 * plan.max(), plan, 0.0)
    plan = plan if keep is None else _kept(plan, keep)
    return LayerPlan(plan.float(), cost.float(), *names)


def _kept(plan: Tensor, keep: int) -> Tensor:
    if keep < 1:
        raise ValueError(f"keep must be at least 1, got {keep}")
    keep = min(keep, plan.shape[1])
    top = plan.topk(keep, dim=1)
    kept = torch.zeros_like(plan).scatter(1, top.indices, top.values)
    return kept * (plan.sum(1) / kept.sum(1)).unsqueeze(1)
