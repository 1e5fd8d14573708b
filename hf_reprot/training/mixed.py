"""`mixup_alpha` and `cutmix_alpha` in a trainer: what they go with, and the student's loss on mixed labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ..cache.teacher import CachedTeacher
from ..config import OTTransferConfig
from ..data.mixing import MIXED, MixingCollator, mixed_cross_entropy
from ..data.seeding import ReadingSeeds
from ..losses.distillation import MULTI_LABEL, SINGLE_LABEL
from ..models.modules import class_count, class_name
from ..models.problems import problem_of
from ..models.teacher import Teacher
from .labels import LabelRule

__all__ = ["check_mixing", "mixing", "task_loss", "with_plain_name"]

_BOTH = "mixup_alpha and cutmix_alpha"


def check_mixing(
    config: OTTransferConfig,
    student: nn.Module,
    teachers: Sequence[Teacher],
    known_classes: Sequence[list[int | None] | None],
    own_loss: Any = None,
) -> None:
    """Refuses mixed images where something of the run cannot do with them.

    Args:
        config: The settings.
        student: The student, unwrapped.
        teachers: The teachers.
        known_classes: Of each teacher, the student's classes that it knows; None: all of them. Of a teacher of some
            classes, labels say on which samples it is heard.
        own_loss: The user's `compute_loss_func`, which gets the mixed labels.

    Raises:
        ValueError: one line that says what to set.
    """
    if not config.mixes:
        return
    cached = next((teacher for teacher in teachers if isinstance(teacher, CachedTeacher)), None)
    if cached is not None:
        raise ValueError(
            f"{_BOTH} mix images with others of their batch, and the feature cache {cached.cache.title} holds each one "
            "alone: set both to 0, or give the teacher itself (teacher_model) instead of teacher_features"
        )
    if getattr(student, "main_input_name", "pixel_values") != "pixel_values":
        raise ValueError(
            f"{_BOTH} mix images, and {class_name(student)} takes {student.main_input_name}: set both to 0"
        )
    if config.task_weight == 0:
        return
    some = any(c and len({k for k in c if k is not None}) < (class_count(student) or 0) for c in known_classes)
    reads = {
        "kd_method='dkd'": config.kd_weight > 0 and config.kd_method == "dkd",
        "select_by='task'": config.selects_neurons and config.select_by == "task",
        "a teacher of some classes": some,
    }
    for reader in (name for name, taken in reads.items() if taken):
        raise ValueError(f"{_BOTH} give each image several classes, and {reader} needs one for each: set both to 0")
    if own_loss is not None:
        return
    problem, rule = problem_of(student), LabelRule.of(student, ["labels"])
    dense = str(getattr(student, "loss_type", "")) == "ForSemanticSegmentation"
    if rule is None or dense or problem not in (None, SINGLE_LABEL, MULTI_LABEL):
        what = f"problem_type is {problem!r}" if problem not in (None, SINGLE_LABEL) else "loss is its own"
        what = "labels are masks" if dense else what
        raise ValueError(
            f"{_BOTH} mix the labels of classes, and the {what} of {class_name(student)}: set both to 0, or give a "
            "compute_loss_func that takes shares of classes (batch, classes)"
        )


def mixing(
    collator: Any, config: OTTransferConfig, student: nn.Module, seeds: ReadingSeeds, label_names: Sequence[str]
) -> Any:
    """The collator of the training batches, mixed where that is asked for."""
    if not config.mixes or collator is None:
        return collator
    classes = class_count(student) if config.task_weight > 0 else None
    return MixingCollator(collator, config.mixup_alpha, config.cutmix_alpha, seeds, classes, label_names)


def task_loss(stock: Callable[..., Any], model: Any, inputs: Mapping[str, Any], smoothing: float) -> tuple[Tensor, Any]:
    """The student's own loss, or, on mixed labels, cross-entropy in its place; and the outputs.

    Args:
        stock: `Trainer.compute_loss`, with outputs.
        model: The student, as it is trained.
        inputs: The batch.
        smoothing: `label_smoothing_factor`.
    """
    if MIXED not in inputs:
        return stock(model, dict(inputs))
    outputs = model(**{name: value for name, value in inputs.items() if name != MIXED})
    named = isinstance(outputs, Mapping)
    loss = mixed_cross_entropy(outputs["logits"] if named else outputs[0], inputs[MIXED], smoothing)
    return loss, outputs if named else (loss, *outputs)


def with_plain_name(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The batch with mixed labels in the column "labels", where a user's loss looks for them."""
    return {"labels" if name == MIXED else name: value for name, value in inputs.items()}
