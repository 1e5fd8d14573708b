"""Units of the cost in which a solver's numbers stay within the range of their dtype."""

from __future__ import annotations

import torch
from torch import Tensor

from .kernel import on_host

# Powers of two: costs further from 1 are brought to it. 1 / eps, and what is forbidden, lie up to 2^30 further out.
_PLAIN = {torch.float32: 60, torch.float64: 900}


def unit_of(matrix: Tensor, strength: Tensor, always: bool = False) -> Tensor | None:
    """(B,) Powers of two in which the largest finite cost of each problem (B, m, n) is from 1 to 2.

    None where `strength` (B,), what the solver divides costs by, is of a size that needs none. An accelerator is not
    asked: it gets units only if it does `always`.
    """
    if not always and (not on_host(matrix) or all(plain(matrix.dtype, size) for size in strength.tolist())):
        return None
    return power_of_two(matrix)


def plain(dtype: torch.dtype, strength: float) -> bool:
    """Whether costs that are divided by `strength` need no other unit."""
    return 2.0 ** -_PLAIN[dtype] < strength < 2.0 ** _PLAIN[dtype]


def power_of_two(matrix: Tensor) -> Tensor:
    """(B,) The power of two in which the largest finite cost of each problem (B, m, n) is from 1 to 2.

    1 where all are 0."""
    largest = torch.where(torch.isfinite(matrix), matrix, 0.0).abs().amax((-2, -1))
    exponent = torch.where(largest > 0, torch.frexp(largest).exponent - 1, 0).clamp_min(-126)
    return torch.ldexp(torch.ones_like(largest), exponent)
