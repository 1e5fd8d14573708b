"""Transport between two layers' sets of neurons seen as Gaussians: the best rotation of one onto the other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..ot.cost import varies
from ..ot.gaussian import DEFAULT_RELATIVE_EPSILON, check_epsilon, solve_gaussian
from ..ot.moments import PairMoments, RunningMoments
from ..settings.names import TEACHER_MASS
from ..utils.messages import check_choice
from .collective import world_size
from .common import LossOutput, check_sides
from .terms import Term, one_sample, share_moments


class GaussianTransport(nn.Module):
    """Cost of the best orthogonal map between the neurons of a student layer and those of a teacher layer.

    A neuron is the function that its activations draw over the data: a point in R^n. Where `RepresentationTransport`
    moves one set of points onto the other neuron by neuron, this moves the Gaussian with the second moments of the one
    onto that of the other. With X (n, d_s) the student's standardised neurons and Y (n, d_t) the teacher's, each times
    the root of its mass over n, the value is the (entropic) Wasserstein distance of N(0, X X') and N(0, Y Y'):

        W = tr(XX') + tr(YY') - 2 ||X'Y||_*      (eps -> 0; || ||_* is the sum of the singular values)

    It never exceeds the value of the transport between the neurons themselves (Gelbrich's bound), and equals
    min over orthogonal Q of || X Q - Y ||^2: Procrustes' distance. So a student neuron learns a direction of the
    teacher's space, not the mean of the d_t / d_s neurons that fall to it: a narrow student learns as many directions
    as it has neurons. No projector is learned, and widths may differ.

    Args:
        relative_epsilon: Entropic strength in units of the root mean square of the singular values of X'Y; None: 0.1.
            More follows the teacher's main directions only.
        teacher_mass: "variance": each teacher neuron weighs as much as its variance, so that loud directions come
            first; "uniform": all the same.
        global_batch: As in `RepresentationTransport`.

    Inputs:
        | tensor | shape | gradient |
        |---|---|---|
        | student | (n, d_s), any float dtype | yes |
        | teacher | (n, d_t), any float dtype | where it requires one |
        | sample_weights (optional) | (n,), from 0 to 1: how much each sample counts | no |

    Requirements: row k of both inputs comes from the same sample; at least two samples in the global batch (with one,
    the value is 0 and `logs["skipped"]` says so).

    Returns: `LossOutput` with `loss`; `plan`, the squares of the coupling's entries brought to sum 1: how much of a
    student neuron comes from which teacher neuron, and of a permuted copy the permutation; and `logs`: cost (without
    the entropy's share), plan_entropy, off_identity (equal widths), dropped, skipped, teacher_variance, as in
    `RepresentationTransport`.

    Relations: as eps grows the gradient becomes that of the squared cross moments, as in CKA. `GaussianWasserstein`
    compares the Gaussians of the samples, not of the neurons, and needs a projector for unequal widths. For a student
    that is a permuted or pruned copy, where the neurons themselves correspond, `RepresentationTransport` says which.

    Example:
        >>> import torch
        >>> from hf_reprot.losses import GaussianTransport
        >>> teacher = torch.randn(256, 48)
        >>> rotation = torch.linalg.qr(torch.randn(48, 48)).Q
        >>> loss = GaussianTransport(relative_epsilon=1e-3, teacher_mass="uniform")
        >>> bool(loss(teacher, teacher).loss < 0.02), bool(loss(torch.randn(256, 48), teacher).loss > 0.5)
        (True, True)

    References: Gelbrich, 1990; Janati, Muzellec, Peyre, Cuturi: "Entropic optimal transport between unbalanced Gaussian
    measures has a closed form", NeurIPS 2020; Harvey, Larsen, Williams: "Duality of Bures and Shape Distances with
    Implications for Comparing Neural Representations", 2023.
    """

    def __init__(
        self, relative_epsilon: float | None = None, teacher_mass: str = "variance", global_batch: bool = True
    ):
        super().__init__()
        check_choice("teacher_mass", teacher_mass, TEACHER_MASS)
        check_epsilon(relative_epsilon=relative_epsilon)
        self.relative_epsilon = DEFAULT_RELATIVE_EPSILON if relative_epsilon is None else relative_epsilon
        self.teacher_mass = teacher_mass
        self.global_batch = global_batch

    def forward(self, student: Tensor, teacher: Tensor, *, sample_weights: Tensor | None = None) -> LossOutput:
        """One layer pair: see the class."""
        return self.forward_pairs([(student, teacher)], sample_weights=[sample_weights])[0]

    def forward_pairs(
        self,
        pairs: Sequence[tuple[Tensor, Tensor]],
        *,
        running: Sequence[RunningMoments] | None = None,
        sample_weights: Sequence[Tensor | None] | None = None,
    ) -> list[LossOutput]:
        """Several layer pairs at once, with one exchange between processes.

        Args:
            pairs: (student, teacher) neurons of each layer pair, as in `forward`.
            running: For each pair the moments to carry: the coupling is solved on them, the gradient taken on
                the batch.
            sample_weights: For each pair how much each sample counts (n,), or None: all alike.

        Returns:
            One `LossOutput` a pair.
        """
        counts = list(sample_weights) if sample_weights is not None else [None] * len(pairs)
        for (student, teacher), count in zip(pairs, counts, strict=True):
            check_sides(student, teacher, "(samples, neurons)", 2)
            if count is not None and tuple(count.shape) != (len(student),):
                raise ValueError(f"sample_weights must have shape ({len(student)},), got {tuple(count.shape)}")
        device_type = pairs[0][0].device.type if pairs else "cpu"
        with torch.autocast(device_type=device_type, enabled=False):
            terms = [Term(pair, count) for pair, count in zip(pairs, counts, strict=True)]
            share_moments(terms, global_batch=self.global_batch)
            return [self._output(term, running[i] if running is not None else None) for i, term in enumerate(terms)]

    def _output(self, term: Term, running: RunningMoments | None) -> LossOutput:
        cross, masses, scale = self._cross(term.moments)
        if running is not None:
            carried, *_ = self._cross(running.update(term.moments, keep=term.gate.open))
            coupling = solve_gaussian(carried, relative_epsilon=self.relative_epsilon).coupling
            value = masses - 2 * (coupling * cross).sum()  # a constant that weighs this batch's cross moments
        else:
            few = len(term.student) * 2 < min(cross.shape) and not (self.global_batch and world_size() > 1)
            basis = _basis(term.student, term.moments, scale) if few else None
            rank = term.count - 1
            result = solve_gaussian(cross, relative_epsilon=self.relative_epsilon, rank=rank, basis=basis)
            coupling, value = result.coupling, masses - result.overlap
        term.gate.close_unless(torch.isfinite(value.detach()))
        loss = torch.where(term.gate.open, value, torch.zeros_like(value))
        return LossOutput(loss, logs=_diagnostics(term, coupling, cross, masses), plan=_shares(coupling))

    def _cross(self, moments: PairMoments) -> tuple[Tensor, Tensor, Tensor]:
        """X'Y (d_s, d_t); tr(XX') + tr(YY'): the masses, less those of constant neurons; the factor of each neuron."""
        alive_s, alive_t = varies(moments.mean_s, moments.var_s), varies(moments.mean_t, moments.var_t)
        inverse_s = torch.where(alive_s, torch.where(alive_s, moments.var_s, 1.0).rsqrt(), 0.0)
        inverse_s = inverse_s * len(inverse_s) ** -0.5
        if self.teacher_mass == "variance":
            # Each teacher neuron over its deviation, times the root of its share of the variance.
            total = torch.where(alive_t, moments.var_t, 0.0).sum()
            scale = torch.where(total > 0, torch.where(total > 0, total, 1.0).rsqrt(), 0.0)
            inverse_t, mass_t = torch.where(alive_t, scale, 0.0), (total > 0).to(total)
        else:
            inverse_t = torch.where(alive_t, torch.where(alive_t, moments.var_t, 1.0).rsqrt(), 0.0)
            inverse_t, mass_t = inverse_t * len(inverse_t) ** -0.5, alive_t.to(inverse_t).mean()
        return moments.cov * inverse_s[:, None] * inverse_t, alive_s.to(inverse_s).mean() + mass_t, inverse_s

    def extra_repr(self) -> str:
        names = ("relative_epsilon", "teacher_mass", "global_batch")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)


def _basis(student: Tensor, moments: PairMoments, scale: Tensor) -> Tensor:
    """(d_s, n) Orthonormal columns that span those of X'Y, whatever Y: there are fewer samples than neurons."""
    with torch.no_grad():
        centred = student.to(moments.mean_s) - moments.mean_s
        return torch.linalg.qr((torch.nan_to_num(centred) * scale).mT).Q


def _shares(coupling: Tensor) -> Tensor:
    """The coupling as a plan: nonnegative, with sum 1."""
    squares = coupling.square()
    return squares / squares.sum().clamp_min(torch.finfo(squares.dtype).tiny)


def _diagnostics(term: Term, coupling: Tensor, cross: Tensor, masses: Tensor) -> dict[str, Tensor]:
    """Detached scalars for the log; no host synchronisation."""
    with torch.no_grad():
        plan = _shares(coupling).float()
        rows = plan.sum(-1)
        logs = {
            "cost": (masses - 2 * (coupling * cross).sum()).float(),
            "plan_entropy": torch.special.xlogy(rows, rows).sum() - torch.special.xlogy(plan, plan).sum(),
            "dropped": 1.0 - term.gate.open.float(),
            "skipped": one_sample(term.moments, term.samples is not None).float(),
            "teacher_variance": term.moments.var_t.mean().float(),
        }
        if plan.shape[0] == plan.shape[1]:
            logs["off_identity"] = 1.0 - plan.diagonal().sum()
        return {name: torch.nan_to_num(value.detach()) for name, value in logs.items()}
