"""Batches from rows with raw images; augmentation that resumes exactly."""

from __future__ import annotations

import contextlib
import copy
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from PIL import Image as PILImage
from transformers import BaseImageProcessor, TrainerCallback

from .augmentation import PLAIN, Augmentation
from .columns import TEACHER_PREFIX
from .images import fingerprint, open_image
from .label_reader import LabelReader, is_missing
from .preprocessing import makes_patches, takes_grey
from .seeding import seed_of_data, seeded


class ImageCollator:
    """Collates rows with raw images into a model's batch.

    The images of a batch go through the processor in one call. Augmentation belongs to training: evaluate with
    `collator.for_evaluation()`, as `OTTransferTrainer` does.

    After `set_epoch` (the callback `AugmentationEpoch` calls it), what happens to an image follows from the seed, the
    epoch and its pixels alone: neither the number of processes or workers nor stopping and resuming changes it. Before,
    it is drawn from torch's generator.

    Args:
        processor: The image processor of the student.
        augmentation: Names joined by "+", as in "random-resized-crop+flip+randaugment": "flip" (half of the images are
            mirrored left to right), "crop" (a random part with half of the area or more takes the place of the image),
            and torchvision's "random-resized-crop", "randaugment", "trivialaugment", "autoaugment", "augmix",
            "color-jitter" and "random-erasing"; or a callable of one image, such as a transform of
            `torchvision.transforms.v2` (see `Augmentation`); or "none".
        image_column: Column of the images: PIL images of any mode, encoded images ({"bytes", "path"}) or arrays.
        label_column: Column of the labels; None for a data set without.
        read_labels: What makes a tensor of the labels (see `hf_reprot.data.labels.read_labels`); None: integers
            and booleans are classes, other numbers those of a regression, lists one number for each output.

    Returns (when called with rows):
        {"pixel_values": (batch, channels, height, width), "labels": (batch,) or (batch, outputs)}; no "labels" where no
        row has one. Rows may be pairs (image, label), as torchvision's data sets have them.
        Columns that start with `teacher_` come along, stacked.

    Raises:
        ValueError: an unknown augmentation, a processor that makes patches; when called, a row without an image, with
            a damaged one, or without a label among rows with one.
    """

    def __init__(
        self,
        processor: BaseImageProcessor,
        augmentation: str | Callable[[Any], Any] = PLAIN,
        image_column: str = "image",
        label_column: str | None = "label",
        read_labels: LabelReader | None = None,
    ):
        if makes_patches(processor):
            raise ValueError(
                f"{type(processor).__name__} makes patches with their grid of an image (NaFlex): such a model can be "
                "the teacher; as a student, it needs a data_collator of your own"
            )
        self.processor = processor
        self._augmentation = Augmentation(augmentation, processor)
        self.image_column = image_column
        self.label_column = label_column
        self.read_labels = read_labels
        self.mode = "L" if takes_grey(processor) else "RGB"
        self._epoch: torch.Tensor | None = None

    @property
    def augmentation(self) -> str:
        """What happens to images in training: names joined by "+"."""
        return self._augmentation.name

    @property
    def input_columns(self) -> tuple[str | None, str | None]:
        """The columns that it reads: images and labels (None for a data set without)."""
        return self.image_column, self.label_column

    def for_evaluation(self) -> ImageCollator:
        """The same without augmentation."""
        plain = copy.copy(self)
        plain._augmentation = Augmentation(PLAIN, self.processor)
        return plain

    def reading(
        self, image_column: str, label_column: str | None, read_labels: LabelReader | None = None
    ) -> ImageCollator:
        """The same for a data set with other columns."""
        other = copy.copy(self)
        other.image_column, other.label_column, other.read_labels = image_column, label_column, read_labels
        return other

    def set_epoch(self, epoch: int, seed: int = 0) -> None:
        """Makes augmentation a function of the seed, the epoch and the image."""
        if self._epoch is None:
            # shared memory: workers that outlive an epoch see the next one's number
            self._epoch = torch.zeros(2, dtype=torch.int64).share_memory_()
        self._epoch[0], self._epoch[1] = seed, epoch

    @property
    def epoch_and_seed(self) -> tuple[int, int] | None:
        """The epoch and seed that augmentation depends on; None before `set_epoch`."""
        return None if self._epoch is None else (int(self._epoch[1]), int(self._epoch[0]))

    def __call__(self, rows: Sequence[Mapping[str, Any] | tuple[Any, Any]]) -> dict[str, Any]:
        examples = [self._named(row) for row in rows]
        change = self._augmentation
        if change.changes and "teacher_pixel_values" in examples[0]:
            raise ValueError(
                f"augmentation {self.augmentation!r} changes the student's images but not the column "
                "teacher_pixel_values: leave that column out, or set augmentation='none'"
            )
        images = [self._image(row, i) for i, row in enumerate(examples)]
        batch: dict[str, Any] = {"pixel_values": self._augmented(images) if change.changes else self._process(images)}
        labels = self._labels(examples)
        if labels is not None:
            batch["labels"] = labels
        for name in examples[0]:
            if name.startswith(TEACHER_PREFIX):
                batch[name] = torch.stack([torch.as_tensor(row[name]) for row in examples])
        return batch

    def _process(self, images: Sequence[Any]) -> torch.Tensor:
        return self.processor(list(images), return_tensors="pt")["pixel_values"]

    def _augmented(self, images: Sequence[PILImage.Image]) -> torch.Tensor:
        change = self._augmentation
        numbers = [self._number(image) for image in images]
        generators = [None if n is None else torch.Generator().manual_seed(n) for n in numbers]
        changed = change.crop(images, generators)
        for i, number in enumerate(numbers if change.draws else ()):
            with _drawing("image", number):
                changed[i] = change.image(changed[i])
        pixels = change.pixels(changed, self._process)
        if change.flips:
            mirrored = torch.stack([torch.rand((), generator=g) < 0.5 for g in generators])
            pixels = torch.where(mirrored[:, None, None, None], pixels.flip(-1), pixels)
        for i, number in enumerate(numbers if change.erases else ()):
            with _drawing("erased", number):
                pixels[i] = change.erase(pixels[i])
        return pixels

    def _named(self, row: Mapping[str, Any] | tuple[Any, Any]) -> Mapping[str, Any]:
        if not isinstance(row, tuple | list) or len(row) != 2:
            return row
        return {self.image_column: row[0]} | ({self.label_column: row[1]} if self.label_column is not None else {})

    def _image(self, row: Mapping[str, Any], position: int) -> PILImage.Image:
        if self.image_column not in row:
            raise ValueError(f"no column {self.image_column!r} of images: the rows have {', '.join(row)}")
        try:
            return open_image(row[self.image_column], self.mode)
        except ValueError as error:
            raise ValueError(f"the image of row {position} of the batch ({self._about(row)}) {error}") from error

    def _about(self, row: Mapping[str, Any]) -> str:
        """What tells a row from others: its file, its label, its other short values."""
        value = row[self.image_column]
        path = value.get("path") if isinstance(value, Mapping) else getattr(value, "filename", None)
        facts = {"file": path} if path else {}
        facts |= {k: v for k, v in row.items() if k != self.image_column and isinstance(v, str | int | float)}
        told = [f"{name} {str(fact)[:100]}" for name, fact in facts.items()][:4]
        return ", ".join(told) or "nothing else is known"

    def _labels(self, rows: Sequence[Mapping[str, Any]]) -> torch.Tensor | None:
        if self.label_column is None:
            return None
        labels = [row.get(self.label_column) for row in rows]
        missing = [is_missing(label) for label in labels]
        if all(missing):
            return None
        if any(missing):
            raise ValueError(
                f"row {missing.index(True)} of the batch has no label, others have: label all rows or none"
            )
        try:
            return (self.read_labels or LabelReader.for_values(labels))(labels)
        except ValueError as error:
            raise ValueError(f"the labels in column {self.label_column!r} {error}") from error

    def _number(self, image: PILImage.Image) -> int | None:
        """What an image's augmentation follows from: seed, epoch and pixels; None before `set_epoch`."""
        if self._epoch is None:
            return None
        seed, epoch = self._epoch.tolist()
        mixed = hashlib.blake2b(f"{seed} {epoch} {fingerprint(image)}".encode(), digest_size=7).digest()
        return int.from_bytes(mixed, "big")


def _drawing(what: str, number: int | None) -> contextlib.AbstractContextManager[None]:
    """Inside, the global generators draw what follows from the number; without one, as they would."""
    return contextlib.nullcontext() if number is None else seeded(what, number)


class TakesEpoch(Protocol):
    """What draws follow from: a collator, or the seeds that others draw from."""

    def set_epoch(self, epoch: int, seed: int = 0) -> None:
        """From now on."""


class AugmentationEpoch(TrainerCallback):
    """Callback that tells collators the epoch, so that augmentation is a function of seed, epoch and image.

    A `Trainer` fetches a batch before it trains on the one before: numbers drawn from torch's generator by the collator
    are not where a checkpoint left them, and a resumed run would see other images.

    Args:
        collators: Each with `set_epoch(epoch, seed)`.
    """

    def __init__(self, *collators: TakesEpoch):
        self.collators = collators

    def on_epoch_begin(self, args, state, control, **kwargs) -> None:
        """Before the first batch of an epoch is fetched; in a resumed epoch, too."""
        for collator in self.collators:
            collator.set_epoch(int((state.epoch or 0) + 1e-6), seed=seed_of_data(args))
