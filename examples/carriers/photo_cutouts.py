"""Photos that were cut out for the drawing program Tux Paint, out of Debian's package `tuxpaint-stamps-default`.

249 colour photos in 9 classes: few images, far from ImageNet's in style (one thing on white), with classes that
ImageNet's contain. By the Tux Paint authors, GPL-2.0: look at them, train on them, but do not put them into a
repository under another licence.
"""

from __future__ import annotations

from pathlib import Path

from datasets import DatasetDict

from . import pictures
from .fetch import from_debian

FOLDERS = {
    "bird": ("animals/birds",),
    "fish": ("animals/fish",),
    "flower": ("plants/flowers",),
    "fruit": ("food/fruit",),
    "insect": ("animals/insects",),
    "mammal": ("animals/mammals", "animals/marsupials"),
    "utensil": ("household", "hobbies/music"),
    "vegetable": ("food/vegetables",),
    "vehicle": ("vehicles",),
}
# No photos of the thing itself; and mirrored copies, which would stand in both splits.
_LEFT_OUT = ("cartoon", "toys", "plastic")
_MIRRORED = "_mirror"


def load(*, test: int = 100, seed: int = 0, size: int = 256) -> DatasetDict:
    """The photos on white squares, split with equal shares of every class.

    Some things were photographed twice (two lions, three gnus), so that a few test images have a near twin in training.

    Args:
        test: Number of test images; the other ones of the 249 are the training split.
        seed: Which images go into which split.
        size: Width and height of an image, in pixels.

    Returns:
        Splits "train" and "test" with columns "image" and "label".
    """
    training, testing = split_files(test, seed)
    return pictures.labelled(
        training,
        testing,
        list(FOLDERS),
        size,
        description="Photos cut out for Tux Paint's stamps, on white",
        homepage="https://tuxpaint.org/stamps",
        license="gpl-2.0",
        dataset_name="photo-cutouts",
    )


def split_files(test: int, seed: int) -> tuple[list[pictures.File], list[pictures.File]]:
    """The files of the photos with their classes, those for training and those for testing."""
    root = from_debian("tuxpaint-stamps-default", "usr/share/tuxpaint/stamps")
    files = [(path, label) for label in FOLDERS for path in _photos(root, label)]
    return pictures.split(files, test, seed)


def _photos(root: Path, label: str) -> list[Path]:
    found = [path for folder in FOLDERS[label] for path in sorted((root / folder).rglob("*.png"))]
    return [
        path
        for path in found
        if not any(part in _LEFT_OUT for part in path.relative_to(root).parts) and _MIRRORED not in path.stem
    ]
