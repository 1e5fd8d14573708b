"""The embedded data set: handwritten digits that come with scikit-learn, as images."""

from __future__ import annotations

import numpy as np
from PIL import Image as PILImage

from .hub_datasets import ClassLabel, Dataset, DatasetDict, DatasetInfo, Features, Image, Split

NAME = "digits"
_CITATION = """@misc{alpaydin1998optical,
  title = {Optical Recognition of Handwritten Digits},
  author = {Alpaydin, E. and Kaynak, C.},
  year = {1998},
  howpublished = {UCI Machine Learning Repository},
  doi = {10.24432/C50P49}
}"""


def load_digits_dataset(seed: int = 0, *, validation: int = 300, test: int = 300) -> DatasetDict:
    """1,797 handwritten digits, 8 x 8 grey pixels; nothing is downloaded.

    The test part of the UCI data set "Optical Recognition of Handwritten Digits", as scikit-learn carries it. The
    splits are drawn with equal shares of every digit.

    Args:
        seed: Which images go into which split.
        validation, test: Number of images in these splits, at least 10 each; the others are the training split.

    Returns:
        Splits "train", "validation" and "test" with columns "image" and "label".

    Raises:
        ValueError: sizes that leave nothing to train on.
    """
    # not before someone wants the digits: scikit-learn takes as long to import as torch
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    count = len(digits.target)
    if validation < 10 or test < 10 or validation + test > count - 10:
        raise ValueError(
            f"validation={validation} and test={test} must be 10 or more, and leave 10 of {count} to train on"
        )
    rest, testing = train_test_split(np.arange(count), test_size=test, stratify=digits.target, random_state=seed)
    training, validating = train_test_split(rest, test_size=validation, stratify=digits.target[rest], random_state=seed)
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)  # 0..16: how many of 4 x 4 dots are black
    features = Features({"image": Image(), "label": ClassLabel(names=[str(digit) for digit in range(10)])})
    splits = {Split.TRAIN: training, Split.VALIDATION: validating, Split.TEST: testing}
    return DatasetDict(
        {
            str(split): Dataset.from_dict(
                {"image": [PILImage.fromarray(pixels[i]) for i in rows], "label": digits.target[rows].tolist()},
                features=features,
                info=_info(features),
                split=split,
            )
            for split, rows in splits.items()
        }
    )


def _info(features: Features) -> DatasetInfo:
    return DatasetInfo(
        description="Optical Recognition of Handwritten Digits (UCI), as carried by scikit-learn.",
        citation=_CITATION,
        homepage="https://archive.ics.uci.edu/dataset/80",
        license="cc-by-4.0",
        features=features,
        dataset_name=NAME,
    )
