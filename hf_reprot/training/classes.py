"""Brings the classes of data, student and teachers together before training, and says how."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from ..config import OTTransferConfig
from ..models.classes import check_data_names, data_names, name_classes, pair_names, shown
from ..models.modules import class_count, class_names
from ..models.problems import stated_problem
from ..models.teacher import Teacher

logger = logging.getLogger("hf_reprot")


class ClassNames:
    """Which class is which: names those of the student where it has none, and refuses data of other classes.

    Args:
        args: The settings.
        teachers: The teachers.

    Attributes:
        notes: How classes were brought together: sentences for the log and the card.
    """

    def __init__(self, args: OTTransferConfig, teachers: Sequence[Teacher]):
        self.args, self.teachers = args, teachers
        self.notes: tuple[str, ...] = ()

    def settle(self, student: nn.Module, train: Any, evaluation: Any, columns: Sequence[str]) -> None:
        """Names an unnamed student as the data, and refuses data whose classes are others than the student's.

        Args:
            student: The student, unwrapped.
            train, evaluation: The data sets; the latter one or a mapping of several.
            columns: Where labels may stand.

        Raises:
            ValueError: names that contradict each other.
        """
        self.notes = ()
        labelled = self.args.task_weight > 0
        self.name_student(student, data_names(train, columns), labelled)
        if self.args.kd_weight > 0 and not labelled:
            self._take_problem(student)
        sets = list(_evaluation_sets(evaluation))
        if labelled:
            sets.insert(0, ("train_dataset", train))
        for title, dataset in sets:
            self.check(dataset, title, student, train, columns)

    def name_student(self, student: nn.Module, names: list[str] | None, labelled: bool) -> None:
        """Gives a student without class names those of the data or, where logits alone teach it, of a teacher."""
        count = class_count(student)
        if class_names(student) is not None or count is None or not hasattr(student, "config"):
            return
        source = "the data's names"
        if not labelled and self.args.kd_weight > 0:  # the teacher alone says what the outputs mean
            known = [class_names(t.model) for t in self.teachers if t.classes is None]
            taught = [theirs for theirs in known if theirs is not None and len(theirs) == count]
            if taught and (names is None or pair_names(taught[0], names).columns is None):
                names, source = taught[0], "the teacher's names"
        if names is not None and len(names) == count:
            name_classes(student, names)
            self.note(f"The student had no class names and takes {source}: {shown(names)}.")

    def _take_problem(self, student: nn.Module) -> None:
        """A student that is taught by logits alone answers what its teachers do."""
        told = [stated_problem(t.model) for t in self.teachers if t.classes != ()]
        known = [problem for problem in told if problem is not None]
        config: Any = getattr(student, "config", None)
        if known and stated_problem(student) is None and getattr(config, "problem_type", "") is None:
            config.problem_type = known[0]
            self.note(f"The student had no problem_type and takes the teacher's: {known[0]}.")

    def check(self, dataset: Any, title: str, student: nn.Module, train: Any, columns: Sequence[str]) -> None:
        """Refuses a data set whose class i is another one than the student's output i.

        Args:
            dataset: The data set.
            title: What to call it.
            student: The student, unwrapped.
            train: What it is trained on: of an unnamed student, it says what the numbers mean.
            columns: Where labels may stand.

        Raises:
            ValueError: such a data set.
        """
        names, ours, count = data_names(dataset, columns), class_names(student), class_count(student)
        if names is None or count is None:
            return
        column = next(c for c in columns if data_names(dataset, [c]) is not None)
        if ours is None:  # of several data sets, the first one that is trained on says what the numbers mean
            ours = data_names(train, columns)
            if len(names) > count:
                raise ValueError(
                    f"{title} has {len(names)} classes ({shown(names)}) and the student {count}: load it with the "
                    "data's names (load_student(source, names) makes a head for them)"
                )
            if ours is None:
                return
        note = check_data_names(names, ours, title, column)
        if note is not None:
            self.note(note)

    def note(self, note: str) -> None:
        """Keeps a sentence, and logs it once."""
        if note not in self.notes:
            self.notes += (note,)
            logger.info(note)


def label_columns(collator: Any, label_names: Sequence[str] | None) -> list[str]:
    """Where the labels of a data set may stand.

    Args:
        collator: What makes batches; it may read a column of its own.
        label_names: The trainer's.
    """
    read = getattr(collator, "input_columns", (None, None))
    own = [read[1]] if len(read) > 1 and read[1] else []
    return [*own, *(label_names or ()), "labels", "label"]


def _evaluation_sets(dataset: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(dataset, Mapping) and not hasattr(dataset, "features"):
        yield from ((f"eval_dataset[{name!r}]", part) for name, part in dataset.items())
    elif dataset is not None:
        yield "eval_dataset", dataset
