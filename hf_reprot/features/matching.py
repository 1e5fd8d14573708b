"""`LayerPlan`: a soft matching of two models' layers, by transport over the costs between them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..ot import solve
from ..ot.cost import cost_from_moments
from ..ot.moments import pair_moments
from ..utils.messages import check_choice
from .architecture import block_layers, last_layer, spread, stage_layers
from .pairs import LayerPair
from .paths import unwrap
from .tables import TappedModel, pooled_tables

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
        >>> from hf_reprot.features.matching import plan_layers
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


# Cost matrices of one shape are solved side by side, as many as these numbers hold (128 MB in float32).
_NUMBERS = 1 << 25
# Layers are told apart by costs that differ in the second digit: the solver may stop early.
_TOLERANCE = 1e-2


@dataclass
class LayerCosts:
    """Costs between the layers of two models.

    Attributes:
        cost: (L_s, L_t) <P, M> of the optimal coupling of standardised neurons, from 0 (every neuron has its twin) to
            about 2. Not comparable between layers of different widths: see `chance`.
        chance: (L_s, L_t) The same after the teacher's samples were put into another order.
    """

    cost: Tensor
    chance: Tensor

    def relative(self) -> Tensor:
        """(L_s, L_t) cost / chance: 0 where every neuron has its twin, 1 where the layers have nothing in common.

        1, too, where a cost is not finite, or where nothing varies in a layer so that there is nothing to compare.
        """
        known = torch.isfinite(self.cost) & torch.isfinite(self.chance) & (self.chance > 1e-6)
        return torch.where(known, self.cost / torch.where(known, self.chance, 1.0), 1.0)


def shuffled(samples: int, seed: int = 0, device: torch.device | str = "cpu") -> Tensor:
    """(samples,) An order that takes every sample's partner away; the same for the same seed."""
    return torch.randperm(samples, generator=torch.Generator().manual_seed(seed)).to(device)


@torch.no_grad()
def layer_costs(student: Sequence[Tensor], teacher: Sequence[Tensor], *, seed: int = 0) -> LayerCosts:
    """Transport between the neurons of every student layer and those of every teacher layer.

    Many neurons find partners by chance more easily than few, and the more so the fewer the samples: the raw cost of a
    wide teacher layer is low for that reason alone. So every cost comes with that of the same two layers after the
    teacher's samples were shuffled.

    Args:
        student: Tables (n, d) of one layer each, of the same n samples in the same order.
        teacher: The same of the teacher.
        seed: Of the shuffled order.
    """
    shape = (len(student), len(teacher))
    found = {name: torch.empty(shape, dtype=torch.float64) for name in ("cost", "chance")}
    order = shuffled(len(student[0]), seed, student[0].device)
    tables = {"cost": list(teacher), "chance": [table[order] for table in teacher]}
    for name, theirs in tables.items():
        for group in _groups(student, theirs):
            matrices = torch.stack([cost_from_moments(pair_moments(student[i], theirs[j])) for i, j in group])
            # What is not finite would spoil its neighbours' iterations count, not their values; its own cost is NaN.
            costs = solve(matrices, tolerance=_TOLERANCE).cost.double().cpu()
            for (i, j), cost in zip(group, costs, strict=True):
                found[name][i, j] = cost
    return LayerCosts(**found)


def _groups(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Iterator[list[tuple[int, int]]]:
    """Pairs of layers whose cost matrices have the same shape, in bounded numbers."""
    shapes: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for i, s in enumerate(student):
        for j, t in enumerate(teacher):
            shapes.setdefault((s.shape[1], t.shape[1]), []).append((i, j))
    for (ds, dt), pairs in shapes.items():
        size = max(1, _NUMBERS // (ds * dt))
        yield from (pairs[start : start + size] for start in range(0, len(pairs), size))


def candidate_layers(
    model: nn.Module, kind: str = "blocks", positions: str = "pooled", most: int | None = None
) -> list[str]:
    """Every block (or stage) of a model, in order of depth, then the representation before the head.

    Args:
        model: The unwrapped model.
        kind: "blocks" or "stages".
        positions: What the last one is: "pooled" or "all", as for "last" in `match_pairs`.
        most: Blocks at most; of more, those at even distances are taken.

    Raises:
        ValueError: no blocks or stages were found.
    """
    found = block_layers(model) if kind == "blocks" else stage_layers(model)
    if most is not None and len(found) > most:
        found = spread(found, most)
    last = last_layer(model, positions)
    return [*found, *([last] if last not in found else [])]


def match_layers(
    student: nn.Module,
    teacher: nn.Module,
    batches: Iterable[Any],
    *,
    student_layers: Sequence[str] | None = None,
    teacher_layers: Sequence[str] | None = None,
    tokens: str = "auto",
    order_prior: float = 0.0,
    keep: int | None = None,
    method: str = "exact",
    relative_epsilon: float | None = None,
) -> LayerPlan:
    """Matches the layers of two models of any depths and architectures.

    Two layers cost what it costs to transport one's neurons to the other's, in units of what shuffled samples give; a
    second transport over these costs matches the layers. Run in evaluation mode and without gradients; the models are
    left as they were.

    Args:
        student, teacher: The models, on one device.
        batches: What both models take: tensors, or dictionaries of keyword arguments; or tuples (the student's,
            the teacher's) of the same samples. A few hundred samples, more than the layers have neurons, are enough.
        student_layers, teacher_layers: Layers as `Taps` takes them, in order of depth; None: every block, then the
            representation before the head (`candidate_layers`).
        tokens: As in `pair_neurons`: which tokens of a transformer are pooled.
        order_prior, keep, method, relative_epsilon: As in `plan_layers`.

    Raises:
        ValueError: layers that do not exist or are not known, or fewer than two samples.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from hf_reprot.features.matching import match_layers
        >>> def mlp(seed):
        ...     torch.manual_seed(seed)
        ...     return nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(3)))
        >>> found = match_layers(mlp(0), mlp(0), [torch.randn(64, 8)], student_layers="012", teacher_layers="012")
        >>> found.plan
        tensor([[0.3333, 0.0000, 0.0000],
                [0.0000, 0.3333, 0.0000],
                [0.0000, 0.0000, 0.3333]])

    References: see `plan_layers`.
    """
    models = [unwrap(student), unwrap(teacher)]
    given = (student_layers, teacher_layers)
    names = [list(g) if g is not None else candidate_layers(m) for g, m in zip(given, models, strict=True)]
    parts: list[list[list[Tensor]]] = [[], []]
    with contextlib.ExitStack() as stack:
        tapped = [stack.enter_context(TappedModel(m, layers)) for m, layers in zip(models, names, strict=True)]
        for batch in batches:
            for side, inputs in enumerate(batch if isinstance(batch, tuple) else (batch, batch)):
                _, caught = tapped[side].run(partial(_forward, models[side], inputs))
                mask = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
                parts[side].append(pooled_tables(caught, names[side], tokens, mask))
    ours, theirs = ([torch.cat(layer) for layer in zip(*batches, strict=True)] for batches in parts)
    if not ours or len(ours[0]) < 2:
        raise ValueError("matching layers needs at least two samples")
    costs = layer_costs(ours, theirs)
    return plan_layers(
        costs.relative(), *names, order_prior=order_prior, keep=keep, method=method, relative_epsilon=relative_epsilon
    )


def _forward(model: nn.Module, inputs: Any) -> Any:
    return model(**inputs) if isinstance(inputs, Mapping) else model(inputs)
