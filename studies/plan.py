"""What a study file may say, read and checked before anything runs."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from .methods import METHODS

TUNING_SEED = 100  # the first of those that weights are chosen on
STARTS = ("new", "earlier", "kept", "copy")


@dataclass(frozen=True)
class Setting:
    """A teacher, a student, and how the student starts.

    Attributes:
        name: As the tables call it.
        teacher: "conv-...", "vit-...": trained on the whole pool; "efficientnet-lite0" to 2, "mobilenet-v2": ImageNet
            weights, its features of every view computed once. Of a list, seed s learns from number s modulo its
            length, and weights are chosen with the first.
        student: "conv-...", "vit-..." or "efficientnet-lite0" to 2.
        start: "new" (random weights), "earlier" (trained on a coarser task before, a new head), "kept" (some of the
            teacher's neurons in a random order, or all: a permuted copy), "copy" (the pretrained weights).
        without: Methods of the study that cannot run here (the identity with unequal widths).
        also: Methods that run here only.
    """

    name: str
    teacher: str | list[str]
    student: str
    start: str = "new"
    without: list[str] = field(default_factory=list)
    also: list[str] = field(default_factory=list)

    def teacher_of(self, seed: int) -> str:
        """The name of the teacher that a seed's student learns from."""
        if isinstance(self.teacher, str):
            return self.teacher
        return self.teacher[seed % len(self.teacher) if seed < TUNING_SEED else 0]


@dataclass(frozen=True)
class Study:
    """A grid of runs: every method in every setting, with every number of labels and every seed.

    Attributes:
        name: Of the files with the results.
        title: Heading of the table.
        images: Arguments of `images.load`.
        settings: The settings.
        methods: Names out of `METHODS`.
        labels: Labelled training images.
        seeds: Number of seeds, counted from 0.
        steps, batch_size, learning_rate: Of training.
        views: 2 draws each image as it is or flipped.
        tuning_labels: The share of labels on which weights are chosen; 0: weights as they stand in METHODS.
        tuning_seeds: Number of seeds of the choice, counted from 100.
        teacher_steps: Of a teacher's own training.
        teachers: How many teachers of each kind, which differ in their seeds: seed s learns from number s modulo this,
            and the choice of weights rests on another one.
        teacher_size: Height and width at which a pretrained teacher sees the images; the student's, if not given.
        reference: The method that others are compared with, pair by pair.
        shown: The number of labels that the table of docs/evidence shows; the largest, if not given.
    """

    name: str
    title: str
    images: Mapping[str, Any]
    settings: list[Setting]
    methods: list[str]
    labels: list[int]
    seeds: int = 5
    steps: int = 150
    batch_size: int = 64
    learning_rate: float = 1e-3
    views: int = 1
    tuning_labels: int = 0
    tuning_seeds: int = 2
    teacher_steps: int = 1000
    teachers: int = 1
    teacher_size: int | None = None
    reference: str = "transport"
    shown: int | None = None
    notes: str = ""

    def methods_of(self, setting: Setting) -> list[str]:
        """The methods that run in a setting."""
        return [m for m in self.methods if m not in setting.without] + [
            m for m in setting.also if m not in self.methods
        ]


def read(path: str | Path) -> Study:
    """Reads a study file.

    Raises:
        ValueError: a name that is not known; the nearest one is given.
    """
    return study_of(yaml.safe_load(Path(path).read_text("utf-8")), path)


def study_of(content: dict[str, Any], path: str | Path) -> Study:
    """A study from what its file says; `path` is named in errors.

    Raises:
        ValueError: a name that is not known; the nearest one is given.
    """
    content["settings"] = [_made(Setting, entry, path) for entry in content.get("settings", [])]
    study = _made(Study, content, path)
    for method in (*study.methods, study.reference):
        _check(method, METHODS, "method", path)
    for setting in study.settings:
        _check(setting.start, STARTS, "start", path)
        for method in (*setting.also, *setting.without):
            _check(method, METHODS, "method", path)
    return study


def _made(kind: type, content: Mapping[str, Any], path: str | Path) -> Any:
    known = [f.name for f in fields(kind)]
    for name in content:
        _check(name, known, "entry", path)
    missing = [
        f.name for f in fields(kind) if f.name not in content and f.default is MISSING and f.default_factory is MISSING
    ]
    if missing:
        raise ValueError(f"{path}: a {kind.__name__.lower()} needs {', '.join(missing)}")
    return kind(**content)


def _check(name: str, known: Any, what: str, path: str | Path) -> None:
    if name not in known:
        near = difflib.get_close_matches(str(name), list(known), n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{path}: {name!r} is no {what}.{hint} Legal: {', '.join(known)}")
