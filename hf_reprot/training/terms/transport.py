"""`ot_weight`: transport between the neurons of each layer pair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...config import OTTransferConfig
from ...features.pairs import LayerPair
from ...losses.common import LossOutput
from ...losses.gaussian import GaussianTransport
from ...losses.transport import RepresentationTransport
from ...ot.moments import RunningMoments
from ..teachers import unit_of
from .base import Batch, Term, TermContext, TermOutput


@dataclass
class Marginals:
    """What one batch's transport is solved with besides the neurons; None: as `RepresentationTransport` has it.

    Attributes:
        plans: For each pair a plan (d_s, d_t) that stands in the place of the batch's.
        teacher_weights: For each pair the weights (d_t,) of the teacher's neurons.
        losses: Weighted terms that are added to the transport.
        logs: Detached scalars for the log.
    """

    plans: Sequence[Tensor] | None = None
    teacher_weights: Sequence[Tensor] | None = None
    losses: Sequence[Tensor] = ()
    logs: dict[str, Tensor] = field(default_factory=dict)

    def keywords(self) -> dict[str, Any]:
        """What is given, as keyword arguments of `forward_pairs`: not every transport loss takes all."""
        given = {"plans": self.plans, "teacher_weights": self.teacher_weights}
        return {name: value for name, value in given.items() if value is not None}


class TransportTerm(Term):
    """`RepresentationTransport` on the layer pairs, the mean by their shares.

    A system that changes what the transport is solved with is a subclass: it overrides `marginals`, or replaces the
    layer pairs (`MatchedLayers.replace`), and the registry has it in the place of this one.

    Attributes:
        reads_neurons: Whether `marginals` reads the neurons. The padding of texts is then dropped from them, for which
            the host waits for the device; it weighs nothing otherwise.
        plans: (d_s, d_t) of each pair, of the last batch: what a plot or a card shows.
        running: Of each pair, the moments that `plan_momentum` carries over steps; None without.
    """

    name = "transport"
    of_samples = False  # each process solves the problem of all samples
    reads_neurons: ClassVar[bool] = False

    def __init__(self, context: TermContext):
        super().__init__(context)
        self.layers = context.layers
        self.logits = context.logits
        self.loss = transport_of(self.config)
        self.running: list[RunningMoments] | None = None
        self.plans: list[Tensor | None] = []
        if self._momentum > 0:
            self.running = [RunningMoments(self._momentum) for _ in self.layers.pairs]
        self._carried = list(self.layers.pairs)  # the pairs that `running` is of
        self.layers.on_change(self._pairs_changed)

    @property
    def _momentum(self) -> float:
        return self.config.plan_momentum or 0.0

    def _pairs_changed(self) -> None:
        """Carried moments of pairs that stay go on."""
        if self.running is not None:
            known = dict(zip(map(_key, self._carried), self.running, strict=True))
            pairs = self.layers.pairs
            self.running = [known.get(_key(pair)) or RunningMoments(self._momentum) for pair in pairs]
        self._carried, self.plans = list(self.layers.pairs), []

    def marginals(self, neurons: Sequence[tuple[Tensor, Tensor]], batch: Batch) -> Marginals:
        """What this batch's transport is solved with.

        Args:
            neurons: (n, d_s) and (n, d_t) of each pair.
            batch: The batch.
        """
        return Marginals()

    def check(self, batch: Batch) -> None:
        """Refuses widths that `ot_method="identity"` cannot take.

        Raises:
            ValueError: layers of unequal width.
        """
        if self.config.ot_method != "identity":
            return
        tables = self.layers.neurons(batch.student, batch.teachers, batch.inputs)
        for name, (student, teacher) in zip(self.layers.names, tables, strict=True):
            if student.shape[1] != teacher.shape[1]:
                raise ValueError(
                    f"ot_method='identity' pairs neuron i with neuron i, but {name} has {student.shape[1]} student "
                    f"and {teacher.shape[1]} teacher neurons: choose layers of equal width, or ot_method='sinkhorn'"
                )

    def __call__(self, batch: Batch) -> TermOutput | None:
        """See `Term`."""
        if not self.layers.pairs:
            return None
        neurons = self.layers.neurons(batch.student, batch.teachers, batch.inputs, padded=not self.reads_neurons)
        given = self.marginals(neurons, batch)
        if batch.share.empty:  # the other processes' samples are matched without
            neurons = [(s[:0], t[:0]) for s, t in neurons]
        outputs = self.loss.forward_pairs(
            neurons,
            running=self.running,
            sample_weights=self._sample_weights(neurons, batch),
            **given.keywords(),
        )
        self.plans = [output.plan for output in outputs]
        values = self._comparable(outputs)
        transport = self.layers.mean(values)
        weight = warmed_up(self.config, batch.step, batch.steps)
        logs = {**given.logs, "ot_loss": transport.detach(), "ot_weight": transport.new_full((), weight)}
        loss = torch.stack([*(term.float() for term in given.losses), (weight * transport).float()]).sum()
        dropped = torch.stack([output.logs["dropped"] for output in outputs])
        return TermOutput(loss, logs | _diagnostics(outputs) | self.layers.logs("ot_loss", values), dropped)

    def on(self, neurons: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """() The transport of tables of neurons as one batch, unweighted; nothing that is carried over steps changes.

        Args:
            neurons: (n, d_s) and (n, d_t) of each pair.
        """
        plans = getattr(self, "learned_plans", None)  # those of a learned cost are frozen
        outputs = self.loss.forward_pairs(neurons, **({"plans": plans} if plans else {}))
        return self.layers.mean(self._comparable(outputs))

    def _sample_weights(self, neurons: Sequence[tuple[Tensor, Tensor]], batch: Batch) -> list[Tensor | None]:
        """How much each row of each pair's tables counts; None: all alike."""
        rows: list[Tensor | None] = [None] * len(neurons)
        if batch.share.empty:
            return rows
        weights = self.logits.sample_weights(batch.teacher_logits, batch.inputs, batch.labelled)
        kept = self.layers.kept(batch.student, batch.inputs)
        for i, (pair, (student, _)) in enumerate(zip(self.layers.pairs, neurons, strict=True)):
            given, counts = weights[pair.teacher_index], kept[i]
            if counts is not None:  # every token is a sample
                mask = counts.view(batch.inputs["attention_mask"].shape)
                of_tokens = mask if given is None else given[:, None].to(mask) * mask
                rows[i] = of_tokens[mask > 0] if self.reads_neurons else of_tokens.flatten()
            elif given is not None and len(student) != len(given):  # every position is a sample
                rows[i] = given[:, None].expand(-1, len(student) // len(given)).reshape(-1)
            else:
                rows[i] = given
        return rows

    def _comparable(self, outputs: Sequence[LossOutput]) -> list[Tensor]:
        """Each pair's loss; of several teachers in raw values, in units of the teacher's mean variance."""
        if self.config.ot_standardize or len(self.layers.teacher_names) < 2:
            return [output.loss for output in outputs]
        return [output.loss / unit_of(output.logs["teacher_variance"]) for output in outputs]

    def state_dict(self) -> dict[str, Tensor]:
        """The carried moments."""
        state: dict[str, Tensor] = {}
        for i, running in enumerate(self.running or ()):
            state |= {f"running.{i}.{name}": value for name, value in running.state_dict().items()}
        return state

    def load_state_dict(self, state: Mapping[str, Tensor], device: torch.device) -> None:
        """Restores the carried moments."""
        for i, running in enumerate(self.running or ()):
            prefix = f"running.{i}."
            moments = {k.removeprefix(prefix): v.to(device) for k, v in state.items() if k.startswith(prefix)}
            running.load_state_dict(moments)


def transport_of(config: OTTransferConfig) -> RepresentationTransport | GaussianTransport:
    """The transport loss that the settings describe."""
    if config.ot_method == "gaussian":
        return GaussianTransport(config.ot_relative_epsilon, config.ot_teacher_mass, config.ot_global_batch)
    return RepresentationTransport(
        cost="sqeuclidean" if config.ot_cost == "learned" else config.ot_cost,  # what the batch is measured by
        standardize=config.ot_standardize,
        method=config.ot_method,
        relative_epsilon=config.ot_relative_epsilon,
        epsilon=config.ot_epsilon,
        debiased=config.ot_debiased,
        tolerance=config.ot_tolerance,
        max_iterations=config.ot_max_iterations,
        dead_neurons=config.ot_dead_neurons,
        global_batch=config.ot_global_batch,
    )


def warmed_up(config: OTTransferConfig, step: int, steps: int) -> float:
    """`ot_weight` at a step, after the warm-up.

    Args:
        config: The settings; `ot_weight` is a number.
        step: Steps that have been made.
        steps: Steps of the whole run.
    """
    weight, warmup = float(config.ot_weight or 0.0), config.ot_warmup_steps
    if 0 < warmup < 1:
        warmup = warmup * max(steps, 1)
    return weight * (min(1.0, step / warmup) if warmup > 0 else 1.0)


def _key(pair: LayerPair) -> tuple[str, str, int]:
    return pair.student, pair.teacher, pair.teacher_index


def _diagnostics(outputs: Sequence[LossOutput]) -> dict[str, Tensor]:
    """Diagnostics averaged over the pairs, and the numbers of those that were left out."""
    logs = {}
    for name in ("cost", "marginal_error", "iterations", "plan_entropy", "off_identity"):
        values = [output.logs[name] for output in outputs if name in output.logs]
        if values:
            logs[f"ot_{name}"] = torch.stack(values).mean()
    for name in ("dropped", "skipped"):
        logs[f"ot_{name}"] = torch.stack([output.logs[name] for output in outputs]).sum()
    return logs
