"""The head of a recipe's student, fitted after training without labels: on which samples, and what becomes of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..config import OTTransferConfig
from ..data.dataset_columns import Columns, find_columns
from ..data.datasets import load_image_dataset
from ..models.head import linear_head

__all__ = ["check_head", "fit_recipe_head", "labelled_data"]

_SETTINGS = ("head_samples", "head_dataset", "head_split")


def labelled_data(recipe: Any, config: OTTransferConfig, data: Mapping[str, Any], found: Columns) -> tuple[Any, Any]:
    """What the head is to be fitted to, where that is not the training data, and its columns.

    Args:
        recipe: A `Recipe`.
        config: The settings.
        data: The splits of the recipe's data set.
        found: The columns of the training data.

    Returns:
        (the data or None, their columns): None and those of the training data where these are meant.

    Raises:
        ValueError: settings of a head that is not asked for, a split that does not exist, data without labels.
    """
    given = [name for name in _SETTINGS if getattr(recipe, name) is not None]
    if not recipe.fit_head:
        if given:
            raise ValueError(f"{given[0]} says what the head is fitted to: set fit_head, too")
        return None, found
    title, labelled = recipe.dataset, None
    if recipe.head_dataset is not None:
        title = recipe.head_dataset
        data = load_image_dataset(title)
    if recipe.head_dataset is not None or recipe.head_split is not None:
        split = recipe.head_split or "train"
        if split not in data:
            raise ValueError(f"head_split: {title} has no split {split!r}: it has {', '.join(data)}")
        labelled = data[split]
        same = config.label_column if config.label_column in labelled.column_names else None
        columns = find_columns(labelled, None, same)
        if columns is None:
            raise ValueError(f"{title} has no raw images: it has {', '.join(labelled.column_names)}")
        found = columns
    if found.label is None:
        raise ValueError(
            f"fit_head needs labels, and {title} has none ({found.reason}; its columns: {found.table}). Give "
            "head_dataset or head_split with labelled images, or set label_column"
        )
    return labelled, found


def check_head(recipe: Any, student: Any) -> None:
    """Refuses, before training, a student whose head cannot be fitted."""
    if recipe.fit_head:
        linear_head(student)


def fit_recipe_head(trainer: Any, recipe: Any, labelled: Any) -> None:
    """Fits the head; what was trained is saved before, and is not lost with a head that cannot be fitted."""
    trainer.save_model()
    try:
        trainer.fit_head(labelled, samples=recipe.head_samples)
    except ValueError as error:
        folder = trainer.args.output_dir
        raise ValueError(f"{error}. The trained student is safe in {folder}, without a fitted head") from error
