"""Names of classes: which class of a data set, a student and a teacher is the same one."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..features.architecture import config_of

__all__ = [
    "Pairing",
    "check_data_names",
    "data_names",
    "name_classes",
    "names_at_their_places",
    "only_counts",
    "pair_names",
    "plain_name",
    "refuse_teacher",
    "shown",
    "teacher_note",
]

_ENOUGH = 0.95  # share of the places that must agree where a few names of a long list are spelled in another way
_ALIKE = 0.8
_SHOWN = 12


@dataclass(frozen=True)
class Pairing:
    """How the classes of one side go with those of another.

    Attributes:
        columns: For each of their classes the number of ours, None for one that we do not have. None as a whole: the
            names do not say it.
        by_name: Whether names said it. False: one side only counts (0, 1, ...), and all are taken in order.
        different: Places whose names differ although all others agree, and which are taken as the same class.
        common: Number of names that both sides have.
        places: As `columns`, also where only some are found: all that the names say.
    """

    columns: list[int | None] | None
    by_name: bool = True
    different: tuple[int, ...] = ()
    common: int = 0
    places: tuple[int | None, ...] = ()


def plain_name(name: str) -> str:
    """A name without regard to case, blanks, `_` and `-` (but for the sign of a number).

    Example:
        >>> plain_name("Golden_retriever") == plain_name("golden-Retriever ")
        True
    """
    text = unicodedata.normalize("NFKC", str(name)).casefold().strip()
    sign = "-" if re.match(r"-\d", text) else ""
    return sign + re.sub(r"[\s_\-]+", "", text)


def pair_names(theirs: Sequence[str], ours: Sequence[str]) -> Pairing:
    """Finds each of their classes among ours by its name, whatever the order.

    Args:
        theirs, ours: Names of the classes in the order of their numbers.

    Returns:
        A pairing with `columns` where all names of one side are found on the other (a permutation, a part, more than
        ours), or where one side only counts and both are equally many. Without where only some are found on either
        side, none is, or a name that counts stands twice.

    Example:
        >>> pair_names(["Dog", "cat", "cow"], ["cat", "dog"]).columns
        [1, 0, None]
    """
    count = len(ours)
    different = names_at_their_places(theirs, ours)
    if len(theirs) == count and different is not None:
        alike, order = count - len(different), range(count)
        return Pairing(list(order), different=different, common=alike, places=tuple(order))
    form = _form(theirs, ours)
    left, right = [form(name) for name in theirs], [form(name) for name in ours]
    counted = Counter(left), Counter(right)
    common = set(left) & set(right)
    once = {name: i for i, name in enumerate(right) if all(c[name] == 1 for c in counted)}
    places = tuple(once.get(name) for name in left)
    if only_counts(theirs) and only_counts(ours):  # of different lengths: numbers do not say which classes they are
        return Pairing(None, by_name=False, places=places)
    if not common:
        counts = only_counts(theirs) or only_counts(ours)
        return Pairing(list(range(count)) if counts and len(theirs) == count else None, by_name=False)
    whole = len(common) == len(left) or len(common) == len(right)
    clear = all(name in once for name in common)
    return Pairing(list(places) if whole and clear else None, common=len(common), places=places)


def names_at_their_places(theirs: Sequence[str], ours: Sequence[str]) -> tuple[int, ...] | None:
    """Whether their class i is our class i, for all of theirs; None where it is not.

    Returns:
        The places whose names differ: none, or a few of many (5 % at most) that are spelled alike ("crane", "crane2").
    """
    if len(theirs) > len(ours):
        return None
    form = _form(theirs, ours)
    left, right = [form(name) for name in theirs], [form(name) for name in ours]
    different = tuple(i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b)
    if len(different) > (1 - _ENOUGH) * len(left) or not all(_alike(left[i], right[i]) for i in different):
        return None
    moved = {left[i] for i in different} & {right[i] for i in (*different, *range(len(left), len(right)))}
    return None if moved else different


def data_names(dataset: Any, columns: Iterable[str | None]) -> list[str] | None:
    """The names of a data set's classes: of the first of these columns that names them; None where none does."""
    features = getattr(dataset, "features", None)
    if not isinstance(features, Mapping):
        return None
    for column in columns:
        feature = features.get(column)
        inner = getattr(feature, "feature", None) or (feature[0] if isinstance(feature, list) and feature else None)
        for kind in (feature, inner):  # lists: several classes per sample
            names = getattr(kind, "names", None)
            if isinstance(names, Sequence) and not isinstance(names, str) and names:
                return [str(name) for name in names]
    return None


def name_classes(model: nn.Module, names: Sequence[str]) -> None:
    """Writes the names of the classes into a model's config."""
    config = config_of(model)
    config.id2label = dict(enumerate(names))
    config.label2id = {name: i for i, name in enumerate(names)}
    if hasattr(config, "label_names") or config.model_type == "timm_wrapper":
        config.label_names = list(names)  # what the file of a timm model holds


