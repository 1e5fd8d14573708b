"""Which student layer goes with which teacher layer."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from torch import nn

from ..utils.messages import did_you_mean
from ..utils.strict_json import load_json
from .architecture import block_layers, last_layer, spread, stage_layers
from .paths import LayerName, resolve_path, unwrap

_LEGAL = (
    'Legal: "auto" alone, "last", "stages", "student_layer=teacher_layer" (with "@1" behind it for the second of '
    "several teachers), or {student, teacher, weight, teacher_index}"
)


@dataclass(frozen=True)
class LayerPair:
    """A student's layer and the teacher's layer that it is compared with.

    Attributes:
        student: Full path of the student's layer, as `Taps` takes it.
        teacher: Full path of the teacher's layer.
        weight: Weight of the pair among all pairs, above 0.
        teacher_index: Which teacher, counted from 0.
    """

    student: str
    teacher: str
    weight: float = 1.0
    teacher_index: int = 0


def match_pairs(
    specs: str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]],
    student: nn.Module,
    teachers: Sequence[nn.Module],
    positions: str = "pooled",
) -> list[LayerPair]:
    """Resolves what a user wrote as `layer_pairs` against the models.

    Args:
        specs: "last" (the representations before the heads), "stages" (stage by stage; of unequal numbers of stages,
            those at the same share of the depth), "student_layer=teacher_layer", or {student, teacher, weight,
            teacher_index}; one of these or a list. With several teachers, "last" and "stages" make pairs with each.
            A layer is a module path (see `Taps`), or "last", "stage:i" or "block:i", counted from 0, or from the end
            where i is negative.
        student: The unwrapped student.
        teachers: The teachers.
        positions: "pooled" or "all": with "all", "last" is the last layer that still has positions.

    Returns:
        The pairs, with full paths.

    Raises:
        ValueError: anything that cannot be resolved; the message names the value, what is legal and what is nearest.
    """
    if positions not in ("pooled", "all"):
        raise ValueError(f"positions must be 'pooled' or 'all', got {positions!r}")
    if not teachers:
        raise ValueError("layer pairs need a teacher: none was given")
    student, teachers = unwrap(student), [unwrap(teacher) for teacher in teachers]
    specs = [specs] if isinstance(specs, str | Mapping) else list(specs)
    if not specs:
        raise ValueError(f"layer_pairs is empty. {_LEGAL}")
    pairs = [pair for spec in specs for pair in _pairs_of(spec, student, teachers, positions)]
    seen: set[tuple[str, str, int]] = set()
    for pair in pairs:
        key = (pair.student, pair.teacher, pair.teacher_index)
        if key in seen:
            raise ValueError(f"layer_pairs gives {pair.student}={pair.teacher} twice: use a weight of 2 instead")
        seen.add(key)
    return pairs


def _pairs_of(spec: Any, student: nn.Module, teachers: Sequence[nn.Module], positions: str) -> list[LayerPair]:
    if isinstance(spec, str) and spec.strip().startswith("{"):
        try:
            spec = load_json(spec)
        except ValueError as error:
            raise ValueError(f"layer_pairs: {spec!r} is no JSON ({error}). {_LEGAL}") from error
    if isinstance(spec, Mapping):
        return [_from_mapping(spec, student, teachers, positions)]
    if not isinstance(spec, str):
        raise ValueError(f"layer_pairs: {spec!r} is a {type(spec).__name__}. {_LEGAL}")
    if spec == "last":
        ours = last_layer(student, positions)
        return [LayerPair(ours, last_layer(t, positions), teacher_index=i) for i, t in enumerate(teachers)]
    if spec == "stages":
        stages = stage_layers(student)
        return [
            LayerPair(s, t, teacher_index=i)
            for i, teacher in enumerate(teachers)
            for s, t in _proportional(stages, stage_layers(teacher))
        ]
    if spec.count("=") != 1:
        raise ValueError(_not_a_spec(spec))
    ours, theirs = (side.strip() for side in spec.split("="))
    theirs, index = (part.strip() for part in theirs.partition("@")[::2])
    if index and not index.isdigit():
        raise ValueError(f"layer_pairs: {spec!r} has {index!r} behind @: expected a teacher's number, from 0")
    chosen = {"student": ours, "teacher": theirs, "teacher_index": int(index or 0)}
    return [_from_mapping(chosen, student, teachers, positions)]


def _not_a_spec(spec: str) -> str:
    if spec == "auto":
        return 'layer_pairs: "auto" finds all pairs by itself, in a trainer (or by match_layers), and stands alone'
    hint = did_you_mean(spec, ("last", "stages", "auto"))
    if hint:
        return f"layer_pairs: {spec!r} is no pair.{hint} {_LEGAL}"
    if "=" in spec:
        return f"layer_pairs: {spec!r} has more than one =. {_LEGAL}"
    return f'layer_pairs: {spec!r} names one layer, and a pair has two, as in "{spec}={spec}". {_LEGAL}'


def _from_mapping(
    spec: Mapping[str, Any], student: nn.Module, teachers: Sequence[nn.Module], positions: str
) -> LayerPair:
    known = [f.name for f in fields(LayerPair)]
    for key in spec:
        if key not in known:
            hint = did_you_mean(key, known)
            raise ValueError(f"layer_pairs: {key!r} is no key of a pair (legal: {', '.join(known)}).{hint}")
    for key in ("student", "teacher"):
        if not isinstance(spec.get(key), str) or not spec[key]:
            raise ValueError(f"layer_pairs: {dict(spec)!r} has no {key} layer. {_LEGAL}")
    weight, index = spec.get("weight", 1.0), spec.get("teacher_index", 0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight) or weight <= 0:
        raise ValueError(f"layer_pairs: weight must be a finite number above 0, got {weight!r} in {dict(spec)!r}")
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(teachers):
        legal = "0" if len(teachers) == 1 else f"0 to {len(teachers) - 1}"
        raise ValueError(
            f"layer_pairs: teacher_index {index!r} in {dict(spec)!r} (legal, with {len(teachers)} teacher(s): {legal})"
        )
    return LayerPair(
        resolve_layer(student, spec["student"], positions, "student"),
        resolve_layer(teachers[index], spec["teacher"], positions, "teacher"),
        float(weight),
        index,
    )


def resolve_layer(model: nn.Module, name: str, positions: str = "pooled", side: str = "model") -> str:
    """The full name of one layer that a user wrote: a path, "last", "stage:i" or "block:i".

    Args:
        model: The unwrapped model.
        name: What the user wrote.
        positions: What "last" means: "pooled" or "all".
        side: What the model is called in an error.

    Raises:
        ValueError: no such layer.
    """
    if name == "last":
        return last_layer(model, positions)
    alias = re.fullmatch(r"(stage|block):(-?\d+)", name)
    if alias:
        layers = stage_layers(model) if alias[1] == "stage" else block_layers(model)
        index = int(alias[2])
        if not -len(layers) <= index < len(layers):
            raise ValueError(
                f"{name!r}: the {side} ({type(model).__name__}) has {len(layers)} {alias[1]}s, "
                f"{alias[1]}:0 to {alias[1]}:{len(layers) - 1}"
            )
        return layers[index]
    layer = LayerName.parse(name)
    return str(LayerName(resolve_path(model, layer.path, side), layer.at_input, layer.layout, layer.prefix))


def _proportional(ours: Sequence[str], theirs: Sequence[str]) -> list[tuple[str, str]]:
    """As many pairs as the shorter list has elements, at the same share of both; the last two go together."""
    count = min(len(ours), len(theirs))
    return list(zip(spread(ours, count), spread(theirs, count), strict=True))
