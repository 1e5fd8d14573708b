"""What a term of the loss is: built once a run, called on every batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...config import OTTransferConfig
from ...data.preprocessing import Preprocessing
from ...features.activations import Activation
from ...features.matching import LayerPlan
from ...models.teacher import Teacher
from ..matched_layers import MatchedLayers
from ..shares import Share
from ..teacher_logits import TeacherLogits


@dataclass(frozen=True)
class TermContext:
    """What a term is built from.

    Attributes:
        config: The settings.
        student: The student, unwrapped.
        teachers: Frozen teachers.
        layers: The layer pairs.
        logits: How the teachers' logits go with the student's classes.
        preprocessing: How the student's `pixel_values` were normalised; None for text or where it is not known.
        heads: Paths of the student's heads.
        sharded: Whether the student's weights are spread over processes (FSDP, DeepSpeed).
        learned_cost: A cost between neurons that the user has fitted (one, or one a pair).
    """

    config: OTTransferConfig
    student: nn.Module
    teachers: Sequence[Teacher]
    layers: MatchedLayers
    logits: TeacherLogits
    preprocessing: Preprocessing | None = None
    heads: Sequence[str] = ()
    sharded: bool = False
    learned_cost: Any = None


@dataclass(frozen=True)
class Batch:
    """What a term sees of one batch.

    Attributes:
        inputs: The batch, as the student received it plus what is meant for teachers.
        task: () The student's own loss, times its share; None where the labels take no part.
        logits: (..., classes) The student's logits; None without a head.
        student: The student's layers by name.
        teachers: Of each teacher, its layers by name.
        teacher_logits: Of each teacher, its logits; None without a head.
        step: Optimiser steps that have been made.
        steps: Optimiser steps of the whole run.
        share: How much of the optimiser's step this batch holds.
    """

    inputs: Mapping[str, Any]
    task: Tensor | None = None
    logits: Tensor | None = None
    student: Mapping[str, Activation] = field(default_factory=dict)
    teachers: Sequence[Mapping[str, Activation]] = ()
    teacher_logits: Sequence[Tensor | None] = ()
    step: int = 0
    steps: int = 0
    share: Share = field(default_factory=Share)

    @property
    def labelled(self) -> bool:
        """Whether labels take part."""
        return self.task is not None

    @property
    def progress(self) -> float:
        """Share of all steps that have been made."""
        return self.step / max(self.steps, 1)


@dataclass
class TermOutput:
    """One term on one batch.

    Attributes:
        loss: () What is added to the loss, times its weight.
        logs: Detached scalars for the log. Their means over steps are shown.
        dropped: (pairs,) 1 where a pair's part was left out because it was not finite, 0 elsewhere.
    """

    loss: Tensor
    logs: dict[str, Tensor] = field(default_factory=dict)
    dropped: Tensor | None = None


@dataclass(frozen=True)
class TrainingLoop:
    """What a term may ask of the training loop around it, before the first step and between steps.

    Attributes:
        model: The student as it is trained: in DDP's wrapper, say.
        student: The student, unwrapped.
        observe: Runs the student (`model`) and the teachers on prepared inputs, as in training, and gives the batch.
        batches: The first `count` batches of the training data, prepared; with `augmented=False`, images are not
            augmented.
        autocast: Mixed precision as in training.
        device: Where the student lives.
        seed: The run's seed.
        step: Optimiser steps that have been made.
        batch_size: Samples of one batch of all processes.
        label_names: Columns of the labels.
    """

    model: nn.Module
    student: nn.Module
    observe: Callable[[Mapping[str, Any]], Batch]
    batches: Callable[..., Iterable[Mapping[str, Any]]]
    autocast: Callable[[], AbstractContextManager[Any]]
    device: torch.device
    seed: int
    step: int
    batch_size: int
    label_names: Sequence[str]


class Term:
    """One named term of the loss.

    A subclass writes `__call__`, and whatever else it has something to say to. It keeps what it needs of the context.

    Attributes:
        name: What the term is called: the registry has no name twice.
        needs: "logits" where the loss reads the student's logits.
        of_samples: Whether the loss is a mean over the batch's samples, which the objective weighs by `Batch.share`.
        student_layers: Layers of the student that it reads besides those of the layer pairs.
        layer_plans: Of each teacher, the plan between layers that the pairs follow from, where the term finds them.
    """

    name: ClassVar[str]
    needs: ClassVar[frozenset[str]] = frozenset()
    of_samples: ClassVar[bool] = True
    student_layers: Sequence[str] = ()
    layer_plans: Sequence[LayerPlan] = ()

    def __init__(self, context: TermContext):
        self.config = context.config

    def __call__(self, batch: Batch) -> TermOutput | None:
        """The term of one batch; None where it has nothing to say to it."""
        raise NotImplementedError

    def modules(self, widths: Sequence[tuple[int, int]], device: torch.device) -> Mapping[str, nn.Module]:
        """Makes the modules that train along with the student and are no part of it, by name. Called once.

        Args:
            widths: (d_s, d_t) of each layer pair; empty where they are not known before training.
            device: Where the student lives; the modules are brought there.
        """
        return {}

    def check(self, batch: Batch) -> None:
        """Refuses, on a dummy batch in evaluation mode, what the term cannot work with.

        Raises:
            ValueError: one line that says what to change.
        """

    def on_train_begin(self, loop: TrainingLoop) -> None:
        """Before the first step of a run; a checkpoint has been loaded."""

    def on_step_begin(self, loop: TrainingLoop) -> None:
        """Before the first micro-batch of a step."""

    def state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint must hold besides the term's modules, so that a resumed run continues as if not stopped.

        Every key starts with a prefix of the term's own.
        """
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor], device: torch.device) -> None:
        """Restores what `state_dict` gave.

        Args:
            state: The state of all terms.
            device: Where tensors go.

        Raises:
            ValueError: a state that does not fit this run.
        """
