"""The transport between a student's neurons and a teacher's: the regulariser of hf.co/papers/2007.06737."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..ot.cost import cost_from_moments, varies
from ..ot.moments import PairMoments, RunningMoments
from ..ot.result import OTResult
from ..ot.solve import solve
from ..ot.solvers.padding import cat_padded, cat_weights, groups, without_padding
from ..settings.names import COSTS, DEAD_NEURONS, METHODS
from ..utils.messages import check_choice
from .common import LossOutput, check_sides
from .terms import Stack, one_sample, share_stacks, stack_pairs


class RepresentationTransport(nn.Module):
    """Cost of the best matching between the neurons of a student layer and those of a teacher layer.

    A neuron is the function that its activations draw over the data. With S (n, d_s) and T (n, d_t) the activations of
    two layers on the same n samples, the ground cost between student neuron i and teacher neuron j is
    M_ij = (1/n) sum_k (S_ki - T_kj)^2, and the loss is the value of the optimal transport between the two sets:

        sinkhorn            W = min_P <P, M> + eps KL(P | a b')        P >= 0,  P 1 = a,  P' 1 = b
        proximal, exact     W = min_P <P, M>

    Its gradient in M is the optimal P (envelope theorem): nothing is unrolled. With `standardize`, each neuron is
    brought to zero mean and unit variance first, so that M_ij = 2 (1 - corr_ij), whatever the neurons' scales.
    Neurons may come in any order, and the two layers may have different widths.

    Args:
        cost: Ground cost between two neurons: "sqeuclidean".
        standardize: Compare neurons by correlation (True) or by their raw values (False).
        method: "sinkhorn", "proximal" (no entropic bias), "exact" (CPU), or a control: "identity" (neuron i with
            neuron i), "random" (a fixed permutation), "independent" (everyone with everyone).
        relative_epsilon: Entropic or proximal strength in units of the pair's mean cost; None: 0.01 for sinkhorn, 0.2
            for proximal.
        epsilon: The same in units of the cost; overrides `relative_epsilon`.
        debiased: Sinkhorn divergence W(S,T) - W(S,S)/2 - W(T,T)/2, one epsilon in all three: 0 at S = T, and without
            the pull of every student neuron toward the teachers' mean. Only with "sinkhorn".
        tolerance: L1 error of the marginals at which the solver stops.
        max_iterations: Sweeps at most.
        dead_neurons: "keep", or "ignore": a neuron that is constant over the samples gets weight 0.
        global_batch: In a distributed run, match the neurons on the samples of all processes: each sees the value and
            the gradient that one process would on the whole batch. False: each process matches on its own samples.

    Inputs:
        | tensor | shape | gradient |
        |---|---|---|
        | student | (n, d_s), any float dtype | yes |
        | teacher | (n, d_t), any float dtype | where it requires one |
        | plan (optional) | (d_s, d_t), nonnegative | no |
        | teacher_weights (optional) | (d_t,), nonnegative, summing to 1 | where it requires one |
        | sample_weights (optional) | (n,), from 0 to 1: how much each sample counts, in proportion | no |

    Requirements: row k of both inputs comes from the same sample. At least two samples in the global batch where
    `standardize` is on; with one, the value is 0 and `logs["skipped"]` says so. Under about eight times as many samples
    as neurons a plan from the batch alone follows noise: hand in a `plan`, or let the trainer carry moments
    (`plan_momentum`).

    Returns: `LossOutput` with `loss`, the detached `plan`, and `logs`: cost (<P, M>), marginal_error, iterations,
    plan_entropy (mean entropy of a student neuron's row, in nats: 0 is a one-to-one matching), off_identity (equal
    widths: share of the mass off the diagonal), dropped (1 where the pair had non-finite values; its term is then 0),
    skipped, teacher_variance (mean over the teacher's neurons).

    Relations: FitNet asks for neuron i to copy neuron i through a learned projector; this needs neither order nor
    projector. Centred kernel alignment (CKA) compares whole spaces and does not say which neuron goes with which.

    Example:
        >>> import torch
        >>> from hf_reprot.losses import RepresentationTransport
        >>> loss = RepresentationTransport()
        >>> teacher = torch.randn(256, 48)
        >>> student = torch.randn(256, 32, requires_grad=True)
        >>> out = loss(student, teacher)
        >>> out.loss.backward()
        >>> out.plan.shape
        torch.Size([32, 48])

    References: Li, Grandvalet, Flamary, Courty, Dou: "Representation Transfer by Optimal Transport", 2020. Sinkhorn
    divergence: Feydy et al., AISTATS 2019. Envelope theorem for entropic transport: Cuturi, Doucet, ICML 2014.
    """

    citation = """@article{li2020representation,
  title={Representation Transfer by Optimal Transport},
  author={Li, Xuhong and Grandvalet, Yves and Flamary, R{\\'e}mi and Courty, Nicolas and Dou, Dejing},
  journal={arXiv:2007.06737},
  year={2020}
}"""

    def __init__(
        self,
        cost: str = "sqeuclidean",
        standardize: bool = True,
        method: str = "sinkhorn",
        relative_epsilon: float | None = None,
        epsilon: float | None = None,
        debiased: bool = False,
        tolerance: float = 1e-3,
        max_iterations: int = 1000,
        dead_neurons: str = "keep",
        global_batch: bool = True,
    ):
        super().__init__()
        check_choice("cost", cost, COSTS)
        check_choice("method", method, METHODS)
        check_choice("dead_neurons", dead_neurons, DEAD_NEURONS)
        if debiased and method != "sinkhorn":
            raise ValueError(f"debiased=True is the Sinkhorn divergence and needs method='sinkhorn', got {method!r}")
        for name, number in (("relative_epsilon", relative_epsilon), ("epsilon", epsilon), ("tolerance", tolerance)):
            if number is not None and not (number > 0 and math.isfinite(number)):
                raise ValueError(f"{name} must be a finite number above 0, got {number}")
        if max_iterations < 1:
            raise ValueError(f"max_iterations must be at least 1, got {max_iterations}")
        self.cost = cost
        self.standardize = standardize
        self.method = method
        self.relative_epsilon = relative_epsilon
        self.epsilon = epsilon
        self.debiased = debiased
        self.tolerance = tolerance
        self.max_iterations = max_iterations
        self.dead_neurons = dead_neurons
        self.global_batch = global_batch

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        *,
        plan: Tensor | None = None,
        teacher_weights: Tensor | None = None,
        sample_weights: Tensor | None = None,
    ) -> LossOutput:
        """One layer pair: see the class."""
        weights, samples = [teacher_weights], [sample_weights]
        pair = [(student, teacher)]
        (output,) = self.forward_pairs(pair, plans=[plan], teacher_weights=weights, sample_weights=samples)
        return output

    def forward_pairs(
        self,
        pairs: Sequence[tuple[Tensor, Tensor]],
        *,
        plans: Sequence[Tensor | None] | None = None,
        running: Sequence[RunningMoments] | None = None,
        teacher_weights: Sequence[Tensor | None] | None = None,
        sample_weights: Sequence[Tensor | None] | None = None,
    ) -> list[LossOutput]:
        """Several layer pairs at once: one exchange between processes, and as few solver calls as pay.

        Args:
            pairs: (student, teacher) neurons of each layer pair, as in `forward`.
            plans: For each pair a plan from outside, or None.
            running: For each pair the moments to carry: the plan is solved on them, the gradient taken on the batch.
            teacher_weights: For each pair the marginal b (d_t,) of the teacher, or None. Neurons that are constant over
                the samples get none of it, whatever `dead_neurons` says: with little to lose, they attract what has no
                match. Where the plan is solved on the batch, the loss is differentiable in them.
            sample_weights: For each pair how much each sample counts (n,), from 0 to 1, or None: all alike.

        Returns:
            One `LossOutput` a pair.
        """
        plans = list(plans) if plans is not None else [None] * len(pairs)
        if running is not None and any(plan is not None for plan in plans):
            raise ValueError("give either plans or running moments: both say where the plan comes from")
        given = list(teacher_weights) if teacher_weights is not None else [None] * len(pairs)
        counts = list(sample_weights) if sample_weights is not None else [None] * len(pairs)
        for (student, teacher), plan, b, count in zip(pairs, plans, given, counts, strict=True):
            _check_pair(student, teacher, plan)
            if count is not None and tuple(count.shape) != (len(student),):
                raise ValueError(f"sample_weights must have shape ({len(student)},), got {tuple(count.shape)}")
            _check_weights(teacher, plan, b)

        kinds = [tuple(x is None for x in three) for three in zip(plans, given, counts, strict=True)]
        outputs: dict[int, LossOutput] = {}
        with torch.autocast(device_type=pairs[0][0].device.type if pairs else "cpu", enabled=False):
            stacks = [_Stack(members, pairs, plans, given, counts) for members in stack_pairs(pairs, kinds)]
            share_stacks(stacks, global_batch=self.global_batch)
            if self.debiased:
                for stack in stacks:
                    stack.selves = [Stack(side, side, stack.samples) for side in (stack.students, stack.teachers)]
                share_stacks([own for stack in stacks for own in stack.selves], global_batch=self.global_batch)
            for stack in stacks:
                stack.matrix = self._cost(stack)
                moments = stack.moments
                if running is not None:
                    carried = [running[i] for i in stack.members]
                    moments = RunningMoments.update_all(carried, moments, keep=stack.gate.open)
                stack.solve_on = stack.matrix if running is None else self._matrix(moments)
                stack.weights = self._weights(moments, stack.given)
            self._solve(stacks, detached=running is not None)
            for stack in stacks:
                outputs.update(zip(stack.members, self._outputs(stack), strict=True))
        return [outputs[i] for i in range(len(pairs))]

    def _cost(self, stack: Stack) -> Tensor:
        """(B, d_s, d_t), 0 where a pair is not finite."""
        return torch.where(stack.gate.open[:, None, None], self._matrix(stack.moments), 0.0)

    def _matrix(self, moments: PairMoments) -> Tensor:
        return cost_from_moments(moments, standardize=self.standardize, cost=self.cost)

    def _weights(self, moments: PairMoments, given: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Marginals a (B, d_s), b (B, d_t): None for uniform."""
        keep = self.dead_neurons == "keep"
        a = None if keep else _alive(moments.var_s, moments.mean_s)
        if keep and given is None:
            return a, None
        b = _alive(moments.var_t, moments.mean_t)
        if given is not None:
            # Weights may all lie on neurons that happen to be constant here: then those that vary share them.
            living = given.to(b) * (b > 0)
            mass = living.sum(-1, keepdim=True)
            b = torch.where(mass > 0, living / mass.clamp_min(torch.finfo(b.dtype).tiny), b)
        return a, b

    def _solve(self, stacks: Sequence[_Stack], *, detached: bool) -> None:
        """Solves every stack that has no plan yet, several in one call (see `hf_reprot.ot.solvers.padding`)."""
        open_stacks = [stack for stack in stacks if not stack.fixed]
        of_pair = [stack for stack in open_stacks for _ in stack.members]
        for members in groups([one for stack in open_stacks for one in stack.solve_on.unbind()], self.method):
            group = list(dict.fromkeys(of_pair[i] for i in members))  # pairs of one shape are never parted
            matrices = [stack.solve_on.detach() if detached else stack.solve_on for stack in group]
            a = cat_weights([stack.weights[0] for stack in group], [x.shape[:2] for x in matrices], matrices[0])
            b = cat_weights([stack.weights[1] for stack in group], [x.shape[::2] for x in matrices], matrices[0])
            result = self._solve_one(cat_padded(matrices), a, b, self.relative_epsilon, self.epsilon)
            value = result.value
            if self.debiased:
                value = value - 0.5 * self._self_terms(group, a, b, result)
            start = 0
            for stack, (count, m, n) in zip(group, (x.shape for x in matrices), strict=True):
                part = slice(start, start := start + count)
                whole = len(group) == 1
                stack.result = own = result if whole else without_padding(result, part, m, n)
                stack.value = value if whole else value[part]
                stack.plan, stack.fixed = own.plan, detached

    def _solve_one(self, matrix: Tensor, a, b, relative_epsilon, epsilon) -> OTResult:
        return solve(
            matrix,
            a,
            b,
            method=self.method,
            relative_epsilon=relative_epsilon,
            epsilon=epsilon,
            tolerance=self.tolerance,
            max_iterations=self.max_iterations,
        )

    def _self_terms(self, group: Sequence[_Stack], a, b, cross: OTResult) -> Tensor:
        """W(S,S) + W(T,T) (B,) of the pairs of a group, at the epsilon of the cross pairs' solution."""
        if cross.epsilon is None:
            raise ValueError(f"debiased=True needs a method with an epsilon, got {self.method!r}")
        values = []
        for side, weights in enumerate((a, b)):
            matrix = cat_padded([self._cost(stack.selves[side]) for stack in group])
            # Where the cross pair's cost is 0, so is its epsilon, and costs of rounding would be infinite in its units.
            least = torch.finfo(matrix.dtype).eps * matrix.detach().amax((-2, -1))
            values.append(self._solve_one(matrix, weights, weights, None, torch.maximum(cross.epsilon, least)).value)
        return values[0] + values[1]

    def _outputs(self, stack: _Stack) -> list[LossOutput]:
        if stack.fixed:
            stack.value = (stack.plan.to(stack.matrix) * stack.matrix).sum((-2, -1))
        plan = stack.plan.detach()
        for own in stack.selves:
            stack.gate.close_unless(own.gate.open)
        stack.gate.close_unless(stack.value.detach().abs() < torch.inf)
        for own in stack.selves:
            own.gate.close_unless(stack.gate.open)
        losses = torch.where(stack.gate.open, stack.value, 0.0).unbind()
        names, logs = _diagnostics(stack, plan)
        return [
            LossOutput(loss, logs=dict(zip(names, numbers.unbind(), strict=True)), plan=one)
            for loss, numbers, one in zip(losses, logs.unbind(1), plan.unbind(), strict=True)
        ]

    def extra_repr(self) -> str:
        names = ("cost", "standardize", "method", "relative_epsilon", "epsilon", "debiased", "tolerance")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in (*names, "dead_neurons", "global_batch"))


class _Stack(Stack):
    """With the costs, and what was solved on them."""

    def __init__(self, members: Sequence[int], pairs, plans, given, counts):
        samples = [counts[i] for i in members]
        students, teachers = ([pairs[i][side] for i in members] for side in (0, 1))
        super().__init__(students, teachers, None if samples[0] is None else samples)
        self.members = list(members)
        plan, self.given = (
            None if parts[members[0]] is None else torch.stack([parts[i] for i in members]) for parts in (plans, given)
        )
        # From outside or from running moments, the plan is a constant that weighs this batch's costs.
        self.fixed = plan is not None
        self.plan: Tensor  # (B, d_s, d_t)
        if plan is not None:
            self.plan = plan
        self.matrix: Tensor  # (B, d_s, d_t)
        self.solve_on: Tensor
        self.weights: tuple[Tensor | None, Tensor | None] = (None, None)
        self.result: OTResult | None = None
        self.value: Tensor  # (B,)
        self.selves: list[Stack] = []  # the student's pairs with itself, and the teacher's


def _diagnostics(stack: _Stack, plan: Tensor) -> tuple[list[str], Tensor]:
    """Names, and detached numbers (names, B), for the log; no host synchronisation."""
    with torch.no_grad():
        plan, result = plan.float(), stack.result
        rows = plan.sum(-1)
        # H(P) - H(a): the entropy of a row, averaged with the rows' weights; log takes a quarter of xlogy's time
        logs_of_plan = plan.clamp_min(torch.finfo(plan.dtype).tiny).log_()
        cost = (
            result.cost.float()
            if result is not None and stack.solve_on is stack.matrix
            else _inner(plan, stack.matrix.float())
        )
        logs = {
            "cost": cost,
            "plan_entropy": torch.special.xlogy(rows, rows).sum(-1) - _inner(plan, logs_of_plan),
            "dropped": ~stack.gate.open,
            "skipped": one_sample(stack.moments, stack.samples is not None),
            "teacher_variance": torch.where(stack.gate.open, stack.moments.var_t.mean(-1), 0.0).float(),
        }
        if plan.shape[-2] == plan.shape[-1]:
            logs["off_identity"] = 1.0 - plan.diagonal(dim1=-2, dim2=-1).sum(-1)
        if result is not None:
            logs |= {"marginal_error": result.marginal_error.float(), "iterations": result.iterations}
        numbers = torch.stack([value.to(rows.dtype) for value in logs.values()])
        return list(logs), torch.nan_to_num_(numbers.detach())


def _inner(x: Tensor, y: Tensor) -> Tensor:
    """(B,) <x, y> of each pair."""
    return torch.bmm(x.flatten(1)[:, None], y.flatten(1)[:, :, None]).view(-1)


def _alive(variance: Tensor, mean: Tensor) -> Tensor:
    """(B, d) Uniform weights over the neurons that vary, 0 for constant ones; uniform over all where none varies."""
    alive = varies(mean, variance)
    alive = (alive | ~alive.any(-1, keepdim=True)).to(variance)
    return alive / alive.sum(-1, keepdim=True)


def _check_weights(teacher: Tensor, plan: Tensor | None, weights: Tensor | None) -> None:
    if weights is None:
        return
    if plan is not None:
        raise ValueError("give either a plan or teacher_weights: the plan's columns say what each neuron weighs")
    if not weights.is_floating_point() or tuple(weights.shape) != (teacher.shape[1],):
        raise ValueError(
            f"teacher_weights must be a float tensor of shape ({teacher.shape[1]},), one a teacher neuron, got "
            f"{weights.dtype} {tuple(weights.shape)}"
        )


def _check_pair(student: Tensor, teacher: Tensor, plan: Tensor | None) -> None:
    check_sides(student, teacher, "(samples, neurons)", 2)
    if plan is not None and tuple(plan.shape) != (student.shape[1], teacher.shape[1]):
        raise ValueError(
            f"plan must have shape {(student.shape[1], teacher.shape[1])} (student by teacher neurons), "
            f"got {tuple(plan.shape)}"
        )
