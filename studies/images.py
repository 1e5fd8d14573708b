"""The images of a study: pixels that went through a processor once, with the flipped view beside each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from datasets import DatasetDict
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.utils.data import Dataset
from transformers import ViTImageProcessor

from examples.carriers import clipart, fashion_mnist, photo_cutouts

# Few images: each seed of a study has a split of its own.
FEW = {"photo-cutouts": photo_cutouts, "clipart": clipart}


@dataclass
class Pixels(Dataset):
    """Images as tensors. With `views` 2, an image is drawn as it is or flipped, by torch's generator.

    Attributes:
        pixels: (images, channels, height, width).
        labels: (images,).
        rows: (images,) number of each among all of its split: where a remembered teacher has it.
        views: 1 or 2.
    """

    pixels: Tensor
    labels: Tensor
    rows: Tensor
    views: int = 1

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        flipped = self.views == 2 and bool(torch.rand(()) < 0.5)
        image = self.pixels[index]
        return {
            "pixel_values": image.flip(-1) if flipped else image,
            "labels": self.labels[index],
            "teacher_index": 2 * self.rows[index] + flipped,
        }

    def take(self, rows: np.ndarray, views: int | None = None) -> Pixels:
        """Some of the images."""
        at = torch.as_tensor(rows)
        return Pixels(self.pixels[at], self.labels[at], self.rows[at], views or self.views)

    def both_views(self) -> Tensor:
        """(2 * images, channels, height, width): each image and its mirror image, in the order of `teacher_index`."""
        return torch.stack([self.pixels, self.pixels.flip(-1)], 1).flatten(0, 1)


@dataclass
class Images:
    """Training pool, validation and test images of one data set at one size."""

    train: Pixels
    validation: Pixels
    test: Pixels
    classes: int
    processor: ViTImageProcessor

    @property
    def channels(self) -> int:
        return self.train.pixels.shape[1]

    @property
    def size(self) -> int:
        return self.train.pixels.shape[-1]

    def few(self, count: int, seed: int) -> np.ndarray:
        """Numbers of `count` training images, with equal shares of every class; all where there are no more."""
        everything = np.arange(len(self.train))
        if count >= len(everything):
            return everything
        labels = self.train.labels.numpy()
        rows, _ = train_test_split(everything, train_size=count, stratify=labels, random_state=seed)
        return rows


def processor_of(size: int) -> ViTImageProcessor:
    """Pixels in [-1, 1], as EfficientNet-Lite wants them too."""
    return ViTImageProcessor(size={"height": size, "width": size}, image_mean=[0.5] * 3, image_std=[0.5] * 3)


def split_of(name: str, seed: int) -> int:
    """The split that a seed of a study sees."""
    return seed if name in FEW else 0


def load(name: str, *, size: int, pool: int, validation: int, test: int, split: int = 0) -> Images:
    """Images of one of the carriers.

    Args:
        name: "fashion-mnist", "photo-cutouts" or "clipart".
        size: Height and width.
        pool: Training images at most.
        validation, test: Numbers of images.
        split: Seed of the split, of the data sets in FEW.

    Raises:
        ValueError: no such data set.
    """
    if name == "fashion-mnist":
        data = fashion_mnist.load()
        train = data["train"].shuffle(seed=0).select(range(pool + validation))
        held = data["test"].shuffle(seed=0).select(range(test))
        parts = {"train": train.select(range(pool)), "validation": train.select(range(pool, pool + validation))}
        data = DatasetDict({**parts, "test": held})
    elif name in FEW:
        data = FEW[name].load(test=test + validation, seed=split)
        held = data["test"].train_test_split(validation, seed=split, stratify_by_column="label")
        train = data["train"].select(range(min(pool, len(data["train"]))))
        data = DatasetDict({"train": train, "validation": held["test"], "test": held["train"]})
    else:
        raise ValueError(f"no data set {name!r}: fashion-mnist, {' or '.join(FEW)}")
    processor = processor_of(size)
    splits = [_pixels(data[part], processor) for part in ("train", "validation", "test")]
    return Images(*splits, classes=data["train"].features["label"].num_classes, processor=processor)


def _pixels(split, processor: ViTImageProcessor) -> Pixels:
    images = [image.convert("RGB") for image in split["image"]]
    pixels = torch.cat(
        [
            processor(images[i : i + 500], return_tensors="pt")["pixel_values"].to(torch.float16)
            for i in range(0, len(images), 500)
        ]
    ).float()
    return Pixels(pixels, torch.tensor(split["label"]), torch.arange(len(images)))
