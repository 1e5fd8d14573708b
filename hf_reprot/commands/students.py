"""The student of a recipe, with the head that its labels and terms ask for, and its image processor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
from transformers import AutoConfig, PreTrainedConfig, TimmWrapperImageProcessor

from ..config import OTTransferConfig
from ..models.dense import DENSE, load_dense_student
from ..models.modules import names_of_config
from ..models.spec import parse_teacher
from ..models.student import create_timm_student, load_student
from ..training.collating import collator_for_images
from ..training.given_student import image_processor_of
from ..utils.hub_ids import split_revision
from ..utils.messages import nearest
from ..utils.strict_json import load_json
from .samples import columns_of

__all__ = ["dense_student", "is_dense", "is_new", "json_object", "student_and_processor", "teacher_classes"]


def is_new(student: str) -> bool:
    """Whether a name is that of a timm architecture, of which a student is made with new weights."""
    return "/" not in student and not Path(student).exists() and timm.is_model(student)


def student_and_processor(
    recipe: Any, names: Sequence[str] | None, problem: str | None, *, needs_head: bool
) -> tuple[Any, Any]:
    """The student of a recipe and its image processor.

    Args:
        recipe: A `Recipe`.
        names: What its classes are called; None where the data do not tell.
        problem: Its `problem_type`.
        needs_head: Whether a term, or a head to be fitted, needs its logits.

    Raises:
        ValueError: neither a timm architecture nor a model on the Hub or on disk; a head that is needed and cannot be.
    """
    source, wanted = recipe.student, recipe.student_head
    if needs_head and wanted is False:
        raise ValueError(
            "student_head is false, and task_weight, kd_weight or fit_head needs the student's logits: set "
            "task_weight=0, kd_weight=0 and no fit_head, or leave student_head out"
        )
    if is_new(source):
        headed = needs_head or (names is not None if wanted is None else wanted)
        if headed and names is None:
            raise ValueError(
                "a new timm student needs labels, for the size of its head, and no data set has any: give head_dataset "
                "with labels, or train a backbone without a head (task_weight 0, kd_weight 0)"
            )
        model_args = json_object("student_model_args", recipe.student_model_args or "{}")
        size = {} if recipe.image_size is None else {"input_size": [3, recipe.image_size, recipe.image_size]}
        new: Any = create_timm_student(source, names if headed else None, pretrained_cfg=size, **model_args)
        if headed:
            new.config.problem_type = problem
        return new, TimmWrapperImageProcessor(pretrained_cfg=new.config.pretrained_cfg)
    trust = recipe.trust_remote_code
    try:
        head = True if needs_head else wanted
        options: dict[str, Any] = {"problem_type": problem} if problem is not None and head is not False else {}
        scratch = recipe.student_from_scratch
        student = load_student(source, names, head=head, from_scratch=scratch, trust_remote_code=trust, **options)
    except ValueError as error:
        if Path(source).exists():
            raise
        near = nearest(source.split("/")[-1], timm.list_models(), 3)
        hint = f" (near: {', '.join(near)})" if near else ""
        raise ValueError(f"{error}. Nor is it a timm architecture{hint}") from error
    return student, image_processor_of(source, trust_remote_code=trust)


def is_dense(source: str) -> bool:
    """Whether a student by its name answers with masks or boxes."""
    if is_new(source):
        return False
    return any(part in name for name in _architectures(source) for part in DENSE)


def dense_student(recipe: Any, config: OTTransferConfig, train: Any, evaluation: Any) -> tuple[Any, Any, Any]:
    """The student of a recipe that answers with masks or boxes, its image processor, and what makes batches.

    `student_model_args` changes its config: `{"num_labels": 5}` gives it a new head for five classes.

    Raises:
        ValueError: a student that cannot be had, settings that it does not go with, data without masks or boxes.
    """
    if recipe.fit_head or recipe.student_head is not None:
        raise ValueError(f"{recipe.student} answers with masks or boxes: fit_head and student_head are for classifiers")
    changes = json_object("student_model_args", recipe.student_model_args or "{}")
    trust = recipe.trust_remote_code
    student = load_dense_student(
        recipe.student, from_scratch=recipe.student_from_scratch, trust_remote_code=trust, **changes
    )
    processor = image_processor_of(recipe.student, trust_remote_code=trust)
    collator = collator_for_images(processor, config, student, train, evaluation)
    if collator is None:
        raise ValueError(f"{recipe.dataset} has no raw images: it has {', '.join(columns_of(train))}")
    return student, processor, collator


def _architectures(source: str) -> list[str]:
    path, revision = split_revision(source)
    try:
        content, _ = PreTrainedConfig.get_config_dict(path, **({"revision": revision} if revision else {}))
    except (OSError, ValueError):
        return []  # whoever loads it says what is wrong
    return [str(name) for name in content.get("architectures") or ()]


def teacher_classes(teachers: Sequence[str | Mapping[str, Any]]) -> list[str] | None:
    """What the classes of the first teacher are called, or their numbers: those of a student of its logits alone.

    None where no teacher is named, or it has no head.
    """
    for teacher in teachers:
        source, _ = parse_teacher(teacher)
        path, revision = split_revision(str(source))
        try:
            config = AutoConfig.from_pretrained(path, **({"revision": revision} if revision else {}))
        except (OSError, ValueError) as error:
            raise ValueError(f"the teacher {source!r} cannot be read: {' '.join(str(error).split())[:200]}") from error
        headed = any("ForImageClassification" in name for name in config.architectures or ())
        if headed or (config.model_type == "timm_wrapper" and config.num_labels):
            return names_of_config(config) or [f"LABEL_{i}" for i in range(config.num_labels)]
    return None


def json_object(name: str, text: str) -> dict[str, Any]:
    """A setting that is a JSON object.

    Raises:
        ValueError: it is none.
    """
    try:
        value = load_json(text)
    except ValueError as error:
        raise ValueError(f"{name} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{name} must be a JSON object such as '{{\"depth\": 6}}', got {text}")
    return value
