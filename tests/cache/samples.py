"""Teachers, data and trainers that the tests of the cache share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Features, Image, Value
from PIL import Image as PILImage
from torch import nn
from transformers import ViTImageProcessor

from hf_reprot.cache import FeatureCache
from tests.toy_models import IMAGE, Images, resnet
from tests.training.runs import make_trainer


def processor(size: int = IMAGE, mean: float = 0.5) -> ViTImageProcessor:
    return ViTImageProcessor(size={"height": size, "width": size}, image_mean=[mean] * 3, image_std=[0.5] * 3)


def photos(count: int = 24, seed: int = 0) -> Dataset:
    """Raw colour images of noise and their labels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (count, IMAGE, IMAGE, 3), dtype=np.uint8)
    features = Features({"image": Image(), "label": Value("int64")})
    return Dataset.from_dict(
        {"image": [PILImage.fromarray(x) for x in pixels], "label": [i % 3 for i in range(count)]}, features=features
    )


def mlp(seed: int = 0) -> nn.Module:
    """A small teacher: named layers, and a head of three classes."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * IMAGE**2, 12), nn.ReLU(), nn.Linear(12, 3))


def build(folder: Path, teacher: Any = None, data: Any = None, **options: Any) -> FeatureCache:
    """A float32 cache of the stages of `resnet(seed=1)` on `Images()`, in shards of 8 rows."""
    defaults = {"layers": "stages", "dtype": "float32", "batch_size": 8, "shard_rows": 8, "progress": False}
    teacher = resnet(seed=1) if teacher is None else teacher
    return FeatureCache.build(teacher, Images() if data is None else data, folder, **{**defaults, **options})


def cached_trainer(folder: Path, cache: Any, **settings: Any):
    """A trainer that has the cache and no teacher."""
    more = settings.pop("trainer", {})
    defaults = {"teacher": [], "layer_pairs": "stages", "trainer": {"teacher_features": cache, **more}}
    return make_trainer(folder, **{**defaults, **settings})
