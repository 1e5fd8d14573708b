"""One layer pair on its way through a loss on moments, whichever distance is taken of them."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from torch import Tensor

from ..ot.moments import MOST_ROWS, Gate, PairMoments, attach, attach_stacked, pair_moments, stacked_moments
from .collective import merge_over_processes, world_size
from .common import GradientGate


class Term:
    """A layer pair, how much its samples count, and the gate of its gradient.

    Args:
        pair: (student, teacher), (n, d_s) and (n, d_t).
        samples: (n,) How much each sample counts; None: all alike.

    Attributes:
        count: () Number of samples, or the sum of their weights; filled in by `share_moments`, as
        moments: of the whole batch, clean of what is not finite, differentiable.
    """

    def __init__(self, pair: tuple[Tensor, Tensor], samples: Tensor | None = None):
        self.student, self.teacher = pair
        self.samples = samples.detach() if samples is not None else None
        self.gate = GradientGate(self.student.device)
        self.count: Tensor
        self.moments: PairMoments


def share_moments(terms: Sequence[Term], *, global_batch: bool) -> None:
    """Fills in each term's moments, of the global batch if asked, clean of what is not finite, differentiable."""
    local = [pair_moments(term.student, term.teacher, term.samples) for term in terms]
    whole, scale = _whole(local, global_batch)
    for term, moments in zip(terms, whole, strict=True):
        finite = moments.is_finite()
        term.count = moments.count
        term.gate.close_unless(finite)
        clean = moments.where(finite, moments.zeros_like())
        sides = (term.gate(term.student), term.gate(term.teacher))
        term.moments = attach(clean, *sides, gradient_scale=scale, weights=term.samples)


class Stack:
    """Layer pairs of one shape, computed side by side: as many launches as for one, and as few calls.

    Args:
        students: (n, d_s) of each pair. teachers: (n, d_t).
        samples: (n,) of each pair, how much each sample counts; None: all alike.

    Attributes:
        moments: Stacked, of the whole batch, differentiable; those of a pair that is not finite are not, either.
        gate: (B,) flags: the pairs that have a gradient.
    """

    def __init__(self, students: Sequence[Tensor], teachers: Sequence[Tensor], samples: Sequence[Tensor] | None):
        self.students, self.teachers = list(students), list(teachers)
        self.samples = None if samples is None else [weights.detach() for weights in samples]
        self.moments: PairMoments
        self.gate: Gate


def stack_pairs(pairs: Sequence[tuple[Tensor, Tensor]], alike: Sequence[Hashable]) -> list[list[int]]:
    """Positions of the pairs that are computed in one stack: of one shape, equal in `alike`, and together no larger
    than a block of rows of one pair, so that nothing more is held in memory."""
    kinds: dict[Hashable, list[int]] = {}
    for i, ((student, teacher), kind) in enumerate(zip(pairs, alike, strict=True)):
        sides = ((x.shape, x.dtype, x.device, x.requires_grad) for x in (student, teacher))
        kinds.setdefault((*sides, kind), []).append(i)
    stacks = []
    for members in kinds.values():
        height = max(1, MOST_ROWS // max(1, len(pairs[members[0]][0])))
        stacks += [members[k : k + height] for k in range(0, len(members), height)]
    return stacks


def share_stacks(stacks: Sequence[Stack], *, global_batch: bool) -> None:
    """Fills in each stack's moments and its gate."""
    local = [stacked_moments(stack.students, stack.teachers, stack.samples) for stack in stacks]
    if global_batch and world_size() > 1:
        flat, scale = _whole([one for moments in local for one in moments.unstack()], global_batch)
        found = iter(flat)
        local = [PairMoments.stack([next(found) for _ in stack.students]) for stack in stacks]
    else:
        scale = 1.0
    for stack, moments in zip(stacks, local, strict=True):
        stack.gate = Gate(moments.is_finite())
        stack.moments = attach_stacked(
            moments, stack.students, stack.teachers, gradient_scale=scale, weights=stack.samples, gate=stack.gate
        )


def _whole(local: list[PairMoments], global_batch: bool) -> tuple[list[PairMoments], float]:
    """The moments of the whole batch, and the factor of their gradient.

    DDP averages gradients over processes where the sum of the local ones is the gradient of the global loss.
    """
    everywhere = global_batch and world_size() > 1
    return (merge_over_processes(local), float(world_size())) if everywhere else (local, 1.0)


def one_sample(moments: PairMoments, weighted: bool) -> Tensor:
    """() or (B,) Whether no two samples are there to compare. Of weights, the sum says little: all may be small."""
    few = moments.count < 2
    return few & ~((moments.var_s > 0).any(-1) | (moments.var_t > 0).any(-1)) if weighted else few
