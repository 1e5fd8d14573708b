"""Which rows of its data a recipe takes, of stored data sets and of streams."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..data.dataset_columns import features_of

__all__ = ["columns_of", "drawn_samples"]

BUFFER = 1000  # rows of a stream that are shuffled with one another


def columns_of(dataset: Any) -> Sequence[str]:
    """Names of the columns; of a stream that does not tell, those of its first row."""
    names = getattr(dataset, "column_names", None)
    return list(names if names is not None else features_of(dataset) or ())


def drawn_samples(train: Any, evaluation: Any, recipe: Any, seed: int) -> tuple[Any, Any]:
    """Training and evaluation data, at most as many rows as the recipe wants, drawn with the seed.

    A stream of training rows is shuffled in any case, in a buffer: nothing else would do it.
    """
    if not hasattr(train, "__len__"):
        train = train.shuffle(seed=seed, buffer_size=BUFFER)
    return _some(train, recipe.max_train_samples, seed), _some(evaluation, recipe.max_eval_samples, seed)


def _some(dataset: Any, count: int | None, seed: int) -> Any:
    if dataset is None or count is None:
        return dataset
    if not hasattr(dataset, "__len__"):
        return dataset.take(count)
    return dataset.shuffle(seed=seed).select(range(count)) if count < len(dataset) else dataset
