"""Batches for students that answer with masks or boxes: images and targets go through the student's own processor."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image as PILImage
from PIL import ImageOps

from ..settings.augmentation import PLAIN
from ..utils.messages import did_you_mean
from .collator import ImageCollator
from .dataset_columns import MASK_NAMES, table_of
from .hub_datasets import Image, LargeList, List

AUGMENTATIONS = (PLAIN, "flip")
BOX_NAMES = ("objects", "annotations", "annotation", "boxes", "bboxes", "labels", "label")
_BOXES, _CATEGORIES = ("bbox", "bboxes", "boxes", "box"), ("category", "category_id", "categories", "label", "labels")


class ColumnError(ValueError):
    """No column of masks or boxes."""


class DenseCollator(ImageCollator):
    """What the collators of masks and of boxes have in common.

    Args:
        processor: The student's image processor.
        augmentation: "none" or "flip": half of the images are mirrored left to right, and their targets with them.
        image_column: Column of the images.
        label_column: Column of the masks or boxes.

    Raises:
        ValueError: another augmentation, or a processor that does not take such targets.
    """

    targets = ""  # what the processor calls them

    def __init__(self, processor: Any, augmentation: str, image_column: str, label_column: str):
        super().__init__(processor, augmentation, image_column, label_column)
        if self.targets not in inspect.signature(processor.preprocess).parameters:
            raise ValueError(
                f"{type(processor).__name__} prepares images alone and takes no {self.targets}: give the image "
                "processor of the student's own family as processing_class, as AutoImageProcessor loads it"
            )
        if self.augmentation not in AUGMENTATIONS:
            raise ValueError(
                f"augmentation {self.augmentation!r} would change the images and not their masks or boxes: choose "
                f"{' or '.join(map(repr, AUGMENTATIONS))}, or give a data_collator that changes both"
            )

    def __call__(self, rows: Sequence[Mapping[str, Any] | tuple[Any, Any]]) -> dict[str, Any]:
        examples = [self._named(row) for row in rows]
        images = [self._image(row, i) for i, row in enumerate(examples)]
        targets = [self._target(row, i) for i, row in enumerate(examples)]
        if self._augmentation.flips:
            for i, image in enumerate(images):
                number = self._number(image)
                generator = None if number is None else torch.Generator().manual_seed(number)
                if torch.rand((), generator=generator) < 0.5:
                    images[i], targets[i] = ImageOps.mirror(image), self._mirrored(targets[i], image.width)
        return self._batch(images, targets)

    def _target(self, row: Mapping[str, Any], position: int) -> Any:
        value = row.get(str(self.label_column))
        if value is None:
            raise ValueError(f"row {position} of the batch has nothing in the column {self.label_column!r}")
        return value

    def _mirrored(self, target: Any, width: int) -> Any:
        raise NotImplementedError

    def _batch(self, images: list[PILImage.Image], targets: list[Any]) -> dict[str, Any]:
        raise NotImplementedError


class SegmentationCollator(DenseCollator):
    """Images and masks: one class number for each pixel.

    Returns (when called with rows):
        {"pixel_values": (batch, channels, height, width), "labels": (batch, height, width)}, as the processor makes
        them of both (`segmentation_maps`; with `do_reduce_labels`, 0 becomes the number that the loss leaves out).

    Raises:
        ValueError: (when called) a mask of several channels, or of another size than its image.
    """

    targets = "segmentation_maps"

    def _target(self, row: Mapping[str, Any], position: int) -> np.ndarray:
        mask = np.asarray(super()._target(row, position))
        if mask.ndim != 2:
            raise ValueError(
                f"the mask of row {position} of the batch has the shape {mask.shape}: legal is one class number a "
                "pixel (height, width), as images of the modes L, P and I have it"
            )
        return mask

    def _mirrored(self, target: np.ndarray, width: int) -> np.ndarray:
        return np.ascontiguousarray(target[:, ::-1])

    def _batch(self, images: list[PILImage.Image], targets: list[Any]) -> dict[str, Any]:
        for i, (image, mask) in enumerate(zip(images, targets, strict=True)):
            if mask.shape != image.size[::-1]:
                raise ValueError(f"the mask of row {i} of the batch is {mask.shape} and its image {image.size[::-1]}")
        process: Any = self.processor
        found = process(images, segmentation_maps=targets, return_tensors="pt")
        return {"pixel_values": found["pixel_values"], "labels": found["labels"].long()}


class DetectionCollator(DenseCollator):
    """Images and boxes, as `datasets` and COCO keep them: [x, y, width, height] in pixels, and a category for each.

    A row's boxes are a mapping of lists ({"bbox": [...], "category": [...]}) or a list of mappings.

    Returns (when called with rows):
        {"pixel_values": (batch, channels, height, width), "labels": one mapping an image (class_labels, boxes)}, and
        "pixel_mask" where the processor pads images.
    """

    targets = "annotations"

    def _target(self, row: Mapping[str, Any], position: int) -> list[dict[str, Any]]:
        value = super()._target(row, position)
        objects = (
            value if isinstance(value, Mapping) else {name: [o[name] for o in value] for name in (value or [{}])[0]}
        )
        boxes = next((objects[name] for name in _BOXES if name in objects), None)
        kinds = next((objects[name] for name in _CATEGORIES if name in objects), None)
        if not objects:
            return []
        if boxes is None or kinds is None:
            raise ValueError(
                f"the column {self.label_column!r} has {', '.join(objects)}: legal is a box (bbox: x, y, width, height "
                "in pixels) and a category (category, a number) for each object"
            )
        return [
            {"bbox": list(map(float, box)), "category_id": int(kind), "area": float(box[2] * box[3]), "iscrowd": 0}
            for box, kind in zip(boxes, kinds, strict=True)
        ]

    def _mirrored(self, target: list[dict[str, Any]], width: int) -> list[dict[str, Any]]:
        found = []
        for thing in target:
            x, y, w, h = thing["bbox"]
            found.append({**thing, "bbox": [width - x - w, y, w, h]})
        return found

    def _batch(self, images: list[PILImage.Image], targets: list[Any]) -> dict[str, Any]:
        named = [{"image_id": i, "annotations": objects} for i, objects in enumerate(targets)]
        process: Any = self.processor
        found = process(images, annotations=named, return_tensors="pt")
        batch = {"pixel_values": found["pixel_values"], "labels": [dict(labels) for labels in found["labels"]]}
        mask = found.get("pixel_mask")
        return batch if mask is None or bool(mask.bool().all()) else batch | {"pixel_mask": mask}


def mask_column(features: Mapping[str, Any], image: str, given: str | None = None) -> str:
    """The column of the masks: the one that is given, or the first of the usual names with images.

    Raises:
        ColumnError: there is none; the columns are listed.
    """
    masks = {name: feature for name, feature in features.items() if isinstance(feature, Image) and name != image}
    return _column(masks, features, MASK_NAMES, given, "masks (images of class numbers)")


def box_column(features: Mapping[str, Any], given: str | None = None) -> str:
    """The column of the boxes: the one that is given, or the first of the usual names with boxes and categories.

    Raises:
        ColumnError: there is none; the columns are listed.
    """
    found = {name: feature for name, feature in features.items() if set(_fields(feature)) & set(_BOXES)}
    return _column(found, features, BOX_NAMES, given, "boxes (bbox and category of each object)")


def _fields(feature: Any) -> Sequence[str]:
    inner = feature.feature if isinstance(feature, List | LargeList) else feature
    inner = inner[0] if isinstance(inner, list) and len(inner) == 1 else inner
    return tuple(inner) if isinstance(inner, Mapping) else ()


def _column(
    fitting: Mapping[str, Any], features: Mapping[str, Any], usual: Sequence[str], given: str | None, what: str
) -> str:
    if given is not None:
        if given not in fitting:
            hint = did_you_mean(given, fitting)
            raise ColumnError(f"label_column={given!r} holds no {what}; the columns: {table_of(features)}.{hint}")
        return given
    named = [name for name in usual if name in fitting]
    if named or len(fitting) == 1:
        return named[0] if named else next(iter(fitting))
    raise ColumnError(f"no column of {what} is found: set label_column; the columns: {table_of(features)}")
