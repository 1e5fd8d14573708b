"""What the labels of a batch mean to a student: classes, yes or no for each class, or numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..config import OTTransferConfig
from ..data.dataset_columns import features_of, type_text
from ..data.hub_datasets import Dataset
from ..losses.distillation import IGNORED, MULTI_LABEL, REGRESSION, SINGLE_LABEL
from ..models.modules import base_of, class_count
from ..models.problems import CHOOSE_PER_PLACE, FOLLOW_LABELS, problem_of


def labels_of(inputs: Mapping[str, Any], needing: str, instead: str) -> Tensor:
    """The batch's labels.

    Args:
        inputs: The batch.
        needing: The setting whose term needs them, as a user writes it.
        instead: What to set where there are none.

    Raises:
        ValueError: it has none.
    """
    if inputs.get("labels") is None:
        raise ValueError(
            f"{needing} needs labels, and the batch has none under 'labels' (columns: {', '.join(inputs)}): "
            f"give labels, or set {instead}"
        )
    return inputs["labels"]


def check_one_class(problem: str | None, needing: str, instead: str) -> None:
    """Refuses what needs one class a sample, for a student that answers another question.

    Args:
        problem: As `problem_of` gives it.
        needing: What needs it, as a user writes it.
        instead: What to set.

    Raises:
        ValueError: the student is one for several labels or for regression.
    """
    if problem not in (None, SINGLE_LABEL):
        raise ValueError(
            f"{needing} needs one class for each sample, and the student's problem_type is {problem!r}: {instead}"
        )


def check_settings(config: OTTransferConfig, problem: str | None) -> None:
    """Refuses settings that need one class a sample where the student answers another question.

    Raises:
        ValueError: they do not fit.
    """
    if config.kd_weight > 0 and config.kd_method == "dkd":
        check_one_class(problem, "kd_method='dkd'", "set kd_method='kl', which follows the problem_type")
    if config.select_k is not None and config.select_by == "task":
        check_one_class(problem, "select_by='task'", "set select_by='transport'")


@dataclass(frozen=True)
class LabelRule:
    """Which labels a student can learn from.

    Attributes:
        names: Columns of labels.
        problem: As `problem_of` gives it; None: the labels' dtype says it.
        count: Number of outputs.
        ignored: The label that the student's loss leaves out.
        maps: Whether each sample has many labels: one a token or a pixel.
    """

    names: tuple[str, ...]
    problem: str | None
    count: int
    ignored: int = IGNORED
    maps: bool = False

    @classmethod
    def of(cls, student: nn.Module, names: Sequence[str]) -> LabelRule | None:
        """The rule of a student; None where its loss is not known."""
        base = base_of(student)
        count, kind = class_count(base), getattr(base, "loss_type", None)
        if (
            count is None
            or kind not in (*FOLLOW_LABELS, *CHOOSE_PER_PLACE)
            or (kind in CHOOSE_PER_PLACE and count == 1)
        ):
            return None
        pixels = kind == "ForSemanticSegmentation"
        ignored = getattr(base.config, "semantic_loss_ignore_index", 255) if pixels else IGNORED
        return cls(tuple(names), problem_of(student), count, ignored, kind in CHOOSE_PER_PLACE)

    def check(self, batch: Mapping[str, Any]) -> None:
        """Looks at the labels of a batch on the host: on a GPU, a class that there is not ends the process.

        Raises:
            ValueError: labels that the student's loss cannot take, or would take for something else.
        """
        labels = next((batch[name] for name in self.names if isinstance(batch.get(name), Tensor)), None)
        if labels is None or labels.numel() == 0:
            return
        if labels.dim() > 2 and not self.maps:
            raise ValueError(maps_refused("the student", f"the labels have the shape {tuple(labels.shape)}"))
        problem = self.problem or (MULTI_LABEL if labels.is_floating_point() else SINGLE_LABEL)
        if problem == SINGLE_LABEL:
            self._check_classes(labels)
        elif problem == MULTI_LABEL:
            self._check_answers(labels)
        elif problem == REGRESSION:
            self._check_numbers(labels)

    def _check_classes(self, labels: Tensor) -> None:
        if labels.is_floating_point() or labels.dtype == torch.bool:
            return  # a loss that takes them has its own idea of them
        wrong = ((labels < 0) | (labels >= self.count)) & (labels != self.ignored)
        if wrong.any():
            row = int(wrong.flatten(1).any(1).nonzero()[0]) if labels.dim() > 1 else int(wrong.nonzero()[0])
            raise ValueError(
                f"label {int(labels[wrong][0])} (row {row} of the batch) is no class: the student has {self.count}, "
                f"0 to {self.count - 1}, and {self.ignored} for a sample without a label"
            )
        if self.problem is None and tuple(labels.shape[1:]) == (self.count,) and self.count > 1:
            raise ValueError(
                f"labels of shape {tuple(labels.shape)} hold one number a class and are whole numbers, which "
                "transformers takes for class numbers: make them floats (0.0 and 1.0) for "
                "problem_type='multi_label_classification'"
            )

    def _check_answers(self, labels: Tensor) -> None:
        if labels.shape[-1:] != (self.count,) or labels.dim() < 2:
            raise ValueError(
                f"labels of shape {tuple(labels.shape)} for problem_type='multi_label_classification': give "
                f"{self.count} numbers a sample, 1.0 for each class that it has"
            )
        if not labels.is_floating_point():
            raise ValueError(
                f"labels are {labels.dtype} and problem_type='multi_label_classification' takes floats: give 0.0 and "
                "1.0 (datasets.List(datasets.Value('float32')))"
            )
        wrong = ~((labels >= 0) & (labels <= 1))
        if wrong.any():
            raise ValueError(
                f"label {float(labels[wrong][0]):g} for problem_type='multi_label_classification': legal is 0 to 1. "
                f"Its loss leaves none out, not {IGNORED} either"
            )

    def _check_numbers(self, labels: Tensor) -> None:
        if not labels.is_floating_point():
            raise ValueError(
                f"labels are {labels.dtype} and problem_type='regression' takes floats: cast the column "
                "(dataset.cast_column(..., datasets.Value('float32')))"
            )
        if not labels.isfinite().all():
            raise ValueError("a label is not finite, and problem_type='regression' leaves none out: take that row out")


def maps_refused(student: str, found: str) -> str:
    """What is said of labels that are maps, to a student that answers once a sample."""
    return (
        f"{student} answers once a sample, and {found}: give a student for them, such as one of "
        "AutoModelForSemanticSegmentation, or set task_weight=0 to train on the teacher alone"
    )


def check_maps(student: Any, dataset: Any) -> None:
    """Refuses columns of labels that are maps, for a student that answers once a sample: before training.

    Raises:
        ValueError: it names the column and its type.
    """
    if not isinstance(dataset, Dataset) or getattr(base_of(student), "loss_type", None) not in FOLLOW_LABELS:
        return
    features = features_of(dataset) or {}
    for name in ("labels", "label"):
        if name in features and _depth(features[name]) > 1:
            kind = type_text(features[name])
            raise ValueError(maps_refused(type(base_of(student)).__name__, f"the column {name!r} holds {kind}"))


def _depth(feature: Any) -> int:
    """How many axes the values of a column have."""
    shape = getattr(feature, "shape", None)  # Array2D and the like
    if isinstance(shape, tuple):
        return len(shape)
    inner = getattr(feature, "feature", None)
    return 0 if inner is None else 1 + _depth(inner)


def checked_labels(collator: Any, student: nn.Module, label_names: Sequence[str] | None) -> Any:
    """The collator with a look at the labels of its batches, where it is known what the student's loss takes.

    Args:
        collator: Makes batches of rows; None stays None.
        student: The student, unwrapped.
        label_names: Columns of the labels.
    """
    rule = LabelRule.of(student, label_names or ("labels",)) if collator is not None else None
    return collator if rule is None else CheckedLabels(collator, rule)


class CheckedLabels:
    """A collator, with a look at the labels of each batch before it leaves the host.

    Args:
        collator: Makes batches of rows.
        rule: What the labels must be.
    """

    def __init__(self, collator: Callable[[Sequence[Any]], Any], rule: LabelRule):
        self.collator, self.rule = collator, rule

    def __getattr__(self, name: str) -> Any:
        """What else the collator knows: which columns it reads, its epoch."""
        if name.startswith("__") or name == "collator":  # a copy that has nothing yet
            raise AttributeError(name)
        return getattr(self.collator, name)

    def __call__(self, rows: Sequence[Any]) -> Any:
        batch = self.collator(rows)
        if isinstance(batch, Mapping):
            self.rule.check(batch)
        return batch
