"""What it costs to match one layer with another: transport between their neurons, and what chance alone would give."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..ot import solve
from ..ot.cost import cost_from_moments
from ..ot.moments import pair_moments

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
