"""A student as it is given: a module, or a name that it is loaded by, with or without the config of a new adapter."""

from __future__ import annotations

import os
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from ..config import OTTransferConfig
from ..data.dataset_columns import Columns, find_columns
from ..data.hub_datasets import Dataset, IterableDataset
from ..data.labels import REGRESSION, label_names, problem_of
from ..models.loading import explained
from ..models.processors import image_processor
from ..models.student import as_student, load_student
from ..utils.hub_ids import split_revision

__all__ = ["given_student", "image_processor_of"]


def given_student(
    model: nn.Module | str | os.PathLike | None, processing_class: Any, args: OTTransferConfig, train: Any, adapter: Any
) -> tuple[nn.Module | None, Any]:
    """The student and what makes its inputs, of what the user gives.

    Args:
        model: A module; an image classifier's name (a hub id, "org/name" or "org/name@revision", or a folder), which is
            loaded with a head for the classes of the data; None: it is made later, by `model_init`.
        processing_class: What the user gives; None: that of a named student, where the data are raw images.
        args: Names the columns of the data, and says whether logits are needed: a checkpoint without a head stays one
            where none are.
        train: The training data; where they have labels, these say which classes the head has.
        adapter: A `peft.PeftConfig` of a new adapter; None: none.

    Raises:
        ValueError: no such model, or none that classifies images; an adapter without a student, or on another adapter.
        TypeError: the adapter is no `PeftConfig`.
        ImportError: an adapter without peft.
    """
    if isinstance(model, str | os.PathLike):
        model, processing_class = _loaded(os.fspath(model), processing_class, args, train)
    return (model if adapter is None else _with_adapter(model, adapter)), processing_class


def image_processor_of(source: str, *, trust_remote_code: bool = False) -> Any:
    """The image processor of a student by its name.

    Raises:
        ValueError: it has none, or one that does not load.
    """
    repo, revision = split_revision(source)
    with explained(source, {}, what="student's image processor"):
        return image_processor(repo, revision=revision, trust_remote_code=trust_remote_code)


def _loaded(source: str, processing_class: Any, args: OTTransferConfig, train: Any) -> tuple[PreTrainedModel, Any]:
    found = find_columns(train, args.image_column, args.label_column) if train is not None else None
    problem = problem_of(found) if found is not None else None
    head = True if args.task_weight > 0 or args.kd_weight > 0 else None
    options: dict[str, Any] = {} if problem is None else {"problem_type": problem}
    student = load_student(source, None if found is None else _classes(found, train), head=head, **options)
    if processing_class is None and found is not None:
        processing_class = image_processor_of(source)
    return student, processing_class


def _classes(found: Columns, train: Any) -> list[str] | None:
    """What the outputs of the student are called; None where the data do not tell: it keeps its own."""
    if found.label is None:
        return None
    if problem_of(found) == REGRESSION:
        return [found.label]
    names = getattr(found.feature, "names", None)
    if names or not isinstance(train, Dataset | IterableDataset):
        return list(names) if names else None
    try:
        return label_names(train, found.label)
    except ValueError:
        return None


def _with_adapter(model: nn.Module | None, config: Any) -> nn.Module:
    if model is None:
        raise ValueError(
            "peft_config needs a model: with model_init, let it return get_peft_model(student, peft_config)"
        )
    try:
        from peft import PeftConfig, get_peft_model  # an optional dependency
    except ImportError as error:
        raise ImportError("peft_config needs peft: pip install peft") from error
    if not isinstance(config, PeftConfig):
        raise TypeError(f"peft_config must be a PeftConfig such as peft.LoraConfig(...), got {type(config).__name__}")
    if getattr(model, "peft_config", None):
        raise ValueError("the student has an adapter already: leave peft_config out, or give the model without it")
    student: Any = as_student(model)
    return get_peft_model(student, config)
