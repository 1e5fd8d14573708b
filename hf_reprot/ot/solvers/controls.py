"""Couplings that optimise nothing: what a claim for optimal transport is compared with."""

from __future__ import annotations

import torch
from torch import Tensor

_KEPT = 64  # shapes whose orders are kept on their device
_known: dict[tuple[int, int, torch.device], tuple[Tensor, Tensor]] = {}
_SEED = 0  # the random pairing is the same in every step, process and run


def control_plan(method: str, a: Tensor, b: Tensor) -> Tensor:
    """The plan (batch, m, n) of a control, for marginals a (batch, m) and b (batch, n).

    `identity` pairs neuron i with neuron i. `independent` is a b'. `random` couples the neurons in two fixed random
    orders by the north-west corner rule: with m = n and uniform marginals, a fixed permutation.

    Raises:
        ValueError: `identity` with m != n.
    """
    if method == "identity":
        if a.shape[-1] != b.shape[-1]:
            raise ValueError(
                f"method='identity' pairs neuron i with neuron i and needs equal widths, got {a.shape[-1]} and "
                f"{b.shape[-1]}: use 'random' or 'independent' as a control here"
            )
        return torch.diag_embed(a)
    if method == "independent":
        return a[..., :, None] * b[..., None, :]
    rows, columns = _orders(a.shape[-1], b.shape[-1], a.device)
    plan = torch.empty(*a.shape, b.shape[-1], dtype=a.dtype, device=a.device)
    plan[..., rows[:, None], columns] = _north_west(a[..., rows], b[..., columns])
    return plan


def _orders(m: int, n: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The fixed orders of m rows and n columns, copied to a device once."""
    key = m, n, device
    if key not in _known:
        generator = torch.Generator().manual_seed(_SEED)
        rows, columns = (torch.randperm(size, generator=generator).to(device) for size in (m, n))
        if type(rows) is not Tensor:  # traced: of no use to a later call
            return rows, columns
        if len(_known) >= _KEPT:
            _known.clear()
        _known[key] = rows, columns
    return _known[key]


def _north_west(a: Tensor, b: Tensor) -> Tensor:
    """P_ij = length of the overlap of the i-th interval of a and the j-th of b, both laid end to end from 0."""
    ends_a, ends_b = a.double().cumsum(-1), b.double().cumsum(-1)
    right = torch.minimum(ends_a[..., :, None], ends_b[..., None, :])
    left = torch.maximum((ends_a - a)[..., :, None], (ends_b - b)[..., None, :])
    overlap = (right - left).clamp_min(0)
    # What rounding of the ends leaves is no mass.
    return torch.where(overlap > 1e-9 * a.sum(-1)[..., None, None], overlap, 0.0).to(a.dtype)
