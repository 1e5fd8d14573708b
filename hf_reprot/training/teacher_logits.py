"""The distillation of logits in a trainer: from which teachers, over which classes, with or without labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..config import OTTransferConfig
from ..losses.baselines.decoupled import DecoupledDistillation
from ..losses.distillation import SINGLE_LABEL, LogitDistillation
from ..losses.partial import PartialDistillation
from ..models.classes import pair_names, refuse_teacher, shown, teacher_note
from ..models.modules import class_count, class_names
from ..models.problems import problem_of, stated_problem
from ..models.spec import columns_of_classes
from ..models.teacher import Teacher
from .labels import check_settings, labels_of


class TeacherLogits:
    """Distils the logits of one or several teachers.

    A teacher's classes are those that it was given (`Teacher.classes`), or else found by name: where every class of its
    head has the name of one of the student's, the heads are brought together by these names. Where the task's labels
    take part, a teacher of some classes is heard on the samples of these classes; without labels, on each sample by how
    sure it is there (`PartialDistillation` has the formulas). A teacher without a head beside others that have one
    takes no part. The form of the loss follows the student's `problem_type` (`LogitDistillation` has the formulas).

    Args:
        config: The settings.
        classes: The classes of each teacher, as `known_classes` gives them.
        weights: The weight of each.
        names: What each is called in the logs.
        samples: Of each, on which samples its neurons are matched: "own" or "all".
        count: Number of the student's classes; None: not known.
        student: The student: its `problem_type` may be set by its first batch.
        teachers: The models of the teachers: what they answer says what is asked, where the student does not.

    Raises:
        ValueError: a teacher that answers another question than the student, or settings that do not fit it.
    """

    def __init__(
        self,
        config: OTTransferConfig,
        classes: Sequence[list[int | None] | None],
        weights: Sequence[float],
        names: Sequence[str],
        samples: Sequence[str],
        count: int | None,
        student: nn.Module | None = None,
        teachers: Sequence[nn.Module] = (),
    ):
        self.config = config
        self.student = student
        self._asked = [stated_problem(model) for model in teachers]
        self.names = list(names)
        self.weights = list(weights)
        self.classes = list(classes)
        self.count = count or 0
        self._loss: PartialDistillation | None = None
        self._heard: list[int] = []
        known = [[k for k in c or () if k is not None] for c in self.classes]
        # Teachers whose neurons are not matched on all samples.
        self.gated = [i for i, c in enumerate(known) if c and len(c) < self.count and samples[i] == "own"]
        self._knows = torch.zeros(len(self.gated), self.count)  # 1 where a gated teacher knows a class
        for row, i in enumerate(self.gated):
            self._knows[row, known[i]] = 1.0
        problem = problem_of(student) if student is not None else None
        check_settings(config, problem)
        if config.kd_weight > 0:
            self._check_teachers(problem)

    def outputs(self, teacher: int, count: int) -> int | None:
        """Number of logits that a teacher is expected to have, for a student of `count` classes; None: not read."""
        classes = self.classes[teacher]
        return count if classes is None else len(classes) or None

    def __call__(
        self, student_logits: Tensor, teacher_logits: Sequence[Tensor | None], inputs: Mapping[str, Any], labelled: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of one batch, without its weight, and what to log.

        Args:
            student_logits: (..., classes).
            teacher_logits: Each teacher's; None without a head.
            inputs: The batch; its labels are read where they take part.
            labelled: Whether labels take part: without the task's own loss, they do not.
        """
        loss = self._loss or self._build(student_logits.shape[-1], teacher_logits, self._problem(inputs, labelled))
        if loss is None:
            raise ValueError("kd_weight is above 0 but no teacher has logits to learn from: set kd_weight=0")
        labels = None
        if self.config.kd_method == "dkd":
            labels = labels_of(inputs, "kd_method='dkd'", "kd_method='kl'")
        elif labelled and any(loss.partial):
            labels = inputs.get("labels")
        output = loss(student_logits, [teacher_logits[i] for i in self._heard], labels)
        logs = {"kd_loss": output.loss.detach()}
        apart = len(self.names) > 1 or any(loss.partial)
        for name, value in output.logs.items():
            part, _, number = name.partition("/")
            if not number:
                logs[name] = value
            elif apart:
                logs[f"kd_{part}/{self.names[self._heard[int(number)]]}"] = value
        return output.loss, logs

    def sample_weights(
        self, teacher_logits: Sequence[Tensor | None], inputs: Mapping[str, Any], labelled: bool
    ) -> list[Tensor | None]:
        """How much each sample counts (n,) where the neurons of each teacher are matched; None: all of them do.

        Of a teacher that knows only some classes, those of its classes count where labels take part; without, beside
        other teachers, each as much as the teacher is heard there.
        """
        weights: list[Tensor | None] = [None] * len(self.classes)
        labels = inputs.get("labels") if labelled else None
        if not self.gated or (labels is not None and (labels.dim() != 1 or labels.is_floating_point())):
            return weights
        if self._problem(inputs, labelled) != SINGLE_LABEL:
            return weights  # every sample is one of each class: it has it or not
        if labels is not None:
            if self._knows.device != labels.device:
                self._knows = self._knows.to(labels.device)  # once
            real = (labels >= 0) & (labels < self.count)
            knows = self._knows[:, labels.clamp(0, self.count - 1)] * real
            for row, i in enumerate(self.gated):
                weights[i] = knows[row]
            return weights
        loss = self._loss or self._build(self.count, teacher_logits, SINGLE_LABEL)
        found = [logits for logits in (teacher_logits[i] for i in self._heard) if logits is not None]
        if loss is not None and len(found) > 1 and found[0].dim() == 2:
            heard = loss.heard([logits.detach().float() for logits in found])
            for row, i in enumerate(self._heard):
                weights[i] = heard[row] if i in self.gated else None
        return weights

    def _problem(self, inputs: Mapping[str, Any], labelled: bool) -> str:
        """What the student's outputs are, now that there is a batch: its loss may have found it out."""
        labels = inputs.get("labels")
        labels = labels if isinstance(labels, Tensor) else None
        problem = problem_of(self.student, labels if labelled else None) if self.student is not None else SINGLE_LABEL
        if problem is None and self.student is not None:
            # No labels take part: what the teachers say, or the labels that are there.
            told = [asked for i, asked in enumerate(self._asked) if asked is not None and self.classes[i] != []]
            problem = told[0] if told else problem_of(self.student, labels)
        return problem or SINGLE_LABEL

    def _check_teachers(self, problem: str | None) -> None:
        for name, classes, asked in zip(self.names, self.classes, self._asked, strict=False):
            if problem is not None and asked is not None and classes != [] and asked != problem:
                raise ValueError(
                    f"kd_weight is above 0, the student's problem_type is {problem!r} and that of the teacher {name} "
                    f"{asked!r}: their answers cannot be compared. Set kd_weight=0, or the problem_type of both "
                    "configs to what they were trained for"
                )

    def _build(self, count: int, logits: Sequence[Tensor | None], problem: str) -> PartialDistillation | None:
        """Makes the loss of the teachers that are heard; None where none is, and kd_weight is 0."""
        check_settings(self.config, problem)
        if self.config.kd_weight > 0:
            self._check_teachers(problem)
        self._heard = [i for i, z in enumerate(logits) if z is not None and self.outputs(i, count) is not None]
        if self.config.kd_weight == 0:  # their logits only say how sure they are: those of another task do not
            widths = [z.shape[-1] if z is not None else None for z in logits]
            self._heard = [i for i in self._heard if widths[i] == self.outputs(i, count)]
        if not self._heard:
            return None
        config = self.config
        loss: nn.Module = LogitDistillation(config.kd_temperature, problem)
        if config.kd_method == "dkd":
            loss = DecoupledDistillation(config.dkd_alpha, config.dkd_beta, config.kd_temperature)
        self._loss = PartialDistillation(
            [self.classes[i] for i in self._heard],
            count,
            weights=[self.weights[i] for i in self._heard],
            loss=loss,
            global_batch=config.ot_global_batch,
        )
        return self._loss


