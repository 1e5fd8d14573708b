"""From one training batch to the named terms of the transfer loss: taps, teachers and losses brought together."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..config import OTTransferConfig
from ..losses import L2SP, LogitDistillation, LossOutput, RepresentationTransport, RunningMoments
from ..losses.baselines import DecoupledDistillation
from ..matching import LayerPair
from ..taps import Activation, Taps, pair_neurons
from ..teacher import Preprocessing, Teacher
from .auto_layers import AutoLayers
from .companions import check_companions
from .labels import labels_of
from .learned_cost import LearnedCosts
from .rivals import Rivals
from .selection import Selections


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
        self.pairs = list(pairs)
        self.layers = layers
        self.preprocessing = preprocessing
        self.rivals = Rivals(config, student, self.pairs, self.pair_names())
        self._hang_taps({*(pair.student for pair in self.pairs), *self.rivals.layers})
        self.transport = RepresentationTransport(**config.transport_settings())
        learns = config.ot_cost == "learned" and config.ot_weight > 0
        self.learned = LearnedCosts(config) if learns else None
        self.selections = Selections(config, self.pairs) if config.select_k is not None else None
        self.running = [RunningMoments(config.plan_momentum) for _ in self.pairs] if config.plan_momentum > 0 else None
        self.distillation = _distillation(config) if config.kd_weight > 0 else None
        self.anchor = L2SP(student, exclude=heads) if config.l2sp_weight > 0 else None
        self.companions = nn.ModuleDict()  # they train along with the student and are no part of it
        self.plans: list[Tensor] = []  # of the last batch, one a pair: what a plot or a card shows

    def _hang_taps(self, student_layers: set[str]) -> None:
        self.student_taps = Taps(self.student, sorted(student_layers))
        self.teacher_taps = [
            Taps(teacher.model, sorted({pair.teacher for pair in self.pairs if pair.teacher_index == i}))
            for i, teacher in enumerate(self.teachers)
        ]

    def pair_names(self) -> list[str]:
        """What each pair is called in logs and errors."""
        return [pair_name(pair, len(self.teachers)) for pair in self.pairs]

    def set_pairs(self, pairs: Sequence[LayerPair]) -> None:
        """Puts the pairs of a new plan in the place of the present ones; carried moments of those that stay go on."""
        if self.running is not None:
            known = {_key(pair): running for pair, running in zip(self.pairs, self.running, strict=True)}
            self.running = [known.get(_key(pair)) or RunningMoments(self.config.plan_momentum) for pair in pairs]
        self.pairs, self.plans = list(pairs), []
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

    def close(self) -> None:
        """Takes every hook off both sides."""
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
    ) -> Terms:
        """The total loss of one batch, to be called after a forward pass inside `recording()`.

        Args:
            inputs: The batch, as the student received it plus what is meant for teachers.
            task: The student's own loss; None without labels.
            student_logits: The student's logits; needed for distillation and without labels.
            ot_weight: Weight of the transport term at this step.
            progress: Share of all steps that have been made.
        """
        config = self.config
        total, logs = [], {}
        if task is not None:
            total.append(config.task_weight * task)
            logs["task_loss"] = task.detach()
        layers, teacher_logits = self.teach(inputs) if self.teachers else ([], [])

        students = self.student_taps.take()
        dropped = None
        if self.pairs and config.ot_weight > 0:
            neurons, weights = self.neurons(students, layers, inputs), None
            if self.selections is not None:
                weights, terms, more = self.selections(neurons, inputs, progress)
                total += terms
                logs |= more
            outputs = self.transport.forward_pairs(
                neurons,
                plans=None if self.learned is None else self.learned.plans,
                running=self.running,
                teacher_weights=weights,
            )
            self.plans = [output.plan for output in outputs]
            share = [pair.weight / sum(p.weight for p in self.pairs) for pair in self.pairs]
            transport = torch.stack([w * output.loss for w, output in zip(share, outputs, strict=True)]).sum()
            total.append(ot_weight * transport)
            logs["ot_loss"] = transport.detach()
            logs["ot_weight"] = transport.new_full((), ot_weight)
            logs |= self._transport_logs(outputs)
            dropped = torch.stack([output.logs["dropped"] for output in outputs])
            if self.layers is not None:
                logs |= {name: transport.new_full((), value) for name, value in self.layers.logs().items()}
        terms, more = self.rivals(students, layers, inputs)
        total += terms
        logs |= more
        if self.distillation is not None:
            given = (labels_of(inputs, "kd_method='dkd'", "kd_method='kl'"),) if config.kd_method == "dkd" else ()
            outputs = [self.distillation(student_logits, logits, *given) for logits in teacher_logits]
            distillation = torch.stack([output.loss for output in outputs]).mean()
            total.append(config.kd_weight * distillation)
            logs["kd_loss"] = distillation.detach()
            for name in outputs[0].logs:
                logs[name] = torch.stack([output.logs[name] for output in outputs]).mean()
        if self.anchor is not None:
            output = self.anchor()
            total.append(config.l2sp_weight * output.loss)
            logs["l2sp_loss"] = output.loss.detach()
            logs |= output.logs
        if task is None and self.distillation is None and student_logits is not None:
            # The head takes part with a gradient of 0: DDP waits for every parameter that the outputs depend on.
            total.append((0.0 * student_logits.float().nan_to_num()).sum())
        return Terms(torch.stack([term.float() for term in total]).sum(), logs, dropped)

    def _transport_logs(self, outputs: Sequence[LossOutput]) -> dict[str, Tensor]:
        """Diagnostics averaged over the pairs, and each pair's own value where there are several."""
        logs = {}
        for name in ("cost", "marginal_error", "iterations", "plan_entropy", "off_identity"):
            values = [output.logs[name] for output in outputs if name in output.logs]
            if values:
                logs[f"ot_{name}"] = torch.stack(values).mean()
        for name in ("dropped", "skipped"):
            logs[f"ot_{name}"] = torch.stack([output.logs[name] for output in outputs]).sum()
        if len(outputs) > 1:
            for pair, output in zip(self.pairs, outputs, strict=True):
                logs[f"ot_loss/{pair_name(pair, len(self.teachers))}"] = output.loss.detach()
        return logs

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


def _distillation(config: OTTransferConfig) -> LogitDistillation | DecoupledDistillation:
    if config.kd_method == "dkd":
        return DecoupledDistillation(config.dkd_alpha, config.dkd_beta, config.kd_temperature)
    return LogitDistillation(config.kd_temperature)


def _key(pair: LayerPair) -> tuple[str, str, int]:
    return pair.student, pair.teacher, pair.teacher_index


def pair_name(pair: LayerPair, teachers: int = 1) -> str:
    """A pair as it is written in logs and on the command line: student=teacher, teachers told apart by number."""
    return f"{pair.student}={pair.teacher}" + (f"@{pair.teacher_index}" if teachers > 1 else "")
