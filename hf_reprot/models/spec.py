"""A teacher as the user specifies it, and its role among several: weight, classes, layers, samples."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from ..data.preprocessing import Preprocessing
from ..utils.messages import did_you_mean
from .classes import plain_name

PARTS = ("weight", "classes", "layers", "samples")
SAMPLES = ("own", "all")
# What a mapping may hold beside the teacher's own id.
SETTINGS = (*PARTS, "dtype", "preprocessing", "resize", "image_size", "license")


def parse_teacher(source: Any) -> tuple[Any, dict[str, Any]]:
    """A teacher's source (a hub id, a folder, a module, a `Teacher`) and its own settings.

    Args:
        source: The source alone, or a mapping with the source under "id" beside any of `SETTINGS`.

    Raises:
        ValueError: a mapping without an id, or with a key that no teacher has (the nearest one is named).
    """
    if not isinstance(source, Mapping):
        return source, {}
    for key in source:
        if key not in ("id", *SETTINGS):
            hint = did_you_mean(key, ("id", *SETTINGS))
            raise ValueError(f"teacher: {key!r} is no setting of a teacher (legal: id, {', '.join(SETTINGS)}).{hint}")
    if not isinstance(source.get("id"), str | os.PathLike):
        raise ValueError(f"teacher: {dict(source)!r} has no id: a hub id (org/name@revision) or a folder")
    settings = {key: value for key, value in source.items() if key != "id" and value is not None}
    if isinstance(settings.get("preprocessing"), Mapping):
        settings["preprocessing"] = _preprocessing(settings["preprocessing"])
    return source["id"], settings


def _preprocessing(given: Mapping[str, Any]) -> Preprocessing:
    known = [f.name for f in dataclasses.fields(Preprocessing)]
    for key in given:
        if key not in known:
            raise ValueError(f"preprocessing of a teacher: {key!r} is not known (legal: {', '.join(known)})")
    settings: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
    return Preprocessing(**settings)


def check_weight(weight: Any) -> float:
    """A teacher's weight as a float.

    Raises:
        ValueError: not a finite number above 0.
    """
    number = isinstance(weight, int | float) and not isinstance(weight, bool)
    if not number or not math.isfinite(weight) or weight <= 0:
        raise ValueError(f"the weight of a teacher must be a finite number above 0, got {weight!r}")
    return float(weight)


def check_classes(classes: Any) -> tuple[str | int | None, ...] | None:
    """A teacher's classes as a tuple of names and numbers of the student's classes, None for outputs without one.

    Raises:
        ValueError: not a list of these, or one twice.
    """
    if classes is None:
        return None
    listed = list(classes) if isinstance(classes, Sequence | range) and not isinstance(classes, str) else None
    if listed is None or any(isinstance(c, bool) or not isinstance(c, str | int | None) for c in listed):
        raise ValueError(
            "the classes of a teacher must be a list of the student's classes, by name or number (None for an output "
            f"that the student has no class for), got {classes!r}"
        )
    named = [c for c in listed if c is not None]
    twice = next((c for i, c in enumerate(named) if c in named[:i]), None)
    if twice is not None:
        raise ValueError(f"the classes of a teacher name {twice!r} twice: each output stands for a class of its own")
    return tuple(listed) if named else ()


def check_layers(layers: Any) -> list[Any] | None:
    """A teacher's own layer pairs as a list.

    Raises:
        ValueError: an empty list, or "auto".
    """
    if layers is None:
        return None
    layers = [layers] if isinstance(layers, str | Mapping) else list(layers)
    if not layers:
        raise ValueError('the layers of a teacher are empty: give pairs such as "last", or None for those of the run')
    if "auto" in layers:
        raise ValueError('layers="auto" finds the pairs of all teachers at once: set it as layer_pairs of the run')
    return layers


def columns_of_classes(
    classes: Sequence[str | int | None], names: Sequence[str] | None, count: int, title: str
) -> list[int | None]:
    """The student's logit that each output of a teacher answers to.

    Args:
        classes: As `check_classes` gave them.
        names: Names of the student's classes; None where it has none.
        count: Number of the student's classes.
        title: What to call the teacher in an error.

    Raises:
        ValueError: a class that the student does not have (the nearest one is named), or one named twice.
    """
    columns = [None if c is None else _column(c, names, count, title) for c in classes]
    found: dict[int, Any] = {}
    for column, given in zip(columns, classes, strict=True):
        if column is None:
            continue
        if column in found:
            raise ValueError(f"classes of the teacher {title}: {found[column]!r} and {given!r} are the same class")
        found[column] = given
    return columns


def _column(given: str | int, names: Sequence[str] | None, count: int, title: str) -> int:
    if isinstance(given, str):
        found = _places(given, names or ())
        if len(found) == 1:
            return found[0]
        if len(found) > 1:
            raise ValueError(
                f"classes of the teacher {title}: the student has {len(found)} classes {given!r}: give the number, one "
                f"of {', '.join(map(str, found))}"
            )
        if given.strip().isdecimal() and names is None:  # as it comes from a command line
            given = int(given)
    if isinstance(given, int) and 0 <= given < count:
        return given
    legal = f"0 to {count - 1}"
    if isinstance(given, int):
        raise ValueError(f"classes of the teacher {title}: there is no class {given} (the student has {legal})")
    if names is None:
        raise ValueError(
            f"classes of the teacher {title}: {given!r} is a name, and the student's config names no classes "
            f"(id2label): give numbers, {legal}"
        )
    hint = did_you_mean(given, names)
    known = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    raise ValueError(f"classes of the teacher {title}: the student has no class {given!r} (it has {known}).{hint}")


def _places(given: str, names: Sequence[str]) -> list[int]:
    """Where a name stands: as it is written or else but for case, blanks, `_` and `-`."""
    exact = [i for i, name in enumerate(names) if name == given]
    return exact or [i for i, name in enumerate(names) if plain_name(name) == plain_name(given)]
