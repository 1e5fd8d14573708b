"""Image data sets from the Hub, a folder or the embedded digits."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Subset

from ..utils.hub_ids import split_revision
from .dataset_columns import (
    LABEL_NAMES,
    check_column,
    features_of,
    find_columns,
    image_columns,
    is_transformed,
    label_kind,
    table_of,
)
from .digits import NAME as DIGITS
from .digits import load_digits_dataset
from .folders import TABLES, load_folder, load_tables
from .hub_datasets import (
    ClassLabel,
    Dataset,
    DatasetDict,
    Features,
    Image,
    IterableDataset,
    IterableDatasetDict,
    load_dataset,
)

logger = logging.getLogger(__name__)


def load_image_dataset(
    source: str | os.PathLike,
    *,
    config: str | None = None,
    revision: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    streaming: bool = False,
) -> DatasetDict | IterableDatasetDict:
    """Loads a data set of images, with labels if it has them.

    Args:
        source: "digits" (embedded, nothing to download); a folder of images with one subfolder per class, or with
            subfolders "train", "validation", "test" of such; a folder that `save_to_disk` wrote; a hub id. Also a table
            (.csv, .tsv, .jsonl, .parquet) with images or paths of images, or a folder with such (train.csv, test.csv,
            metadata.csv as `imagefolder` has it), which then goes before the names of subfolders.
        config: Configuration of a data set from the Hub.
        revision: Revision of a data set from the Hub.
        image_column: Column of the images; None: the one of type Image.
        label_column: Column of the labels, which becomes a ClassLabel if it is none; None: the one of type ClassLabel.
        streaming: Read rows when they are asked for, without storing the data set. Labels that are texts stay texts.

    Returns:
        The splits. Where a column was named, only the chosen columns are kept.

    Raises:
        ValueError: there is no such data set, column or image.
    """
    source = os.fspath(source)
    folder = Path(source).expanduser()
    if source == DIGITS:
        data = load_digits_dataset()
    elif folder.is_dir() or (folder.is_file() and folder.suffix.lower() in TABLES):
        data = load_folder(folder) if folder.is_dir() else load_tables([folder])
        if data is None:
            data = _load(str(folder), None, None, f"{str(folder)!r} holds no images, and")
        for split in data.values():
            if not split.info.dataset_name or folder.is_file():
                split.info.dataset_name = folder.stem if folder.is_file() else folder.resolve().name
    elif folder.is_absolute() or source.startswith((".", "~")):
        raise ValueError(f"there is no folder {source!r} to load images from")
    else:
        data = _load_from_hub(source, config, revision, streaming)
    if streaming and isinstance(data, DatasetDict):
        data = IterableDatasetDict({name: _stream(split) for name, split in data.items()})
    empty = [name for name, split in data.items() if hasattr(split, "__len__") and not len(split)]
    if len(empty) == len(data):
        raise ValueError(f"{source} is empty: its splits ({', '.join(empty)}) have no row")
    return _with_columns(data, source, image_column, label_column)


def _stream(split: Dataset) -> IterableDataset:
    stream = split.to_iterable_dataset()
    stream.info.dataset_name = split.info.dataset_name  # a stream of what is stored forgets it
    return stream


def equal_shares(labels: Sequence[Any], samples: int, seed: int = 0) -> list[int]:
    """Numbers of some rows, drawn so that every class has the same share; a class with fewer rows gives all it has.

    Args:
        labels: The label of every row; -1, -100 and None are no labels, and their rows are not drawn.
        samples: How many rows in all; fewer where there are not so many with a label.
        seed: Of the draw.

    Returns:
        Row numbers, in order.

    Raises:
        ValueError: `samples` below 1.

    Example:
        >>> labels = [0, 0, 0, 0, 1, 2, 2]
        >>> [labels[i] for i in equal_shares(labels, 5)]
        [0, 0, 1, 2, 2]
    """
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")
    rows: dict[Any, list[int]] = {}
    for row in np.random.default_rng(seed).permutation(len(labels)).tolist():
        label = labels[row]
        if label is not None and label not in (-1, -100):
            rows.setdefault(label, []).append(row)
    classes = sorted(rows, key=lambda label: (len(rows[label]), str(label)))
    chosen: list[int] = []
    for i, label in enumerate(classes):  # the smallest first: what it cannot give, the others share
        chosen += rows[label][: -(-(samples - len(chosen)) // (len(classes) - i))]
    return sorted(chosen[:samples])


def drawn_equally(dataset: Any, samples: int, seed: int = 0, label_column: str | None = None) -> Any:
    """Some labelled rows of a data set, equal shares of every class (see `equal_shares`).

    Args:
        dataset: A `datasets.Dataset` with a column of labels, or any data set of rows with "labels" or "label".
        samples: Maximum number of rows.
        seed: Of the draw.
        label_column: Column of the labels, if given.

    Raises:
        ValueError: no labels, more than one per row, or a data set that is streamed.
    """
    if not hasattr(dataset, "__len__"):
        raise ValueError("a streamed data set has no rows to choose from: take some of it first (data.take(n))")
    if isinstance(dataset, Dataset):
        columns = image_columns(dataset, label_column=label_column)
        column = columns[1] if columns is not None else next((n for n in LABEL_NAMES if n in dataset.features), None)
        if column is None:
            raise ValueError(
                f"no column of labels to draw equal shares by: there are {', '.join(dataset.column_names)}"
            )
        labels = list(dataset[column])
    else:
        rows = (dataset[i] for i in range(len(dataset)))
        labels = [next((row[name] for name in ("labels", "label") if name in row), None) for row in rows]
    labels = [label.item() if hasattr(label, "item") and getattr(label, "ndim", 0) == 0 else label for label in labels]
    if not any(isinstance(label, int | str) for label in labels):
        raise ValueError("equal shares are drawn by one class per row, and the rows have none: choose rows yourself")
    chosen = equal_shares(labels, samples, seed)
    return dataset.select(chosen) if isinstance(dataset, Dataset) else Subset(dataset, chosen)


def leave_encoded(dataset: Any, column: str | None) -> Any:
    """The data set with encoded images, which `ImageCollator` decodes: it can then say which one is damaged."""
    feature = (getattr(dataset, "features", None) or {}).get(column)
    # One with a mode is decoded by `datasets`, which knows it
    if isinstance(feature, Image) and feature.mode is None and not is_transformed(dataset):
        return dataset.cast_column(column, Image(decode=False))
    return dataset


def _load_from_hub(source: str, config: str | None, revision: str | None, streaming: bool = False) -> Any:
    repo, revision = split_revision(source, revision, title="the data set", setting="dataset_revision")
    title = f"the data set {repo!r}" + (f" at revision {revision!r}" if revision else "")
    return _load(repo, config, revision, title, streaming)


def _load(path: str, config: str | None, revision: str | None, title: str, streaming: bool = False) -> Any:
    try:
        data = load_dataset(path, name=config, revision=revision, streaming=streaming)
    except Exception as error:  # the library raises many kinds; each means that this source does not load
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"{title} cannot be loaded: {reason}. Legal is a hub id, a folder of images with one subfolder per class, "
            f"a folder that save_to_disk wrote, or {DIGITS!r}"
        ) from error
    if isinstance(data, DatasetDict | IterableDatasetDict):
        return data
    return IterableDatasetDict({"train": data}) if streaming else DatasetDict({"train": data})


def _with_columns(data: Any, source: str, image: str | None, label: str | None) -> Any:
    features: dict[str, Any] = {}
    for split in data.values():  # one may have labels, and another none
        features |= {name: f for name, f in (features_of(split) or {}).items() if name not in features}
    for column in (image, label):
        if column is not None:
            check_column(column, features, source)
    if image is not None and not isinstance(features[image], Image):
        data = _cast_images(data, image, source)
    splits = [find_columns(d, image, label if label in (features_of(d) or {}) else None) for d in data.values()]
    known = [columns for columns in splits if columns is not None]
    found = next((columns for columns in known if columns.label is not None), next(iter(known), None))
    if found is None:
        raise ValueError(f"{source} has no column of images: it has {table_of(features)}. Name one with image_column")
    if not isinstance(found.image_feature, Image):
        data = _cast_images(data, found.image, source)
    kind = label_kind(found.feature)
    if isinstance(data, DatasetDict) and (kind in ("text", "bool") or (label is not None and kind == "integer")):
        data = _cast_labels(data, found.label_column, source)
    if image is None and label is None:
        return data
    chosen = [column for column in (found.image, found.label) if column is not None]
    kept = {n: d.select_columns([c for c in chosen if c in (d.features or chosen)]) for n, d in data.items()}
    return type(data)(kept)


def _cast_images(data: Any, column: str, source: str) -> Any:
    try:
        return data.cast_column(column, Image())
    except Exception as error:  # arrow's own kinds
        raise ValueError(f"column {column!r} of {source} holds no images or paths of images") from error


def _cast_labels(data: DatasetDict, column: str, source: str) -> DatasetDict:
    """Labels of any kind as classes, numbered alike in all splits."""
    values: set = set()
    for split in data.values():
        values |= set(split.unique(column)) if column in split.features else set()
    values.discard(None)
    ordered = sorted(values)
    numbers: dict[Any, int] = {value: i for i, value in enumerate(ordered)}
    number: Callable = lambda row: {column: numbers.get(row[column])}  # noqa: E731
    classes = ClassLabel(names=[str(value) for value in ordered])
    logger.info("The labels in column %r of %s become classes in this order: %s", column, source, classes.names)
    return DatasetDict(
        {
            name: split.map(number, features=Features(dict(split.features) | {column: classes}))
            if column in split.features
            else split
            for name, split in data.items()
        }
    )
