"""Finds the columns of images and labels in a data set, by name and type."""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image as PILImage
from torch import Tensor

from ..utils.messages import did_you_mean
from .hub_datasets import ClassLabel, Dataset, Image, IterableDataset, LargeList, List, Value

logger = logging.getLogger(__name__)

# Usual names, first ones first; compared without regard to case.
IMAGE_NAMES = ("image", "img", "images", "jpg", "jpeg", "png", "webp", "picture", "photo", "pixels")
LABEL_NAMES = (
    *("label", "labels", "class", "target", "fine_label", "category", "cls", "label_id", "class_id", "targets"),
    *("label_ids", "class_label", "classes", "categories", "y"),
)
MASK_NAMES = ("annotation", "mask", "segmentation_mask", "segmentation", "label", "labels", "depth", "depth_map")
PREPARED = "pixel_values"
_FIRST_ROWS = 3


@dataclass(frozen=True)
class Columns:
    """The columns of a data set that a student learns from.

    Attributes:
        image: Column of the images.
        label: Column of the labels; None where there is none, or where it is ambiguous.
        image_feature, feature: Types of the images and of the labels, as `datasets` has them.
        reason: Why there is no label, for an error.
        table: All columns with their types, for an error.
    """

    image: str
    label: str | None
    image_feature: Any
    feature: Any
    reason: str
    table: str

    @property
    def label_column(self) -> str:
        """Column of the labels.

        Raises:
            ValueError: there is none; the message says why.
        """
        if self.label is None:
            raise ValueError(f"no column of labels: {self.reason}; the columns: {self.table}")
        return self.label


def image_columns(
    dataset: Any, image_column: str | None = None, label_column: str | None = None
) -> tuple[str, str | None] | None:
    """The columns of images and labels: see `find_columns`.

    Returns:
        (images, labels), the latter None where there are none; None for a data set without raw images.
    """
    found = find_columns(dataset, image_column, label_column)
    return None if found is None else (found.image, found.label)


def find_columns(dataset: Any, image_column: str | None = None, label_column: str | None = None) -> Columns | None:
    """Which columns hold the raw images and the labels.

    A column of labels has one of the usual names (`LABEL_NAMES`, in their order) and a type that labels can have; or it
    is the only one of type ClassLabel. A data set that does not tell its types (a stream, a transform, a list of rows,
    pairs as torchvision's data sets have) is asked for its first row.

    Args:
        dataset: A data set, or a mapping of them, of which the first with images tells.
        image_column: The column of images, if given.
        label_column: The column of labels, if given.

    Returns:
        None for a data set without raw images: it has `pixel_values`, or no images at all.

    Raises:
        ValueError: there is no such column (the nearest is named), it holds no images or labels, several columns may be
            the images; the columns and their types are listed.
    """
    if isinstance(dataset, Mapping):
        found = (find_columns(split, image_column, label_column) for split in dataset.values())
        return next((columns for columns in found if columns is not None), None)
    features = features_of(dataset)
    if features is None or (PREPARED in features and image_column is None):
        return None
    for column, setting in ((image_column, "image_column"), (label_column, "label_column")):
        if column is not None:
            check_column(column, features, setting)
    image = image_column or _find_image(features, label_column)
    if image is None:
        return None
    if not is_image(features[image]):
        raise ValueError(
            f"image_column={image!r} holds no images but {type_text(features[image])}; the columns: "
            f"{table_of(features)}. Where it holds paths, dataset.cast_column({image!r}, datasets.Image())"
        )
    label, reason = (label_column, "") if label_column is not None else _find_label(features, image)
    feature = features[label] if label is not None else None
    if label is not None and label_kind(feature) is None:
        raise ValueError(
            f"label_column={label!r} is of type {type_text(feature)}, which labels cannot have; the columns: "
            f"{table_of(features)}"
        )
    return Columns(image, label, features[image], feature, reason, table_of(features))


