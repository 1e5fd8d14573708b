"""Brings the classes of data, student and teachers together before training, and says how."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from ..models.classes import check_data_names, data_names, name_classes, pair_names, shown
from ..models.modules import class_count, class_names
from .labels import CheckedLabels, LabelRule, stated_problem

logger = logging.getLogger("hf_reprot")


class ClassesMixin:
    """For a trainer: which class is which, and whether labels are classes of the student at all."""

    class_notes: tuple[str, ...] = ()

    def _settle_classes(self, student: nn.Module) -> None:
        """Names an unnamed student as the data, and refuses data whose classes are others than the student's.

        Raises:
            ValueError: names that contradict each other.
        """
        self.class_notes = ()
        labelled = self.args.task_weight > 0
        names = data_names(self.train_dataset, self._label_columns())
        self._name_student(student, names, labelled)
        if self.args.kd_weight > 0 and not labelled:
            self._take_problem(student)
        sets = list(_evaluation_sets(self.eval_dataset))
        if labelled:
            sets.insert(0, ("train_dataset", self.train_dataset))
        for title, dataset in sets:
            self._check_classes(dataset, title, student)

    def _name_student(self, student: nn.Module, names: list[str] | None, labelled: bool) -> None:
        count = class_count(student)
        if class_names(student) is not None or count is None or not hasattr(student, "config"):
            return
        source = "the data's names"
        if not labelled and self.args.kd_weight > 0:  # the teacher alone says what the outputs mean
            taught = [class_names(t.model) for t in self.teachers if t.classes is None]
            taught = [theirs for theirs in taught if theirs is not None and len(theirs) == count]
            if taught and (names is None or pair_names(taught[0], names).columns is None):
                names, source = taught[0], "the teacher's names"
        if names is not None and len(names) == count:
            name_classes(student, names)
            self._note(f"The student had no class names and takes {source}: {shown(names)}.")

    def _take_problem(self, student: nn.Module) -> None:
        """A student that is taught by logits alone answers what its teachers do."""
        told = [stated_problem(t.model) for t in self.teachers if t.classes != ()]
        told = [problem for problem in told if problem is not None]
        config = getattr(student, "config", None)
        if told and stated_problem(student) is None and getattr(config, "problem_type", "") is None:
            config.problem_type = told[0]
            self._note(f"The student had no problem_type and takes the teacher's: {told[0]}.")

    def _check_classes(self, dataset: Any, title: str, student: nn.Module | None = None) -> None:
        """Refuses a data set whose class i is another one than the student's output i."""
        student = self.accelerator.unwrap_model(self.model, keep_torch_compile=False) if student is None else student
        columns = self._label_columns()
        names, ours, count = data_names(dataset, columns), class_names(student), class_count(student)
        if names is None or count is None:
            return
        column = next(c for c in columns if data_names(dataset, [c]) is not None)
        if ours is None:  # of several data sets, the first one that is trained on says what the numbers mean
            ours = data_names(self.train_dataset, columns)
            if len(names) > count:
                raise ValueError(
                    f"{title} has {len(names)} classes ({shown(names)}) and the student {count}: load it with the "
                    "data's names (load_student(source, names) makes a head for them)"
                )
            if ours is None:
                return
        note = check_data_names(names, ours, title, column)
        if note is not None:
            self._note(note)

    def _label_columns(self) -> list[str]:
        """Where the labels of a data set may stand."""
        read = getattr(self.data_collator, "input_columns", (None, None))
        own = [read[1]] if len(read) > 1 and read[1] else []
        return [*own, *(self.label_names or ()), "labels", "label"]

    def _checked_labels(self, collator: Any, training: bool) -> Any:
        """A collator that looks at the labels of its batches, where the student's loss is known."""
        if collator is None or self.compute_loss_func is not None or (training and self.args.task_weight == 0):
            return collator
        student = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        rule = LabelRule.of(student, self.label_names or ("labels",))
        return collator if rule is None else CheckedLabels(collator, rule)

    def settle_head_classes(self, dataset: Any) -> None:
        """Before a head is fitted to labelled samples: an unnamed student takes their names.

        Raises:
            ValueError: its names contradict those of the data.
        """
        student = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        self._name_student(student, data_names(dataset, self._label_columns()), labelled=True)
        self._check_classes(dataset, "the labelled samples", student)

    def _note(self, note: str) -> None:
        if note not in self.class_notes:
            self.class_notes += (note,)
            logger.info(note)


def _evaluation_sets(dataset: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(dataset, Mapping) and not hasattr(dataset, "features"):
        yield from ((f"eval_dataset[{name!r}]", part) for name, part in dataset.items())
    elif dataset is not None:
        yield "eval_dataset", dataset
