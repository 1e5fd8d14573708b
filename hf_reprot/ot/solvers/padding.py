"""Pairs of different shapes in one call of the solver: padded with neurons of weight 0."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..kernels import MOST_COLUMNS
from ..result import OTResult
from .kernel import on_host

PADDABLE = ("sinkhorn", "proximal")
# Entries of a padded batch up to which padding costs nothing that counts: 8 MB of float32 are read out of an
# accelerator's cache in about 2 microseconds, where the launches of one sweep take 5 to 25. Arithmetic, not measured.
FREE = 1 << 21
# Beyond that, how many times the entries of its pairs a padded batch may have.
_WASTE = 1.25
# How many times the entries of its largest pair a padded pair may have (512 x 64 and 64 x 512 make 512 x 512).
_GROWTH = 2


def groups(matrices: Sequence[Tensor], method: str, *, pad: bool | None = None) -> list[list[int]]:
    """Which problems are solved in one call: those of one shape, and on an accelerator others, too, where padding pays.

    On a CPU a padded entry costs as much as any other, and calls cost little: there every shape is a call of its own.

    Args:
        matrices: Costs (m, n) of each problem.
        method: As in `solve`. Controls and "exact" are not padded.
        pad: Whether shapes may be mixed; None: on an accelerator.

    Returns:
        Positions in `matrices`, each in one group.
    """
    kinds: dict[tuple, list[int]] = {}
    for i, matrix in enumerate(matrices):
        kinds.setdefault((matrix.device, matrix.dtype, *matrix.shape), []).append(i)
    found: list[_Group] = []
    # The largest first: what joins a group later is padded up to it.
    for members in sorted(kinds.values(), key=lambda members: -matrices[members[0]].numel()):
        one = matrices[members[0]]
        mixes = method in PADDABLE and (not on_host(one) if pad is None else pad)
        if not (mixes and any(group.takes(one, members) for group in found)):
            found.append(_Group(one, members))
    return [group.members for group in found]


class _Group:
    def __init__(self, one: Tensor, members: list[int]):
        self.kind, self.largest = (one.device, one.dtype), one.numel()
        self.shape = one.shape[0], one.shape[1]
        self.members, self.entries = list(members), len(members) * one.numel()

    def takes(self, one: Tensor, members: list[int]) -> bool:
        """Takes more problems in, if padding all to a common shape is worth it."""
        m, n = common = max(self.shape[0], one.shape[0]), max(self.shape[1], one.shape[1])
        entries = self.entries + len(members) * one.numel()
        worth = (len(self.members) + len(members)) * m * n <= max(FREE, _WASTE * entries)
        alike = self.kind == (one.device, one.dtype) and (n > MOST_COLUMNS) == (one.shape[1] > MOST_COLUMNS)
        if not (alike and worth and m * n <= _GROWTH * self.largest):
            return False
        self.shape, self.entries = common, entries
        self.members.extend(members)
        return True


def stack_padded(matrices: Sequence[Tensor]) -> Tensor:
    """(B, m, n) out of costs of any shapes (m_i, n_i), differentiable.

    The neurons that are added copy the last one of their side. A copy changes no minimum and no maximum, so that with
    weight 0 it changes nothing at all: not where the solver starts, not where it ends.
    """
    if len(matrices) == 1:
        return matrices[0][None]
    m, n = max(x.shape[0] for x in matrices), max(x.shape[1] for x in matrices)
    return torch.stack([_padded(matrix, m, n) for matrix in matrices])


def cat_padded(stacks: Sequence[Tensor]) -> Tensor:
    """`stack_padded` of stacks (B_i, m_i, n_i) of costs: (B, m, n)."""
    if len(stacks) == 1:
        return stacks[0]
    m, n = max(x.shape[-2] for x in stacks), max(x.shape[-1] for x in stacks)
    return torch.cat([_padded(stack, m, n) for stack in stacks])


def cat_weights(weights: Sequence[Tensor | None], shapes: Sequence[Sequence[int]], like: Tensor) -> Tensor | None:
    """`stack_weights` of stacks: (B_i, m_i) or None, where `shapes` are (B_i, m_i)."""
    most = max(size for _, size in shapes)
    if all(w is None for w in weights) and min(size for _, size in shapes) == most:
        return None
    parts = [
        like.new_full(shape, 1 / shape[1]) if w is None else w.to(like)
        for w, shape in zip(weights, shapes, strict=True)
    ]
    return torch.cat([torch.nn.functional.pad(part, (0, most - part.shape[1])) for part in parts])


def stack_weights(weights: Sequence[Tensor | None], sizes: Sequence[int], like: Tensor) -> Tensor | None:
    """(B, m) weights of neurons, 0 for those that are added; None where all are uniform and nothing is added.

    Args:
        weights: (m_i,) of each problem; None: uniform.
        sizes: m_i of each problem.
        like: Gives device and dtype.
    """
    most = max(sizes)
    if all(w is None for w in weights) and min(sizes) == most:
        return None
    rows = [like.new_full((k,), 1 / k) if w is None else w.to(like) for w, k in zip(weights, sizes, strict=True)]
    return torch.stack([torch.nn.functional.pad(row, (0, most - len(row))) for row in rows])


def without_padding(result: OTResult, index: int | slice, m: int, n: int) -> OTResult:
    """The solutions of one problem, or of some, out of a padded batch's."""
    one = result[index]
    one.plan = one.plan[..., :m, :n].contiguous()
    if one.potentials is not None:
        f, g = one.potentials
        one.potentials = f[..., :m].contiguous(), g[..., :n].contiguous()
    return one


def _padded(matrix: Tensor, m: int, n: int) -> Tensor:
    rows, columns = m - matrix.shape[-2], n - matrix.shape[-1]
    # Without a gradient: what nobody is matched with has none.
    if rows:
        matrix = torch.cat([matrix, matrix[..., -1:, :].detach().expand(*matrix.shape[:-2], rows, -1)], -2)
    if columns:
        matrix = torch.cat([matrix, matrix[..., -1:].detach().expand(*matrix.shape[:-1], columns)], -1)
    return matrix