def features_of(dataset: Any) -> Mapping[str, Any] | None:
    """The columns of a data set and their types; of one that does not tell, from its first row. None: not known."""
    features = getattr(dataset, "features", None) if isinstance(dataset, Dataset | IterableDataset) else None
    if features is not None and not is_transformed(dataset):
        return features
    row = _first_row(dataset)
    if isinstance(row, tuple) and len(row) == 2 and isinstance(row[0], PILImage.Image):
        names = _classes_of(dataset)
        kind = ClassLabel(names=names) if names and isinstance(row[1], int) else _type_of(row[1])
        return {"image": Image(), "label": kind}
    if isinstance(row, tuple) and row and isinstance(row[0], Tensor) and row[0].dim() == 3:
        raise ValueError(
            "the rows are pairs with an image that is a tensor already: leave ToTensor and Normalize out of the "
            "transform, so that the processor makes pixel_values, or give a data_collator that makes them of pairs"
        )
    if not isinstance(row, Mapping):
        return None
    # What a transform left as it was has its type still
    return {
        name: features[name] if features and name in features and label_kind(features[name]) else _type_of(value)
        for name, value in row.items()
    }


def is_transformed(dataset: Any) -> bool:
    """Whether a transform makes the columns of a data set when a row is read (`set_transform`, `with_transform`)."""
    form = getattr(dataset, "format", None)
    return isinstance(form, Mapping) and form.get("type") == "custom"


def is_image(feature: Any) -> bool:
    """Whether a type is one of images: Image, encoded images ({"bytes", "path"} or bytes), arrays."""
    if isinstance(feature, Mapping):
        return set(feature) == {"bytes", "path"}
    if isinstance(feature, Value):
        return feature.dtype in ("binary", "large_binary")
    shape = getattr(feature, "shape", None)
    return isinstance(feature, Image) or (isinstance(shape, tuple) and len(shape) in (2, 3))


def label_kind(feature: Any) -> str | None:
    """What labels of a type are: "class", "integer", "bool", "text", "float"; of lists "classes", "texts", "vector".

    Returns:
        None for a type that labels cannot have.
    """
    inner = feature.feature if isinstance(feature, List | LargeList) else None
    if isinstance(feature, list) and len(feature) == 1:
        inner = feature[0]
    if inner is not None:
        kind = label_kind(inner)
        lists = {"class": "classes", "text": "texts", "integer": "vector", "bool": "vector", "float": "vector"}
        return lists.get(kind) if kind is not None else None
    if isinstance(feature, ClassLabel):
        return "class"
    if not isinstance(feature, Value):
        return None
    for start, kind in (("int", "integer"), ("uint", "integer"), ("bool", "bool"), ("float", "float")):
        if feature.dtype.startswith(start):
            return kind
    return "text" if feature.dtype in ("string", "large_string") else None


def type_text(feature: Any) -> str:
    """A column's type, in a word or two."""
    if isinstance(feature, ClassLabel):
        return f"ClassLabel of {feature.num_classes}"
    if isinstance(feature, Value):
        return feature.dtype
    if isinstance(feature, List | LargeList):
        return f"list of {type_text(feature.feature)}"
    if isinstance(feature, list) and len(feature) == 1:
        return f"list of {type_text(feature[0])}"
    if isinstance(feature, Mapping):
        return f"struct of {', '.join(feature)}"
    return "unknown" if feature is None else type(feature).__name__


def table_of(features: Mapping[str, Any]) -> str:
    """Columns with their types."""
    return ", ".join(f"{name} ({type_text(feature)})" for name, feature in features.items())


def check_column(column: str, features: Mapping[str, Any], title: str) -> None:
    """Refuses a column that does not exist, naming the nearest."""
    if column not in features:
        hint = did_you_mean(column, features)
        title = f"{title} is {column!r}, and the data set" if title.endswith("_column") else title
        raise ValueError(f"{title} has no column {column!r}: it has {table_of(features)}.{hint}")


