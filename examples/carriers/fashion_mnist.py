"""Fashion-MNIST out of Debian's package `dataset-fashion-mnist`.

28 x 28 grey images of clothes by Zalando (Xiao, Rasul, Vollgraf, 2017, arXiv 1708.07747), MIT licence.
"""

from __future__ import annotations

import gzip
import io
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, DatasetInfo, Features, Image
from PIL import Image as PILImage

from .fetch import from_debian

CLASSES = (
    "T-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
_FILES = {"train": "train", "test": "t10k"}


def load() -> DatasetDict:
    """60,000 training and 10,000 test images with columns "image" and "label"."""
    folder = from_debian("dataset-fashion-mnist", "usr/share/datasets/fashion-mnist")
    return DatasetDict({split: _split(folder, name, split) for split, name in _FILES.items()})


def _split(folder: Path, name: str, split: str) -> Dataset:
    images = _read_idx(folder / f"{name}-images-idx3-ubyte.gz")
    labels = _read_idx(folder / f"{name}-labels-idx1-ubyte.gz")
    features = Features({"image": Image(), "label": ClassLabel(names=list(CLASSES))})
    info = DatasetInfo(
        description="Fashion-MNIST",
        homepage="https://github.com/zalandoresearch/fashion-mnist",
        license="mit",
        features=features,
        dataset_name="fashion-mnist",
    )
    encoded = [{"bytes": _png(image), "path": None} for image in images]
    return Dataset.from_dict({"image": encoded, "label": labels.tolist()}, features=features, info=info, split=split)


def _read_idx(path: Path) -> np.ndarray:
    """An array of bytes in MNIST's format: two zeros, the type, the number of dimensions, the dimensions, the data."""
    content = gzip.decompress(path.read_bytes())
    dimensions = content[3]
    shape = np.frombuffer(content, dtype=">i4", count=dimensions, offset=4)
    return np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def _png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    PILImage.fromarray(image).save(buffer, "png", compress_level=1)
    return buffer.getvalue()