def known_classes(student: nn.Module, teachers: Sequence[Teacher], distils: bool) -> list[list[int | None] | None]:
    """For each teacher, the student's class of each of its outputs; None for all of them in the student's order.

    Args:
        student: The student; its config names its classes.
        teachers: Its teachers.
        distils: Whether their logits teach it: names that contradict the student's are then refused, and matter to
            nothing otherwise.

    Raises:
        ValueError: classes that the student does not have, or their number is not that of the teacher's outputs; names
            of which some are the student's and some are not.
    """
    ours, count = class_names(student), class_count(student)
    found: list[list[int | None] | None] = []
    for teacher in teachers:
        columns = _named(teacher, ours, distils) if teacher.classes is None else _given(teacher, ours, count)
        found.append(None if columns == list(range(count or 0)) and columns else columns)
    return found


def class_notes(student: nn.Module, teachers: Sequence[Teacher]) -> list[str]:
    """What is to be said of how the teachers' outputs go with the student's classes.

    Call it after `known_classes`, which refuses what contradicts.
    """
    ours, notes = class_names(student), []
    for teacher in teachers:
        theirs = class_names(teacher.model)
        if teacher.classes is not None:
            some = f"the classes {shown(list(map(str, teacher.classes)))}, as given" if teacher.classes else "no class"
            notes.append(f"The teacher {teacher.title} knows {some}.")
        elif theirs is None or ours is None:
            if class_count(teacher.model) is not None:
                who = f"The teacher {teacher.title}" if theirs is None else "The student"
                notes.append(f"{who} names no classes: the outputs of {teacher.title} are the student's, in order.")
        else:
            pairing = pair_names(theirs, ours)
            if pairing.columns is not None:
                notes.append(teacher_note(teacher.title, pairing, theirs, ours))
    return notes


def _named(teacher: Teacher, ours: list[str] | None, distils: bool) -> list[int | None] | None:
    theirs = class_names(teacher.model)
    if theirs is None or ours is None:
        return None
    pairing = pair_names(theirs, ours)
    if pairing.columns is None and distils:
        refuse_teacher(teacher.title, pairing, theirs, ours)
    return pairing.columns if pairing.by_name else None


def _given(teacher: Teacher, ours: list[str] | None, count: int | None) -> list[int | None]:
    theirs, given = class_names(teacher.model), teacher.classes or ()
    if theirs is not None and given and len(theirs) != len(given):
        raise ValueError(
            f"the teacher {teacher.title} has {len(theirs)} outputs and {len(given)} classes are given: give one for "
            "each output, in their order (None for an output without one)"
        )
    if count is None and given:
        raise ValueError(
            f"classes of the teacher {teacher.title} are given, and the student's config does not say which it has "
            "(num_labels, id2label)"
        )
    return columns_of_classes(given, ours, count or 0, teacher.title)