def _find_image(features: Mapping[str, Any], label: str | None) -> str | None:
    images = [name for name, f in features.items() if isinstance(f, Image) and name != label]
    others = [n for n, f in features.items() if n.lower() in IMAGE_NAMES and is_image(f) and n != label]
    images = images or others
    usual = _usual(images, IMAGE_NAMES)
    if usual:
        return usual[0]
    plain = [name for name in images if name.lower() not in MASK_NAMES] or images
    if len(plain) > 1:
        raise ValueError(
            f"several columns may be the images: {', '.join(plain)}. Set image_column; the columns: "
            f"{table_of(features)}"
        )
    return plain[0] if plain else None


def _find_label(features: Mapping[str, Any], image: str) -> tuple[str | None, str]:
    able = {name: label_kind(f) for name, f in features.items() if name != image and label_kind(f) is not None}
    usual = _usual(able, LABEL_NAMES)
    typed = [name for name, kind in able.items() if kind == "class"]
    if usual or len(typed) == 1:
        chosen = usual[0] if usual else typed[0]
        candidates = [name for name in (*usual, *typed) if name != chosen]
        if candidates:
            others = table_of({name: features[name] for name in candidates})
            logger.warning(
                "Labels are read from the column %r (%s), not from %s: set label_column to choose.",
                chosen,
                type_text(features[chosen]),
                others,
            )
        return chosen, ""
    if typed:
        return None, f"several columns may be the labels ({', '.join(typed)})"
    masks = [n for n, f in features.items() if n != image and isinstance(f, Image) and n.lower() in MASK_NAMES]
    if masks:
        return None, f"the column {masks[0]!r} holds images (masks), which a data_collator of your own has to read"
    inside = [
        (name, found[0])
        for name, feature in features.items()
        if isinstance(feature, Mapping) and not is_image(feature) and (found := _usual(feature, LABEL_NAMES))
    ]
    if inside:
        name, field = inside[0]
        line = f"dataset.map(lambda row: {{'label': row[{name!r}][{field!r}]}})"
        return None, f"no column has a usual name and type of labels, but {name!r} has a field {field!r}: {line}"
    return None, "no column has a usual name and type of labels"


def _usual(names: Any, usual: Sequence[str]) -> list[str]:
    """Those of the names that are usual, the most usual first."""
    return sorted((name for name in names if name.lower() in usual), key=lambda name: usual.index(name.lower()))


def _first_row(dataset: Any) -> Any:
    """The first row of a data set that does not tell its types; what is random stays where it was."""
    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            if isinstance(dataset, IterableDataset):
                rows = list(dataset.take(_FIRST_ROWS))
                return next((row for row in rows if None not in row.values()), rows[0] if rows else None)
            if hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__") and not isinstance(dataset, str):
                return dataset[0] if len(dataset) else None
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
    return None


def _classes_of(dataset: Any) -> list[str] | None:
    """The names of the classes that a data set of torchvision has, also inside of Subset and the like."""
    for _ in range(8):
        names = getattr(dataset, "classes", None)
        if isinstance(names, Sequence) and names and all(isinstance(name, str) for name in names):
            return list(names)
        inner = getattr(dataset, "datasets", None)
        dataset = inner[0] if isinstance(inner, Sequence) and inner else getattr(dataset, "dataset", None)
    return None


def _type_of(value: Any) -> Any:
    """The type of a value of a row, as `datasets` calls it; None where labels and images are none of it."""
    if isinstance(value, PILImage.Image):
        return Image()
    if isinstance(value, Tensor | np.ndarray | np.generic):
        value = np.asarray(value)
        if value.ndim in (2, 3):
            return Image() if value.dtype == np.uint8 else None
        value = value.tolist()
    if isinstance(value, bytes):
        return Value("binary")
    for kind, name in ((bool, "bool"), (int, "int64"), (float, "float64"), (str, "string")):
        if isinstance(value, kind):
            return Value(name)
    if isinstance(value, list | tuple) and value:
        inner = _type_of(value[0])
        return List(inner) if inner is not None else None
    if isinstance(value, Mapping):
        return {name: _type_of(inner) for name, inner in value.items()}
    return None
