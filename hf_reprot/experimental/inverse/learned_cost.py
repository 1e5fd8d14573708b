"""`ot_cost="learned"`: a cost between neurons that is learned before the first step and frozen since."""

from __future__ import annotations

import contextlib
import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch import distributed as dist

from ...features.compiled import as_written
from ...losses.collective import gather_rows, world_size
from ...ot.solve import solve
from ...training.terms.base import Batch, TermContext, TrainingLoop
from ...training.terms.transport import Marginals, TransportTerm
from .neurons import learn_neuron_cost, neuron_cost_of

logger = logging.getLogger(__name__)

# Blur of a plan under a learned cost, where the config sets none: from 0.03 to 0.3 the demo's students learnt as much.
RELATIVE_EPSILON = {"sinkhorn": 0.3, "proximal": None, "exact": None}
# Samples (positions, where these are samples) that a cost is learned from, at most.
_MOST_SAMPLES = 4096
_PREFIX = "learned_cost."


class LearnedCostTransport(TransportTerm):
    """Transport whose plans follow from a cost between neurons that is learned first: a constant that weighs every
    batch's costs.

    With C the learned cost between neurons, P = argmin <P, C> + eps KL(P | a b') is solved once, and the term of a step
    is <P, M>, M the squared differences of the batch: what was learned says which neurons go together, the batch how
    far apart they are. (The other reading, a contrastive loss between samples under the same frozen cost, is satisfied
    within a few steps on the samples at hand and taught the students of the demo much less.)

    Attributes:
        costs: (d_s, d_t) of each pair; empty before anything was learned.
        learned_plans: (d_s, d_t) of each pair.
    """

    def __init__(self, context: TermContext):
        super().__init__(context)
        self.costs: list[Tensor] = []
        self.learned_plans: list[Tensor] = []
        self._given = context.learned_cost

    def marginals(self, neurons: Sequence[tuple[Tensor, Tensor]], batch: Batch) -> Marginals:
        """The frozen plans.

        Raises:
            RuntimeError: nothing has been learned yet.
        """
        if not self.learned_plans:
            raise RuntimeError("ot_cost='learned' learns its cost when train() begins: there is no loss before that")
        return Marginals(plans=self.learned_plans)

    def take(self, costs: Sequence[Tensor]) -> None:
        """Takes the cost of each pair and solves its plan."""
        config = self.config
        relative = config.ot_relative_epsilon
        self.costs = [cost.detach().float() for cost in costs]
        self.learned_plans = [
            solve(
                cost,
                method=config.ot_method,
                relative_epsilon=RELATIVE_EPSILON[config.ot_method] if relative is None else relative,
                epsilon=config.ot_epsilon,
                tolerance=config.ot_tolerance,
                max_iterations=config.ot_max_iterations,
            ).plan
            for cost in self.costs
        ]

    def modules(self, widths: Sequence[tuple[int, int]], device: torch.device) -> Mapping[str, nn.Module]:
        """Takes the user's cost, if there is one; nothing trains along.

        Raises:
            ValueError: costs of the wrong number, kind or widths.
        """
        given = self._given
        if given is None:
            return {}
        pairs = self.layers.pairs
        fitted: list[Any] = [given] * len(pairs) if isinstance(given, nn.Module) else list(given)
        if len(fitted) != len(pairs):
            raise ValueError(f"learned_cost has {len(fitted)} costs for {len(pairs)} layer pairs: give one for each")
        costs = [neuron_cost_of(cost) for cost in fitted]
        for cost, pair, width in zip(costs, pairs, widths, strict=False):
            if tuple(cost.shape) != tuple(width):
                raise ValueError(
                    f"learned_cost is between {cost.shape[0]} student and {cost.shape[1]} teacher neurons, but "
                    f"{pair.student}={pair.teacher} has {width[0]} and {width[1]}"
                )
        self.take([cost.to(device) for cost in costs])
        return {}

    def on_train_begin(self, loop: TrainingLoop) -> None:
        """Learns what is to be learned and is not there yet (given, or from a checkpoint).

        In a distributed run the samples of all processes are gathered, the first process learns, and all get its cost.
        """
        if self.costs:
            return
        costs = []
        for pair, (student, teacher) in zip(self.layers.pairs, self._paired_samples(loop), strict=True):
            student, teacher = gather_rows(student), gather_rows(teacher)
            cost = torch.zeros(student.shape[1], teacher.shape[1], device=loop.device)
            if world_size() == 1 or dist.get_rank() == 0:
                # On the CPU, in float64: the same wherever a run starts.
                inverse = learn_neuron_cost(
                    student.cpu(), teacher.cpu(), regularisation=self.config.cost_regularisation
                )
                logger.info(
                    "Learned the cost of %s=%s from %d samples: %s",
                    *(pair.student, pair.teacher, len(student), inverse.report),
                )
                cost.copy_(neuron_cost_of(inverse))
            if world_size() > 1:
                dist.broadcast(cost, 0)
            costs.append(cost)
        self.take(costs)

    @torch.no_grad()
    def _paired_samples(self, loop: TrainingLoop) -> list[tuple[Tensor, Tensor]]:
        """This process's samples (n, d_s), (n, d_t) of each layer pair, over the first batches of the training data.

        Layers act as in training, where the loss will see them; the student and the global RNG state are restored.
        """
        parts: list[list[tuple[Tensor, Tensor]]] = []
        with unchanged_generators(), as_in_training(loop.model):
            for inputs in loop.batches(self.config.cost_fit_steps):
                batch = loop.observe(inputs)
                sides = self.layers.neurons(batch.student, batch.teachers, batch.inputs)
                parts.append([(s.float(), t.float()) for s, t in sides])
        if not parts:
            raise ValueError("ot_cost='learned' needs training data to learn from, and the data loader gave no batch")
        most = _MOST_SAMPLES // world_size()
        tables = [tuple(map(torch.cat, zip(*pair, strict=True))) for pair in zip(*parts, strict=True)]
        return [_finite_rows(student, teacher, most) for student, teacher in tables]

    def state_dict(self) -> dict[str, Tensor]:
        """Costs and plans; empty before anything was learned."""
        state = super().state_dict()
        for i, (cost, plan) in enumerate(zip(self.costs, self.learned_plans, strict=True)):
            state |= {f"{_PREFIX}{i}.cost": cost, f"{_PREFIX}{i}.plan": plan}
        return state

    def load_state_dict(self, state: Mapping[str, Tensor], device: torch.device) -> None:
        """Restores what `state_dict` gave.

        Raises:
            ValueError: the checkpoint's run learned no cost, or those of another number of layer pairs.
        """
        super().load_state_dict(state, device)
        pairs = len(self.layers.pairs)
        found = {name: value for name, value in state.items() if name.startswith(_PREFIX)}
        if len(found) != 2 * pairs:
            raise ValueError(
                f"ot_cost='learned', but the checkpoint holds learned costs of {len(found) // 2} layer pairs and this "
                f"run has {pairs}: resume with the settings that it was written with, or start a new run"
            )
        self.costs = [found[f"{_PREFIX}{i}.cost"].to(device) for i in range(pairs)]
        self.learned_plans = [found[f"{_PREFIX}{i}.plan"].to(device) for i in range(pairs)]


def _finite_rows(student: Tensor, teacher: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Samples that are finite on both sides, evenly thinned out to `most` of them."""
    rows = (torch.isfinite(student).all(1) & torch.isfinite(teacher).all(1)).nonzero().flatten()
    if len(rows) > most:
        rows = rows[torch.linspace(0, len(rows) - 1, most, device=rows.device).long()]
    return student[rows], teacher[rows]


@contextlib.contextmanager
def as_in_training(model: nn.Module) -> Iterator[None]:
    """Training mode inside, compiled models as written; modes and buffers (running averages) as they were after it."""
    modes = {module: module.training for module in model.modules()}
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    model.train()
    try:
        with as_written():
            yield
    finally:
        for module, training in modes.items():
            module.training = training
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)


@contextlib.contextmanager
def unchanged_generators() -> Iterator[None]:
    """Restores the global RNG state (Python, NumPy, torch) at the end."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
