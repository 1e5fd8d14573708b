"""What the labels of a column mean for a student: classes, several classes, or numbers; said, or refused."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..features.architecture import config_of
from .dataset_columns import Columns, check_column, is_transformed, label_kind, type_text
from .hub_datasets import Dataset
from .label_reader import LabelReader

logger = logging.getLogger(__name__)

REGRESSION, SINGLE, MULTI = "regression", "single_label_classification", "multi_label_classification"
_LOOKED_AT = 1000  # rows whose lists are checked before training


def label_names(dataset: Dataset, column: str) -> list[str]:
    """Names of the classes, in the order of their numbers; of texts, in the order of the alphabet.

    Raises:
        ValueError: no such column, or one whose classes are not known without names (floats, ...).
    """
    check_column(column, dataset.features, "the data set")
    feature = dataset.features[column]
    kind = label_kind(feature)
    if kind == "class":
        return list(feature.names)
    if kind == "classes":
        return list(_inner(feature).names)
    if kind == "bool":
        return ["False", "True"]
    if kind == "integer" and isinstance(dataset, Dataset):
        highest = max((n for n in dataset.unique(column) if n is not None), default=-1)
        return [str(label) for label in range(highest + 1)]
    if kind in ("text", "texts") and isinstance(dataset, Dataset):
        return sorted(_texts(dataset, column, kind))
    if kind == "vector":
        width = next((len(row) for row in _some_lists(dataset, column)), 0)
        return [str(label) for label in range(width)]
    if kind in ("integer", "text", "texts"):
        raise ValueError(
            f"column {column!r} of a stream holds {type_text(feature)}, and a stream does not tell its classes: cast "
            "it to datasets.ClassLabel, or take a student with the classes"
        )
    raise ValueError(
        f"column {column!r} is of type {type_text(feature)}, not of classes: cast it to datasets.ClassLabel"
    )


def problem_of(columns: Columns) -> str | None:
    """The `problem_type` of a new student of these labels; None without labels."""
    kind = label_kind(columns.feature)
    lists = dict.fromkeys(("vector", "classes", "texts"), MULTI)
    return None if kind is None else (lists | {"float": REGRESSION}).get(kind, SINGLE)


def read_labels(columns: Columns, dataset: Any, student: Any = None, names: Sequence[str] | None = None) -> LabelReader:
    """How the labels of a column become what the student's loss takes.

    The student's `problem_type`, where it is not set, becomes what the labels say.

    Args:
        columns: The columns of the data set, with one of labels.
        dataset: The data set, whose values are looked at where its types do not tell.
        student: A model with a config; None: any student.
        names: What the student's classes are called, where it says; texts are looked up there.

    Raises:
        ValueError: labels that do not go with the student: the column, its type, and what to set.
    """
    config = config_of(student)
    problem, count = (getattr(config, name, None) for name in ("problem_type", "num_labels"))
    kind = label_kind(columns.feature)
    start = f"the labels in column {columns.label!r} ({type_text(columns.feature)})"
    if isinstance(dataset, Mapping):
        dataset = next(iter(dataset.values()), None)
    if is_transformed(dataset):  # what it holds is not what its rows show
        dataset = None
    number = problem == REGRESSION or (problem is None and count == 1)
    if kind == "float" or (kind == "integer" and number):
        if count is not None and not (number and count == 1):
            raise ValueError(
                f"{start} are numbers, as for regression, and the student has {count} outputs and "
                f"problem_type={problem!r}: load it with num_labels=1 and problem_type={REGRESSION!r}, or, where the "
                f"numbers are classes, dataset.cast_column({columns.label!r}, datasets.Value('int64'))"
            )
        _set_problem(config, REGRESSION, start)
        return LabelReader("value")
    if kind == "vector" and problem == REGRESSION:
        _check_width(start, columns.label_column, dataset, count, hot=False)
        return LabelReader("vector", width=count)
    if number:
        raise ValueError(
            f"{start} are classes, and the student has {count} output(s) for regression: load it with num_labels and "
            "id2label of the classes, and another problem_type"
        )
    if kind in ("vector", "classes", "texts"):
        if problem == SINGLE:
            raise ValueError(
                f"{start} are lists (several classes per sample), and the student has problem_type={SINGLE!r}: load it "
                f"with problem_type={MULTI!r}"
            )
        reader = _reader_of_lists(kind, start, columns, dataset, student, names, count)
        _set_problem(config, MULTI, start)
        return reader
    if problem == MULTI:
        raise ValueError(
            f"{start} are one class per sample, and the student has problem_type={MULTI!r}: load it with "
            f"problem_type={SINGLE!r}, or give lists of 0 and 1, one for each class"
        )
    if kind == "text":
        return LabelReader("class", _text_classes(start, columns.label_column, dataset, kind, student, names, count))
    _check_numbers(kind, start, columns, dataset, count)
    return LabelReader("class")


def _reader_of_lists(
    kind: str, start: str, columns: Columns, dataset: Any, student: Any, own: Sequence[str] | None, count: int | None
) -> LabelReader:
    if kind == "texts":
        names = _text_classes(start, columns.label_column, dataset, kind, student, own, count)
        return LabelReader("set", names, len(names))
    if kind == "classes":
        width = _inner(columns.feature).num_classes
        if count is not None and width != count:
            raise ValueError(f"{start} have {width} classes, and the student {count}: load it with num_labels={width}")
        return LabelReader("set", width=width)
    _check_width(start, columns.label_column, dataset, count, hot=True)
    return LabelReader("vector", width=count)


def _text_classes(
    start: str, column: str, dataset: Any, kind: str, student: Any, own: Sequence[str] | None, count: int | None
) -> tuple[str, ...]:
    """The classes that texts name: those of the student where it has them, or all texts in alphabetical order."""
    if not isinstance(dataset, Dataset):
        if own is None:
            raise ValueError(
                f"{start} are texts of a data set that does not tell them all: cast the column to datasets.ClassLabel, "
                "or load the student with id2label and label2id of the classes"
            )
        return tuple(own)
    found = _texts(dataset, column, kind)
    if own is not None and found <= set(own):
        return tuple(own)
    names = tuple(sorted(found))
    if own is not None:
        raise ValueError(f"{start} are {', '.join(names)}, and the student's classes {', '.join(own)}: they differ")
    if count is not None and count != len(names):
        raise ValueError(
            f"{start} are {len(names)} classes ({', '.join(names[:8])}{', ...' if len(names) > 8 else ''}), and the "
            f"student has {count}: load it with num_labels={len(names)}"
        )
    logger.warning("%s become classes in the order of the alphabet: %s.", _sentence(start), ", ".join(names))
    config: Any = config_of(student)
    if hasattr(config, "id2label"):
        config.id2label, config.label2id = dict(enumerate(names)), {name: i for i, name in enumerate(names)}
        if getattr(config, "label_names", None):  # timm's wrapper keeps them a second time
            config.label_names = list(names)
    return names


def _check_numbers(kind: str | None, start: str, columns: Columns, dataset: Any, count: int | None) -> None:
    """Refuses class numbers that the student has no output for."""
    if count is None:
        return
    highest = columns.feature.num_classes - 1 if kind == "class" else 1 if kind == "bool" else None
    if kind == "integer" and isinstance(dataset, Dataset):
        numbers = [number for number in dataset.unique(columns.label) if number is not None]
        highest = max(numbers, default=0)
        odd = next((number for number in numbers if number < 0 and number not in (-1, -100)), None)
        if odd is not None:
            raise ValueError(f"{start} hold {odd}, and classes are numbered from 0")
    if highest is not None and highest >= count:
        raise ValueError(
            f"{start} go up to class {highest}, and the student has {count} classes (0 to {count - 1}): load it with "
            f"num_labels={highest + 1}"
        )


def _check_width(start: str, column: str, dataset: Any, count: int | None, *, hot: bool) -> None:
    """Looks at lists of labels: their length and, where they say which classes hold, their values."""
    for row in _some_lists(dataset, column):
        if count is not None and len(row) != count:
            raise ValueError(
                f"{start} are lists of {len(row)} numbers, and the student has {count} outputs: load it with "
                f"num_labels={len(row)}, or, where the lists name the classes that hold, cast the column to "
                "datasets.List(datasets.ClassLabel(names=...))"
            )
        if hot and any(not 0 <= value <= 1 for value in row):
            raise ValueError(
                f"{start} are no lists of 0 and 1 ({row}): cast the column to "
                "datasets.List(datasets.ClassLabel(names=...)) where they name the classes that hold"
            )


def _some_lists(dataset: Any, column: str) -> Iterable[Any]:
    if not isinstance(dataset, Dataset):
        return []
    few = dataset.select_columns(column).with_format(None)
    few = few.select(range(min(len(few), _LOOKED_AT)))
    return (row for row in few[:][column] if row is not None)


def _texts(dataset: Dataset, column: str, kind: str) -> set[str]:
    if kind == "text":
        return {text for text in dataset.unique(column) if text is not None}
    return {text for row in dataset.with_format(None)[column] if row is not None for text in row}


def _set_problem(config: Any, problem: str, start: str) -> None:
    if config is not None and getattr(config, "problem_type", None) is None:
        config.problem_type = problem
        logger.info("%s make it a %s: problem_type is set.", _sentence(start), problem.replace("_", " "))


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def _inner(feature: Any) -> Any:
    return feature[0] if isinstance(feature, list) else feature.feature
