"""From one training batch to the named terms of the transfer loss: taps, teachers and losses brought together."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..cache.teacher import teacher_taps
from ..config import OTTransferConfig
from ..data.preprocessing import Preprocessing
from ..experimental.auto_layers import AutoLayers
from ..experimental.inverse.learned_cost import LearnedCosts
from ..experimental.topk.training import Selections
from ..features.activations import Activation, pair_neurons
from ..features.pairs import LayerPair
from ..features.taps import Taps
from ..losses.common import LossOutput
from ..losses.gaussian import GaussianTransport
from ..losses.l2sp import L2SP
from ..losses.transport import RepresentationTransport
from ..models.modules import class_count
from ..models.teacher import Teacher
from ..ot.moments import RunningMoments
from .auxiliary import check_companions
from .baselines import Rivals
from .logit_term import LogitTerm, known_classes
from .shares import Share
from .teachers import pair_shares, teacher_logs, teacher_names, unit_of


@dataclass
class Terms:
    """The terms of one batch: `loss` to differentiate, `logs` to average, `dropped` (pairs,) for the watch."""

    loss: Tensor
    logs: dict[str, Tensor] = field(default_factory=dict)
    dropped: Tensor | None = None


class TransferObjective:
    """Transport, logit distillation and L2-SP for one student and its teachers.

    Holds the taps on both sides; holds no weights of the student and is no part of it.

    Args:
        student: The student, unwrapped (before DDP, FSDP or compilation).
        teachers: Frozen teachers.
        pairs: Which student layer goes with which teacher layer, resolved.
        config: The settings.
        preprocessing: How the student's `pixel_values` were normalised; None for text or where it is not known.
        heads: Paths of the student's heads, which L2-SP leaves alone.
        layers: With layer_pairs="auto", what finds the pairs; `pairs` are then those to begin with.
    """

    def __init__(
        self,
        student: nn.Module,
        teachers: Sequence[Teacher],
        pairs: Sequence[LayerPair],
        config: OTTransferConfig,
        preprocessing: Preprocessing | None = None,
        heads: Sequence[str] = (),
        layers: AutoLayers | None = None,
    ):
        self.config = config
        self.student = student
        self.teachers = list(teachers)
        self.teacher_names = teacher_names(self.teachers)
        self.teacher_weights = [teacher.weight for teacher in self.teachers]
        self.known_classes = known_classes(student, self.teachers, config.kd_weight > 0)
        self.pairs = list(pairs)
        self.shares = pair_shares(self.pairs, self.teacher_weights)
        self.layers = layers
        self.preprocessing = preprocessing
        self.rivals = Rivals(config, student, self.pairs, self.pair_names(), self.shares, self.teacher_names)
        self._hang_taps({*(pair.student for pair in self.pairs), *self.rivals.layers})
        self.transport = transport_of(config)
        learns = config.ot_cost == "learned" and config.ot_weight > 0
        self.learned = LearnedCosts(config) if learns else None
        self.selections = Selections(config, self.pairs) if config.select_k is not None else None
        self.running = [RunningMoments(config.plan_momentum) for _ in self.pairs] if config.plan_momentum > 0 else None
        self.logit_term = self._make_logit_term()
        self.distillation = self.logit_term if config.kd_weight > 0 else None
        self.anchor = L2SP(student, exclude=heads) if config.l2sp_weight > 0 else None
        self.companions = nn.ModuleDict()  # they train along with the student and are no part of it
        self.plans: list[Tensor] = []  # of the last batch, one a pair: what a plot or a card shows

    def _hang_taps(self, student_layers: set[str]) -> None:
        self.student_taps = Taps(self.student, sorted(student_layers))
        self.teacher_taps = [
            teacher_taps(teacher, sorted({pair.teacher for pair in self.pairs if pair.teacher_index == i}))
            for i, teacher in enumerate(self.teachers)
        ]

    def _make_logit_term(self) -> LogitTerm:
        samples = [teacher.samples for teacher in self.teachers]
        known, names = self.known_classes, self.teacher_names
        models = [teacher.model for teacher in self.teachers]
        count = class_count(self.student)
        return LogitTerm(self.config, known, self.teacher_weights, names, samples, count, self.student, models)

    def pair_names(self) -> list[str]:
        """What each pair is called in logs and errors."""
        return [pair_name(pair, len(self.teachers)) for pair in self.pairs]

    def set_pairs(self, pairs: Sequence[LayerPair]) -> None:
        """Puts the pairs of a new plan in the place of the present ones; carried moments of those that stay go on."""
        if self.running is not None:
            known = {_key(pair): running for pair, running in zip(self.pairs, self.running, strict=True)}
            self.running = [known.get(_key(pair)) or RunningMoments(self.config.plan_momentum) for pair in pairs]
        self.pairs, self.plans = list(pairs), []
        self.shares = pair_shares(self.pairs, self.teacher_weights)
        self.close()
        # All of the student's candidates: a compiled student sees only the hooks that it was compiled with.
        self._hang_taps({*self.layers.student_layers, *self.rivals.layers})

    def build_companions(self, widths: Sequence[tuple[int, int]], device: torch.device) -> None:
        """Makes the modules that train along with the student, once the widths of the layer pairs are known.

        Args:
            widths: (d_s, d_t) of each pair; empty where no batch could be made up.
            device: Where the student lives.
        """
        self.companions = nn.ModuleDict(self.rivals.build(widths))
        if self.selections is not None:
            self.companions.update(self.selections.build(widths, self.student))
        self.companions.to(device)

    def hang(self) -> None:
        """Puts the hooks on both sides for a training run."""
        for taps in (self.student_taps, *self.teacher_taps):
            taps.hang()

    def close(self) -> None:
        """Takes every hook off both sides; a pass that is recorded without them hangs its own."""
        for taps in (self.student_taps, *self.teacher_taps):
            taps.close()

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Records the student's layers during the forward pass made inside."""
        with self.student_taps.armed():
            yield

    def teach(self, inputs: Mapping[str, Any]) -> tuple[list[dict[str, Activation]], list[Tensor | None]]:
        """Runs every teacher on the batch: its layers' activations by name, and its logits."""
        layers, logits = [], []
        for teacher, taps in zip(self.teachers, self.teacher_taps, strict=True):
            with torch.no_grad(), taps.armed():
                logits.append(teacher(teacher.inputs_for(dict(inputs), self.preprocessing)))
            layers.append(taps.take())
        return layers, logits

    def neurons(
        self, student: Mapping[str, Activation], teachers: Sequence[Mapping[str, Activation]], inputs: Mapping[str, Any]
    ) -> list[tuple[Tensor, Tensor]]:
        """Each pair's activations as two tables with the same samples: (n, d_s) and (n, d_t)."""
        return [
            pair_neurons(
                student[pair.student],
                teachers[pair.teacher_index][pair.teacher],
                positions=self.config.ot_positions,
                tokens=self.config.ot_tokens,
                mask=inputs.get("attention_mask"),
                teacher_mask=inputs.get("teacher_attention_mask"),
            )
            for pair in self.pairs
        ]

    def __call__(
        self,
        inputs: Mapping[str, Any],
        task: Tensor | None,
        student_logits: Tensor | None,
        ot_weight: float,
        progress: float = 1.0,
        share: Share | None = None,
    ) -> Terms:
        """The total loss of one batch, to be called after a forward pass inside `recording()`.

        Args:
            inputs: The batch, as the student received it plus what is meant for teachers.
            task: The student's own loss, times its share; None without labels.
            student_logits: The student's logits; needed for distillation and without labels.
            ot_weight: Weight of the transport term at this step.
            progress: Share of all steps that have been made.
            share: How much of the step this batch holds; None: all of it.
        """
        config, share = self.config, share or Share()
        total, logs = [], {}
        if task is not None:
            total.append(config.task_weight * task)
            logs["task_loss"] = task.detach()
        layers, teacher_logits = self.teach(inputs) if self.teachers else ([], [])

        students = self.student_taps.take()
        dropped = None
        if self.pairs and config.ot_weight > 0:
            neurons, weights = self.neurons(students, layers, inputs), None
            if share.empty:  # the other processes' samples are matched without
                neurons = [(s[:0], t[:0]) for s, t in neurons]
            if self.selections is not None:
                weights, terms, more = self.selections(neurons, inputs, progress)
                total += terms
                logs |= more
            outputs = self.transport.forward_pairs(
                neurons,
                running=self.running,
                **({} if self.learned is None else {"plans": self.learned.plans}),
                **({} if weights is None else {"teacher_weights": weights}),
                sample_weights=[None] * len(neurons)
                if share.empty
                else self._sample_weights(neurons, teacher_logits, inputs, labelled=task is not None),
            )
            self.plans = [output.plan for output in outputs]
            losses = self._comparable(outputs)
            transport = torch.stack([w * loss for w, loss in zip(self.shares, losses, strict=True)]).sum()
            total.append(ot_weight * transport)
            logs["ot_loss"] = transport.detach()
            logs["ot_weight"] = transport.new_full((), ot_weight)
            logs |= self._transport_logs(outputs, losses)
            dropped = torch.stack([output.logs["dropped"] for output in outputs])
            if self.layers is not None:
                logs |= {name: transport.new_full((), value) for name, value in self.layers.logs().items()}
        terms, more = self.rivals(students, layers, inputs)
        total += [share.samples * term for term in terms]
        logs |= more
        if self.distillation is not None:
            distillation, more = self.distillation(student_logits, teacher_logits, inputs, labelled=task is not None)
            total.append(config.kd_weight * share.samples * distillation)
            logs |= more | {"kd_loss": share.samples * more["kd_loss"]}
        if self.anchor is not None:
            output = self.anchor()
            total.append(config.l2sp_weight * output.loss)
            logs["l2sp_loss"] = output.loss.detach()
            logs |= output.logs
        if task is None and self.distillation is None and student_logits is not None:
            # The head takes part with a gradient of 0: DDP waits for every parameter that the outputs depend on.
            total.append((0.0 * student_logits.float().nan_to_num()).sum())
        return Terms(torch.stack([term.float() for term in total]).sum(), logs, dropped)

    def _sample_weights(
        self,
        neurons: Sequence[tuple[Tensor, Tensor]],
        logits: Sequence[Tensor | None],
        inputs: Mapping[str, Any],
        labelled: bool,
    ) -> list[Tensor | None]:
        """How much each row of each pair's tables counts; None: all alike."""
        weights, rows = self.logit_term.sample_weights(logits, inputs, labelled), []
        for pair, (student, _) in zip(self.pairs, neurons, strict=True):
            given, mask = weights[pair.teacher_index], inputs.get("attention_mask")
            if given is not None and len(student) != len(given):  # every position is a sample
                given = (
                    given[:, None].expand(-1, len(student) // len(given)).reshape(-1)
                    if mask is None
                    else (given[:, None].expand(mask.shape)[mask.bool()])
                )
            rows.append(given)
        return rows

    def _comparable(self, outputs: Sequence[LossOutput]) -> list[Tensor]:
        """Each pair's loss; of several teachers in raw values, in units of the teacher's mean variance."""
        if self.config.ot_standardize or len(self.teachers) < 2:
            return [output.loss for output in outputs]
        return [output.loss / unit_of(output.logs["teacher_variance"]) for output in outputs]

    def _transport_logs(self, outputs: Sequence[LossOutput], losses: Sequence[Tensor]) -> dict[str, Tensor]:
        """Diagnostics averaged over the pairs; each pair's and each teacher's own value where there are several."""
        logs = {}
        for name in ("cost", "marginal_error", "iterations", "plan_entropy", "off_identity"):
            values = [output.logs[name] for output in outputs if name in output.logs]
            if values:
                logs[f"ot_{name}"] = torch.stack(values).mean()
        for name in ("dropped", "skipped"):
            logs[f"ot_{name}"] = torch.stack([output.logs[name] for output in outputs]).sum()
        if len(outputs) > 1:
            for pair, loss in zip(self.pairs, losses, strict=True):
                logs[f"ot_loss/{pair_name(pair, len(self.teachers))}"] = loss.detach()
        return logs | teacher_logs("ot_loss", losses, self.pairs, self.shares, self.teacher_names)

    def state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint must hold so that a resumed run continues as if it had not stopped."""
        state = self.layers.state_dict() if self.layers is not None else {}
        for i, running in enumerate(self.running or ()):
            state |= {f"running.{i}.{name}": value for name, value in running.state_dict().items()}
        if self.anchor is not None:
            state["l2sp.fingerprint"] = self.anchor.fingerprint()
        if self.learned is not None:
            state |= self.learned.state_dict()
        return state | {f"companions.{name}": value for name, value in self.companions.state_dict().items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restores what `state_dict` gave.

        Raises:
            ValueError: the run that wrote it started from other weights or had other layer pairs or companions.
        """
        device = next(self.teachers[0].model.parameters()).device if self.teachers else torch.device("cpu")
        if self.layers is not None:
            self.layers.load_state_dict(state)
            self.set_pairs(self.layers.pairs())
        for i, running in enumerate(self.running or ()):
            prefix = f"running.{i}."
            moments = {k.removeprefix(prefix): v.to(device) for k, v in state.items() if k.startswith(prefix)}
            running.load_state_dict(moments)
        companions = {k.removeprefix("companions."): v for k, v in state.items() if k.startswith("companions.")}
        check_companions(self.companions.state_dict(), companions)
        self.companions.load_state_dict(companions, strict=True)
        if self.learned is not None:
            self.learned.load_state_dict(state, len(self.pairs), device)
        if self.anchor is not None and "l2sp.fingerprint" in state:
            ours, theirs = self.anchor.fingerprint(), state["l2sp.fingerprint"]
            if not torch.allclose(ours, theirs.to(ours), rtol=1e-6):
                raise ValueError(
                    "l2sp_weight pulls toward the weights that training starts from, and the checkpoint's run started "
                    "from others: build the student from the same start as before (not from the checkpoint) to resume"
                )


def transport_of(config: OTTransferConfig) -> RepresentationTransport | GaussianTransport:
    """The transport loss that the settings describe."""
    if config.ot_method == "gaussian":
        return GaussianTransport(config.ot_relative_epsilon, config.ot_teacher_mass, config.ot_global_batch)
    return RepresentationTransport(**config.transport_settings())


def _key(pair: LayerPair) -> tuple[str, str, int]:
    return pair.student, pair.teacher, pair.teacher_index


def pair_name(pair: LayerPair, teachers: int = 1) -> str:
    """A pair as it is written in logs and on the command line: student=teacher, teachers told apart by number."""
    return f"{pair.student}={pair.teacher}" + (f"@{pair.teacher_index}" if teachers > 1 else "")
