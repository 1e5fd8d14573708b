"""From one training batch to the loss: layers recorded, teachers run, the terms added up."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..config import OTTransferConfig
from ..data.preprocessing import Preprocessing
from ..features.activations import Activation
from ..features.matching import LayerPlan
from ..features.pairs import LayerPair
from ..features.taps import LayerRecorder, Taps
from ..models.modules import class_count
from ..models.teacher import Teacher
from .auxiliary import check_modules
from .backbones import features_of
from .matched_layers import MatchedLayers
from .teacher_logits import TeacherLogits, known_classes
from .teachers import teacher_names
from .terms.base import Batch, Term, TermContext, TrainingLoop
from .terms.registry import build_terms
from .terms.transport import TransportTerm

AUXILIARY = "auxiliary."
_FORMER = {"companions.": AUXILIARY}  # what checkpoints of earlier versions call it

T = TypeVar("T", bound=Term)


@dataclass
class Loss:
    """The loss of one batch: `loss` to differentiate, `logs` to average, `dropped` (pairs,) for the watch."""

    loss: Tensor
    logs: dict[str, Tensor] = field(default_factory=dict)
    dropped: Tensor | None = None


class TransferObjective:
    """The terms of one student and its teachers.

    Records layers on both sides; holds no weights of the student and is no part of it.

    Args:
        student: The student, unwrapped (before DDP, FSDP or compilation).
        teachers: Frozen teachers.
        pairs: Which student layer goes with which teacher layer, resolved.
        config: The settings.
        preprocessing: How the student's `pixel_values` were normalised; None for text or where it is not known.
        heads: Paths of the student's heads, which L2-SP leaves alone.
        sharded: Whether the student's weights are spread over processes.
        learned_cost: A cost between neurons that the user has fitted, or one for each pair.

    Raises:
        ValueError: settings that a term cannot work with, or a cost that no term uses.

    Attributes:
        terms: The terms that take part, in the order in which they are added up.
        layers: The layer pairs.
        auxiliary: Modules of the terms that train along with the student and are no part of it.
    """

    def __init__(
        self,
        student: nn.Module,
        teachers: Sequence[Teacher],
        pairs: Sequence[LayerPair],
        config: OTTransferConfig,
        preprocessing: Preprocessing | None = None,
        heads: Sequence[str] = (),
        sharded: bool = False,
        learned_cost: Any = None,
    ):
        if learned_cost is not None and not config.learns_cost:
            raise ValueError(
                f"learned_cost was given, but ot_cost={config.ot_cost!r} and ot_weight={config.ot_weight} do not use "
                "it: set ot_cost='learned' and an ot_weight above 0"
            )
        self.config = config
        self.student = student
        self.teachers = list(teachers)
        self.preprocessing = preprocessing
        self.teacher_weights = [teacher.weight for teacher in self.teachers]
        self.known_classes = known_classes(student, self.teachers, config.kd_weight > 0)
        names = teacher_names(self.teachers)
        self.layers = MatchedLayers(config, pairs, names, self.teacher_weights)
        logits = TeacherLogits(
            config,
            self.known_classes,
            self.teacher_weights,
            names,
            [teacher.samples for teacher in self.teachers],
            class_count(student),
            student,
            [teacher.model for teacher in self.teachers],
        )
        facts = (preprocessing, heads, sharded, learned_cost)
        self.terms = build_terms(TermContext(config, student, self.teachers, self.layers, logits, *facts))
        self.auxiliary = nn.ModuleDict()
        self._record()
        self.layers.on_change(self._record_others)

    # ---- what it is made of ----

    @property
    def pairs(self) -> list[LayerPair]:
        """The layer pairs."""
        return self.layers.pairs

    @property
    def shares(self) -> list[float]:
        """Each pair's share of a term that compares layers."""
        return self.layers.shares

    @property
    def plans(self) -> list[Tensor | None]:
        """The transport plans (d_s, d_t) of the last batch, one a pair; empty without transport."""
        transport = self.find(TransportTerm)
        return transport.plans if transport is not None else []

    @property
    def layer_plans(self) -> list[LayerPlan]:
        """Of each teacher, the plan between layers that the pairs follow from; empty where the pairs were named."""
        return [plan for term in self.terms for plan in term.layer_plans]

    def find(self, kind: type[T]) -> T | None:
        """The term of this class; None where it takes no part."""
        return next((term for term in self.terms if isinstance(term, kind)), None)

    def build_modules(self, widths: Sequence[tuple[int, int]], device: torch.device) -> None:
        """Makes the modules that train along with the student, once the widths of the layer pairs are known.

        Args:
            widths: (d_s, d_t) of each pair; empty where they are not known before training.
            device: Where the student lives.
        """
        self.auxiliary = nn.ModuleDict()
        for term in sorted(self.terms, key=lambda term: term.name):  # whatever is registered before them
            self.auxiliary.update(term.modules(widths, device))
        self.auxiliary.to(device)

    # ---- layers and teachers ----

    def _record(self) -> None:
        paired = {pair.student for pair in self.pairs}
        # All that terms may come to read: a compiled student has only the hooks that it was compiled with.
        others = {layer for term in self.terms for layer in term.student_layers}
        self.student_taps = Taps(self.student, sorted(paired | others))
        self.teacher_taps: list[LayerRecorder] = [
            teacher.taps(sorted({pair.teacher for pair in self.pairs if pair.teacher_index == i}))
            for i, teacher in enumerate(self.teachers)
        ]

    def _record_others(self) -> None:
        self.close()
        self._record()

    def register(self) -> None:
        """Registers the hooks on both sides for a training run."""
        for taps in (self.student_taps, *self.teacher_taps):
            taps.register()

    def close(self) -> None:
        """Removes every hook from both sides; a pass that is recorded without them registers its own."""
        for taps in (self.student_taps, *self.teacher_taps):
            taps.close()

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Records the student's layers during the forward pass made inside."""
        with self.student_taps.recording():
            yield

    def teach(self, inputs: Mapping[str, Any]) -> tuple[list[dict[str, Activation]], list[Tensor | None]]:
        """Runs every teacher on the batch: its layers' activations by name, and its logits."""
        layers, logits = [], []
        for teacher, taps in zip(self.teachers, self.teacher_taps, strict=True):
            with torch.no_grad(), taps.recording():
                logits.append(teacher(teacher.inputs_for(dict(inputs), self.preprocessing)))
            layers.append(taps.take())
        return layers, logits

    # ---- the loss ----

    def batch(self, inputs: Mapping[str, Any], logits: Tensor | None = None, **facts: Any) -> Batch:
        """What terms see of a batch, to be called after the student's forward pass inside `recording()`.

        Args:
            inputs: The batch, as the student received it plus what is meant for teachers.
            logits: The student's logits.
            facts: As in `Batch`: task, step, steps, share.
        """
        teachers, teacher_logits = self.teach(inputs)
        return Batch(
            inputs=inputs,
            logits=logits,
            student=self.student_taps.take(),
            teachers=teachers,
            teacher_logits=teacher_logits,
            **facts,
        )

    def __call__(self, batch: Batch) -> Loss:
        """The loss of one batch: the sum of its terms."""
        total: list[Tensor] = []
        logs: dict[str, Tensor] = {}
        dropped = None
        for term in self.terms:
            output = term(batch)
            if output is None:
                continue
            total.append(batch.share.samples * output.loss if term.of_samples else output.loss)
            logs |= output.logs
            dropped = output.dropped if output.dropped is not None else dropped
        if batch.logits is not None and not batch.labelled and not any("logits" in term.needs for term in self.terms):
            # The head takes part with a gradient of 0: DDP waits for every parameter that the outputs depend on.
            total.append((0.0 * batch.logits.float().nan_to_num()).sum())
        return Loss(torch.stack([term.float() for term in total]).sum(), logs, dropped)

    # ---- around the steps ----

    def on_train_begin(self, loop: TrainingLoop) -> None:
        """Before the first step of a run."""
        for term in self.terms:
            term.on_train_begin(loop)

    def on_step_begin(self, loop: TrainingLoop) -> None:
        """Before the first micro-batch of a step."""
        for term in self.terms:
            term.on_step_begin(loop)

    def state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint must hold so that a resumed run continues as if it had not stopped."""
        state = {f"{AUXILIARY}{name}": value for name, value in self.auxiliary.state_dict().items()}
        for term in self.terms:
            state |= term.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restores what `state_dict` gave, of this version or an earlier one.

        Raises:
            ValueError: the run that wrote it started from other weights, or had other layer pairs or other modules that
                trained along.
        """
        device = self.teachers[0].device if self.teachers else torch.device("cpu")
        state = {_present_name(name): value for name, value in state.items()}
        for term in self.terms:
            term.load_state_dict(state, device)
        modules = {k.removeprefix(AUXILIARY): v for k, v in state.items() if k.startswith(AUXILIARY)}
        check_modules(self.auxiliary.state_dict(), modules)
        self.auxiliary.load_state_dict(modules, strict=True)


def logits_of(outputs: Any, has_loss: bool) -> Tensor | None:
    """The logits among a model's outputs, which may be a mapping or a tuple; of a backbone, all that it gives."""
    if isinstance(outputs, Mapping):
        return outputs["logits"] if "logits" in outputs else features_of(outputs)
    if isinstance(outputs, Tensor):
        return outputs
    return outputs[1] if has_loss else outputs[0]


def _present_name(name: str) -> str:
    for former, present in _FORMER.items():
        if name.startswith(former):
            return present + name.removeprefix(former)
    return name