def shown(names: Sequence[str]) -> str:
    """A list of names for a message."""
    return ", ".join(names[:_SHOWN]) + (f", ... ({len(names)})" if len(names) > _SHOWN else "")


def teacher_note(title: str, pairing: Pairing, theirs: Sequence[str], ours: Sequence[str]) -> str:
    """What is said of a teacher whose classes were found."""
    if not pairing.by_name:
        return f"The teacher {title}: one side only counts its {len(ours)} classes, and they are taken in order."
    if pairing.different:
        pairs = shown([f"{theirs[i]} = {ours[i]}" for i in pairing.different])
        return f"The teacher {title} has the student's classes in their order; taken as the same: {pairs}."
    found = [c for c in pairing.columns or [] if c is not None]
    if len(found) < len(ours):
        return f"The teacher {title} knows {len(found)} of the student's {len(ours)} classes by name: " + (
            f"{shown([ours[c] for c in found])}."
        )
    order = "in the same order" if found == sorted(found) else "in another order"
    left = len(theirs) - len(found)
    more = f"; {left} more of its outputs are left out" if left else ""
    return f"The teacher {title} knows all {len(ours)} classes of the student by name, {order}{more}."


def refuse_teacher(title: str, pairing: Pairing, theirs: Sequence[str], ours: Sequence[str]) -> None:
    """Refuses a teacher whose classes contradict the student's.

    Raises:
        ValueError: always; both lists and the line to write are in it.
    """
    if pairing.common:
        form = _form(theirs, ours)
        known = {form(name): name for name in ours}
        line = [known.get(form(name)) for name in theirs]
        kept = ", ".join(map(repr, line[:_SHOWN])) + (", ..." if len(line) > _SHOWN else "")
        way = f"classes=[{kept}] pairs those that are found"
    elif len(theirs) == len(ours):
        way = f"classes=range({len(ours)}) says that they are the same, in the same order"
    else:
        way = "classes=[...] says which of the student's each of its outputs stands for"
    raise ValueError(
        f"kd_weight is above 0 and the classes of the teacher {title} are not the student's: {pairing.common} of "
        f"{len(theirs)} names are found. Teacher: {shown(theirs)}. Student: {shown(ours)}. Say with "
        f"Teacher.load(..., classes=...): {way}; classes=[] leaves its logits out"
    )


def check_data_names(names: Sequence[str], student: Sequence[str], data: str, column: str) -> str | None:
    """Refuses data whose class i is another one than the student's output i.

    Args:
        names, student: Names of both sides.
        data: What to call the data.
        column: The column of the labels.

    Returns:
        What is to be said, if anything.

    Raises:
        ValueError: both lists and the lines to write are in it.
    """
    different = names_at_their_places(names, student)
    if different:
        pairs = shown([f"{names[i]} = {student[i]}" for i in different])
        return f"The classes of {data} are the student's, in their order; taken as the same: {pairs}."
    if different is not None:
        return None
    pairing = pair_names(names, student)
    whole = len(names) <= len(student) and pairing.common == 0 and only_counts(names) != only_counts(student)
    if whole and (only_counts(names) or pairing.columns is not None):
        return f"One of {data} and student only counts its {len(student)} classes: they are taken in order."
    lists = f"Data: {shown(names)}. Student: {shown(student)}."
    if pairing.columns is not None and None not in pairing.columns:
        raise ValueError(
            f"the classes of {data} and those of the student have the same names in another order: label 0 of the data "
            f"is {names[0]!r}, output 0 of the student {student[0]!r}. {lists} Number the data as the student does "
            f"(dataset.align_labels_with_mapping(student.config.label2id, {column!r})), or load the student with the "
            "data's names (load_student(source, names) moves the rows of its head)"
        )
    raise ValueError(
        f"the classes of {data} contradict those of the student: {pairing.common} of {len(names)} names are found. "
        f"{lists} Load the student with the data's names (load_student(source, names) keeps the rows of classes that "
        "it knows and makes new ones for the others), or name its classes in student.config (id2label, label2id)"
    )


def only_counts(names: Sequence[str]) -> bool:
    """Whether names are no more than 0, 1, 2, ...: `ClassLabel(num_classes=...)` calls its classes so."""
    return all(name.strip() == str(i) for i, name in enumerate(names))


def _alike(one: str, other: str) -> bool:
    return one in other or other in one or difflib.SequenceMatcher(None, one, other).ratio() >= _ALIKE


def _form(*sides: Sequence[str]) -> Callable[[str], str]:
    """How names are compared: by their plain form, or as they are where that would make two of one side alike."""
    forms: tuple[Callable[[str], str], ...] = (plain_name, lambda name: " ".join(str(name).casefold().split()))
    for form in forms:
        if all(len({form(name) for name in side}) == len(set(side)) for side in sides):
            return form
    return str
