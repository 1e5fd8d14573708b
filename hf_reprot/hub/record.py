"""`RunRecord`: every fact that a student's card states, kept beside its weights as `transfer.json`."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from ..models.head import HeadFit
from ..utils.files import write_whole
from ..utils.strict_json import fitting, from_mapping
from .facts import DataFacts, ExportFacts, ModelFacts, Start
from .foreign import clean, picture_of
from .licenses import License
from .privacy import public

RECORD_FILE = "transfer.json"
FORMAT = 1


class Job(StrEnum):
    """What a run was for, as `transfer.json` names it; `sentence` is what a card says."""

    FINE_TUNING = "fine-tuning"
    DISTILLATION = "distillation"
    TRANSFER = "transfer"
    REPRESENTATION = "representation"
    REPRESENTATION_AND_HEAD = "representation-and-head"
    NO_TEACHER = "no-teacher"

    @property
    def sentence(self) -> str:
        """The job in words."""
        return _SENTENCES[self]


_SENTENCES = {
    Job.FINE_TUNING: "fine-tuning (the student started from the teacher's weights)",
    Job.DISTILLATION: "distillation (the student learns the teacher's task)",
    Job.TRANSFER: "transfer (the student learns a task of its own)",
    Job.REPRESENTATION: "a representation learned without labels (no head was trained)",
    Job.REPRESENTATION_AND_HEAD: "a representation learned without labels, then a head on labelled samples",
    Job.NO_TEACHER: "training without a teacher",
}

_LOG_ENTRIES = 500


@dataclass
class PairFacts:
    """A matched pair of layers.

    Attributes:
        student, teacher: Paths of the two modules.
        teacher_index: Which of the teachers.
        weight: Share of the transport term, from 0 to 1.
        student_neurons, teacher_neurons: Widths; None where they were never seen.
        picture: Name of the picture of the last plan, below the folder.
    """

    student: str
    teacher: str
    teacher_index: int = 0
    weight: float = 1.0
    student_neurons: int | None = None
    teacher_neurons: int | None = None
    picture: str | None = None


@dataclass
class LayerPlanFacts:
    """The plan between the layers of the student and of a teacher, where layer pairs were found by transport.

    Attributes:
        student_layers, teacher_layers: Names, in order of depth.
        plan: Rows of shares; all of them sum to 1.
        cost: Rows of costs, as multiples of chance.
        teacher_index: Which of the teachers.
        picture: Name of the picture, below the folder.
    """

    student_layers: list[str]
    teacher_layers: list[str]
    plan: list[list[float]]
    cost: list[list[float]]
    teacher_index: int = 0
    picture: str | None = None


@dataclass
class Evaluation:
    """Metrics on one data set, by name without the prefix `eval_`; `teachers`: those of each teacher on the same."""

    data: DataFacts
    metrics: dict[str, float] = field(default_factory=dict)
    teachers: list[dict[str, float]] = field(default_factory=list)

    def teacher_scores(self, name: str, teachers: list[ModelFacts]) -> list[float | None]:
        """What each teacher reached in one metric; None where nobody measured it."""
        own = [*self.teachers, *[{}] * (len(teachers) - len(self.teachers))]
        return [mine.get(name, t.metrics.get(name)) for mine, t in zip(own, teachers, strict=True)]


@dataclass
class RunRecord:
    """What is known of a training run and of the student that it made.

    Attributes:
        name: What the student is called.
        student: Architecture, size and speed of the student.
        start: Where its weights started.
        job: What it was for.
        repo_id: Where it was pushed.
        task: The Hub's pipeline tag.
        license: The student's licence.
        classes: Size of its head.
        problem_type: What its outputs are, as transformers calls it; None where nothing says so.
        class_notes: How classes of data, student and teachers were brought together: sentences.
        input: Shape of one input, such as "3 x 224 x 224".
        teachers: The teachers, in order.
        pairs: The matched layers.
        layer_plans: Where they were found by transport between layers: the last plan of each teacher.
        train_data: What it was trained on.
        evaluations: What it was evaluated on, with results.
        transfer: Settings of the transfer, by name.
        training: Settings of the training, by name.
        seeds: Seeds, by name.
        versions: Versions of the software, by name.
        hardware: What the training ran on.
        seconds: Duration of the training.
        step: Optimiser steps taken.
        head: A head that was fitted afterwards.
        head_data: What it was fitted on, where that is another data set than the training's.
        exports: The student in other formats, beside its weights.
        history: The training log: one mapping of numbers an entry, with "step".
        tags: Tags beside those that the card sets by itself.
        language: Languages of a text model.
        format: Version of the file's layout.
    """

    name: str
    student: ModelFacts
    start: Start = field(default_factory=Start)
    job: Job = Job.TRANSFER
    repo_id: str | None = None
    task: str | None = None
    license: License | None = None
    classes: int | None = None
    problem_type: str | None = None
    class_notes: list[str] = field(default_factory=list)
    input: str | None = None
    teachers: list[ModelFacts] = field(default_factory=list)
    pairs: list[PairFacts] = field(default_factory=list)
    layer_plans: list[LayerPlanFacts] = field(default_factory=list)
    train_data: DataFacts | None = None
    evaluations: list[Evaluation] = field(default_factory=list)
    transfer: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    seeds: dict[str, int] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    hardware: str | None = None
    seconds: float | None = None
    step: int | None = None
    head: HeadFit | None = None
    head_data: DataFacts | None = None
    exports: list[ExportFacts] = field(default_factory=list)
    history: list[dict[str, float]] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    language: list[str] = field(default_factory=list)
    format: int = FORMAT

    def data_sets(self) -> list[DataFacts]:
        """Training and evaluation data, and those of the head, each data set once."""
        found = [self.train_data] if self.train_data is not None else []
        found += [self.head_data] if self.head_data is not None else []
        found += [evaluation.data for evaluation in self.evaluations]
        return list({data.repo or data.name: data for data in reversed(found)}.values())[::-1]

    def teacher_scores(self) -> bool:
        """Whether a teacher was evaluated, too."""
        return any(t.metrics for t in self.teachers) or any(any(e.teachers) for e in self.evaluations)

    def save(self, folder: str | os.PathLike, secrets: Iterable[str | None] = ()) -> Path:
        """Writes `transfer.json` into a folder, whole or not at all.

        Tokens, `secrets` and places on this machine are taken out, and so is what `load` would refuse: whatever someone
        put into the metadata of a model or of data, a run does not end by it.

        Returns:
            The file.
        """
        path = Path(folder) / RECORD_FILE
        # A number that JSON has no word for says nothing on a card, either.
        content = fitting(RunRecord, public(_finite(_plain(dataclasses.asdict(self))), secrets))
        write_whole(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
        return path

    @classmethod
    def load(cls, folder: str | os.PathLike) -> RunRecord:
        """Reads `transfer.json` from a folder.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is not JSON, not a record, or one that a later version of this package wrote.
        """
        path = Path(folder) / RECORD_FILE
        if not path.is_file():
            raise FileNotFoundError(
                f"{folder} holds no {RECORD_FILE}, the record that hf_reprot leaves beside a student's weights"
            )
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is not JSON: {error}") from None
        version = content.get("format") if isinstance(content, dict) else None
        if isinstance(version, int) and version > FORMAT:
            raise ValueError(f"{path} was written by a later hf_reprot (layout {version}; this one reads {FORMAT})")
        try:
            record = from_mapping(cls, _plain(content))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is not the record of a run: {error}") from None
        matched: list[PairFacts | LayerPlanFacts] = [*record.pairs, *record.layer_plans]
        if any(facts.teacher_index not in range(len(record.teachers)) for facts in matched):
            raise ValueError(f"{path} is not the record of a run: a layer of a teacher that is not there")
        for facts in matched:  # a card is written beside them, and nowhere else
            facts.picture = picture_of(facts.picture)
        return record


def thinned_log(entries: Iterable[dict[str, Any]], limit: int = _LOG_ENTRIES) -> list[dict[str, float]]:
    """The finite numbers of a training log; evaluations stay, training entries are thinned out to about `limit`.

    Args:
        entries: `TrainerState.log_history`.
        limit: How many training entries to keep; the last one always stays.
    """
    plain = [{name: float(value) for name, value in entry.items() if _is_finite(value)} for entry in entries]
    training = [entry for entry in plain if "loss" in entry]
    step = max(1, math.ceil(len(training) / limit))
    kept = {id(entry) for entry in training[::-1][::step]}
    return [entry for entry in plain if "loss" not in entry or id(entry) in kept]


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _plain(value: Any) -> Any:
    """A value of JSON's kinds: text that can be written and shown, and text in the place of other objects."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, dict):
        return {clean(str(key)): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float) else clean(str(value))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items() if not _is_broken(item)}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value if not _is_broken(item)]
    return value


def _is_broken(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
