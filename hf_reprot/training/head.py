"""A head for a student that was taught without labels, fitted to the few samples that have one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from accelerate.utils import broadcast
from torch import Tensor, nn

from ..data.collator import ImageCollator
from ..data.columns import columns_of_student
from ..data.dataset_columns import features_of, find_columns
from ..data.dense import DenseCollator
from ..data.labels import read_labels
from ..models.head import HeadFit, fit_head, linear_head
from ..models.modules import class_names, is_headless, some

logger = logging.getLogger(__name__)


@dataclass
class FittedHead:
    """A head that was fitted to a trained representation.

    Attributes:
        fit: How it was fitted.
        entries: How many entries the log had before.
        data: What it was fitted on, where that is another data set than the training's.
    """

    fit: HeadFit
    entries: int
    data: Any = None


def fit_everywhere(
    student: nn.Module, batches: Iterable[tuple[dict[str, Any], Tensor]], gather: Callable[..., Any]
) -> HeadFit:
    """Fits the head to the samples of all processes, and gives all the same.

    Args:
        student: The student, unwrapped.
        batches: Inputs and labels, this process's share.
        gather: Collective that takes the samples of this process to those of all.
    """
    fit = fit_head(student, batches, gather)
    _, layer = linear_head(student)
    for parameter in layer.parameters():  # another machine may have rounded otherwise
        parameter.data.copy_(broadcast(parameter.data, from_process=0))
    logger.info("The head was fitted to %s samples: %s", fit.samples, fit)
    if fit.absent:
        logger.warning(
            "%d of %d classes have no labelled sample, and the head never answers with them: %s",
            len(fit.absent),
            layer.out_features,
            some(fit.absent),
        )
    return fit


def labelled_batches(
    batches: Iterable[Mapping[str, Any]], label_names: Sequence[str]
) -> Iterator[tuple[dict[str, Any], Tensor]]:
    """The student's inputs and the labels of each batch.

    Raises:
        ValueError: a batch without labels.
    """
    for inputs in batches:
        labels = next((inputs[name] for name in label_names if inputs.get(name) is not None), None)
        if labels is None:
            raise ValueError(
                f"the samples have no labels ({', '.join(label_names)}; columns: {', '.join(inputs)}): a head needs "
                "them"
            )
        yield columns_of_student(inputs, label_names), labels


def chosen_columns(dataset: Any, collator: Any, image: str | None, label: str | None) -> tuple[str | None, str | None]:
    """The columns of images and labels that someone chose, or that were found for training, where they exist.

    Args:
        dataset: The data set.
        collator: What makes batches of the training data.
        image, label: What someone chose.
    """
    found = getattr(collator, "input_columns", (None, None))
    features = features_of(dataset) or {}
    image, label = image or found[0], label or found[1]
    return image if image in features else None, label if label in features else None


def collator_for_columns(
    collator: Any, dataset: Any, student: nn.Module, columns: tuple[str | None, str | None]
) -> Any:
    """The collator itself, or one that reads the columns of this data set: it was made for the first one.

    Args:
        collator: What makes batches of the training data.
        dataset: The data set.
        student: The student, unwrapped.
        columns: What `chosen_columns` gave.
    """
    if not isinstance(collator, ImageCollator) or isinstance(collator, DenseCollator):
        return collator
    found = find_columns(dataset, *columns)
    if found is None or (found.image, found.label) == collator.input_columns:
        return collator
    learner = None if is_headless(student) else student  # a backbone learns nothing from labels, whatever they are
    names = class_names(learner) if learner is not None else None
    reader = read_labels(found, dataset, learner, names) if found.label is not None else None
    return collator.reading(found.image, found.label, reader)
