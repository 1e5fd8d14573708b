"""Drawings of the Open Clip Art Library, out of Debian's package `openclipart-png`.

The 775 different ones in 12 of its folders, as classes: line drawings, cartoons, icons and silhouettes, far from
ImageNet's photos. By many hands, each dedicated to the public domain by who drew it. Some come in series (the same shoe
in two colours), so that a test image may have a near twin in training; equal files are taken once.
"""

from __future__ import annotations

import hashlib

from datasets import DatasetDict

from . import pictures
from .fetch import from_debian

FOLDERS = {
    "mammal": "animals/mammals",
    "bird": "animals/birds",
    "bug": "animals/bugs",
    "fruit": "food/fruit",
    "dessert": "food/desserts",
    "beverage": "food/beverages",
    "computer": "computer/hardware",
    "vehicle": "transportation/vehicles",
    "music": "recreation/music",
    "clothing": "people/clothing",
    "sport": "recreation/sports",
    "home": "buildings/homes",
}


def load(*, test: int = 250, seed: int = 0, size: int = 256) -> DatasetDict:
    """The drawings on white squares, split with equal shares of every class.

    Args:
        test: Number of test images; the other ones are the training split.
        seed: Which images go into which split.
        size: Width and height of an image, in pixels.

    Returns:
        Splits "train" and "test" with columns "image" and "label".

    Raises:
        CarrierError: the package cannot be had.
    """
    return pictures.labelled(
        *pictures.split(files(), test, seed),
        list(FOLDERS),
        size,
        description="Drawings of the Open Clip Art Library, on white",
        homepage="https://openclipart.org",
        license="cc0-1.0",
        dataset_name="clipart",
    )


def files() -> list[pictures.File]:
    """The files with their classes; of equal ones the first."""
    root = from_debian("openclipart-png", "usr/share/openclipart/png")
    found: dict[str, pictures.File] = {}
    for label, folder in FOLDERS.items():
        for path in sorted((root / folder).rglob("*.png")):
            found.setdefault(hashlib.sha256(path.read_bytes()).hexdigest(), (path, label))
    return list(found.values())
