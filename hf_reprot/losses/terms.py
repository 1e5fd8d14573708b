"""One layer pair on its way through a loss on moments, whichever distance is taken of them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..ot.moments import PairMoments, attach, pair_moments
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
    everywhere = global_batch and world_size() > 1
    whole = merge_over_processes(local) if everywhere else local
    for term, moments in zip(terms, whole, strict=True):
        finite = moments.is_finite()
        term.count = moments.count
        term.gate.close_unless(finite)
        clean = moments.where(finite, moments.zeros_like())
        # DDP averages gradients over processes where the sum of the local ones is the gradient of the global loss.
        scale = float(world_size()) if everywhere else 1.0
        sides = (term.gate(term.student), term.gate(term.teacher))
        term.moments = attach(clean, *sides, gradient_scale=scale, weights=term.samples)


def one_sample(term: Term) -> Tensor:
    """() Whether no two samples are there to compare. Of weights, the sum says little: all of them may be small."""
    few = term.count < 2
    return few if term.samples is None else few & ~((term.moments.var_s > 0).any() | (term.moments.var_t > 0).any())
