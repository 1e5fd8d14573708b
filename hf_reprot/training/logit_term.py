"""The distillation of logits in a trainer: from which teachers, over which classes, with or without labels."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..config import OTTransferConfig
from ..losses.baselines.decoupled import DecoupledDistillation
from ..losses.distillation import LogitDistillation
from ..losses.partial import PartialDistillation
from ..models.modules import class_count, class_names
from ..models.spec import columns_by_name, columns_of_classes
from ..models.teacher import Teacher
from .labels import labels_of

logger = logging.getLogger(__name__)


class LogitTerm:
    """Distils the logits of one or several teachers.

    A teacher's classes are those that it was given (`Teacher.classes`), or else found by name: where every class of its
    head has the name of one of the student's, the heads are brought together by these names. Where the task's labels
    take part, a teacher of some classes is heard on the samples of these classes; without labels, on each sample by how
    sure it is there (`PartialDistillation` has the formulas). A teacher without a head beside others that have one
    takes no part.

    Args:
        config: The settings.
        classes: The classes of each teacher, as `known_classes` gives them.
        weights: The weight of each.
        names: What each is called in the logs.
        samples: Of each, on which samples its neurons are matched: "own" or "all".
        count: Number of the student's classes; None: not known.
    """

    def __init__(
        self,
        config: OTTransferConfig,
        classes: Sequence[list[int | None] | None],
        weights: Sequence[float],
        names: Sequence[str],
        samples: Sequence[str],
        count: int | None,
    ):
        self.config = config
        self.names = list(names)
        self.weights = list(weights)
        self.classes = list(classes)
        self.count = count
        self._loss: PartialDistillation | None = None
        self._heard: list[int] = []
        known = [None if c is None else sorted(k for k in c if k is not None) for c in self.classes]
        # Teachers whose neurons are not matched on all samples.
        self.gated = [i for i, c in enumerate(known) if c and len(c) < (count or 0) and samples[i] == "own"]
        self._knows = (
            torch.stack([torch.zeros(count).index_fill(0, torch.tensor(known[i]), 1.0) for i in self.gated])
            if self.gated
            else None
        )

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
        if self._loss is None:
            self._build(student_logits.shape[-1], teacher_logits)
        labels = None
        if self.config.kd_method == "dkd":
            labels = labels_of(inputs, "kd_method='dkd'", "kd_method='kl'")
        elif labelled and any(self._loss.partial):
            labels = inputs.get("labels")
        output = self._loss(student_logits, [teacher_logits[i] for i in self._heard], labels)
        logs = {"kd_loss": output.loss.detach()}
        apart = len(self.names) > 1 or any(self._loss.partial)
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
        if labels is not None:
            if self._knows.device != labels.device:
                self._knows = self._knows.to(labels.device)  # once
            real = (labels >= 0) & (labels < self.count)
            knows = self._knows[:, labels.clamp(0, self.count - 1)] * real
            for row, i in enumerate(self.gated):
                weights[i] = knows[row]
            return weights
        if self._loss is None:
            self._build(self.count, teacher_logits)
        if len(self._heard) > 1 and teacher_logits[self._heard[0]].dim() == 2:
            heard = self._loss.heard([teacher_logits[i].detach().float() for i in self._heard])
            for row, i in enumerate(self._heard):
                weights[i] = heard[row] if i in self.gated else None
        return weights

    def _build(self, count: int, logits: Sequence[Tensor | None]) -> None:
        self._heard = [i for i, z in enumerate(logits) if z is not None and self.outputs(i, count) is not None]
        if self.config.kd_weight == 0:  # their logits only say how sure they are: those of another task do not
            self._heard = [i for i in self._heard if logits[i].shape[-1] == self.outputs(i, count)]
            if not self._heard:
                return
        if not self._heard:
            raise ValueError("kd_weight is above 0 but no teacher has logits to learn from: set kd_weight=0")
        config = self.config
        loss = LogitDistillation(config.kd_temperature)
        if config.kd_method == "dkd":
            loss = DecoupledDistillation(config.dkd_alpha, config.dkd_beta, config.kd_temperature)
        self._loss = PartialDistillation(
            [self.classes[i] for i in self._heard],
            count,
            weights=[self.weights[i] for i in self._heard],
            loss=loss,
            global_batch=config.ot_global_batch,
        )


def known_classes(student: nn.Module, teachers: Sequence[Teacher]) -> list[list[int | None] | None]:
    """For each teacher, the student's class of each of its outputs; None for all of them in the student's order.

    Raises:
        ValueError: classes that the student does not have, or their number is not that of the teacher's outputs.
    """
    ours, count = class_names(student), class_count(student)
    found: list[list[int | None] | None] = []
    for teacher in teachers:
        theirs = class_names(teacher.model)
        if teacher.classes is not None:
            if theirs is not None and teacher.classes and len(theirs) != len(teacher.classes):
                raise ValueError(
                    f"the teacher {teacher.title} has {len(theirs)} outputs and {len(teacher.classes)} classes are "
                    "given: give one for each output, in their order (None for an output without one)"
                )
            if count is None and teacher.classes:
                raise ValueError(
                    f"classes of the teacher {teacher.title} are given, and the student's config does not say which it "
                    "has (num_labels, id2label)"
                )
            columns = columns_of_classes(teacher.classes, ours, count or 0, teacher.title)
        else:
            columns = columns_by_name(theirs, ours) if theirs is not None and ours is not None else None
            if columns is not None and columns != list(range(len(ours))):
                logger.info("The teacher %s knows %s of the student's classes.", teacher.title, _listed(columns, ours))
        found.append(None if columns == list(range(count or 0)) and columns else columns)
    return found


def _listed(columns: Sequence[int], names: Sequence[str]) -> str:
    return f"{len(columns)} ({', '.join(names[c] for c in columns[:8])}{', ...' if len(columns) > 8 else ''})"
