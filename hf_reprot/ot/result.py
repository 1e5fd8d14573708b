"""What a solver returns."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor


@dataclass
class OTResult:
    """The solution of one transport problem, or of a batch of them (leading dimensions `...`).

    Attributes:
        value: (...) What the method minimises, differentiable in the cost matrix and the weights: with `sinkhorn`
            <P, M> + eps KL(P | a b'), as its dual value f.a + g.b; with every other method <P, M>.
        cost: (...) <P, M>, detached: what to compare methods and controls by.
        plan: (..., m, n) The coupling P, detached; its rows sum to a.
        potentials: Dual potentials f (..., m) and g (..., n) in units of the cost; None for the controls.
        marginal_error: (...) L1 distance between the plan's column sums and b.
        iterations: (...) Sweeps (or proximal steps) made.
        converged: (...) Whether the tolerance was reached; False too where the cost held a NaN, or where no plan avoids
            every forbidden match.
        epsilon: (...) Entropic or proximal strength in units of the cost; None where the method has none.
    """

    value: Tensor
    cost: Tensor
    plan: Tensor
    potentials: tuple[Tensor, Tensor] | None
    marginal_error: Tensor
    iterations: Tensor
    converged: Tensor
    epsilon: Tensor | None = None

    @property
    def column_potential(self) -> Tensor:
        """The dual potential g (..., n).

        Raises:
            ValueError: the method has no potentials.
        """
        if self.potentials is None:
            raise ValueError("this method has no dual potentials: solve with 'sinkhorn', 'proximal' or 'exact'")
        return self.potentials[1]

    def __getitem__(self, index: Any) -> OTResult:
        """The solution of some of a batch's problems; `index` goes to the leading dimensions."""
        return OTResult(**{f.name: _index(getattr(self, f.name), index) for f in fields(self)})


def _index(part: Tensor | tuple[Tensor, ...] | None, index: Any) -> Any:
    if part is None:
        return None
    return tuple(p[index] for p in part) if isinstance(part, tuple) else part[index]


@dataclass
class Solution:
    """Plan (B, m, n), potentials f (B, m), g (B, n), L1 error of the columns, iterations, converged (B,)."""

    plan: Tensor
    f: Tensor
    g: Tensor
    error: Tensor
    iterations: Tensor
    converged: Tensor


@dataclass
class ValuedSolution(Solution):
    """With <P, M> and the value (B,), and epsilon (B,) where the method has one."""

    cost: Tensor
    value: Tensor
    epsilon: Tensor | None


@dataclass
class Limits:
    """When to stop: L1 error of the marginals, the maximum number of iterations, and whether they have momentum."""

    tolerance: float
    max_iterations: int
    accelerate: bool = True
