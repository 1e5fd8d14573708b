"""What the iterative solvers hand to `solve`, before shapes are restored."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


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
class Limits:
    """When to stop: L1 error of the marginals, and sweeps at most; and whether sweeps have momentum."""

    tolerance: float
    max_iterations: int
    accelerate: bool = True
