"""Pictures in folders by class, with see-through backgrounds: as data sets on white squares."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, DatasetDict, DatasetInfo, Features, Image
from PIL import Image as PILImage
from sklearn.model_selection import train_test_split

File = tuple[Path, str]  # and its class


def split(files: Sequence[File], test: int, seed: int) -> tuple[list[File], list[File]]:
    """The files for training and `test` files for testing, with equal shares of every class."""
    classes = [label for _, label in files]
    return tuple(train_test_split(files, test_size=test, stratify=classes, random_state=seed))


def labelled(
    training: Sequence[File], testing: Sequence[File], names: Sequence[str], size: int, **about: Any
) -> DatasetDict:
    """Splits "train" and "test" with columns "image" and "label".

    Args:
        training, testing: Files and their classes.
        names: Of the classes.
        size: Width and height of an image, in pixels.
        about: Further entries of `DatasetInfo`.
    """
    features = Features({"image": Image(), "label": ClassLabel(names=list(names))})
    info = DatasetInfo(features=features, **about)
    made = {}
    for split_name, files in (("train", training), ("test", testing)):
        rows = {"image": [on_white(path, size) for path, _ in files], "label": [label for _, label in files]}
        made[split_name] = Dataset.from_dict(rows, features=features, info=info, split=split_name)
    return DatasetDict(made)


def on_white(path: Path, size: int) -> PILImage.Image:
    """The whole picture in the middle of a white square of `size` pixels."""
    with PILImage.open(path) as opened:
        image = opened.convert("RGBA")
    side = max(image.size)
    square = PILImage.new("RGBA", (side, side), "white")
    square.alpha_composite(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square.convert("RGB").resize((size, size), PILImage.Resampling.BICUBIC)
