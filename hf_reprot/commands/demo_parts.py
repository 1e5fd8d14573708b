"""What the demo trains: digits, a teacher, and two students."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sklearn.model_selection import train_test_split
from torch.utils.data import Dataset
from transformers import (
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

IMAGE = 16
CLASSES = 10


class Pixels(Dataset):
    """Images that went through the processor once, since no run changes them.

    Args:
        split: Rows with "image" and "label".
    """

    def __init__(self, split: Any):
        self.pixels = processor()([image.convert("RGB") for image in split["image"]], return_tensors="pt")
        self.labels = torch.tensor(split["label"])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"pixel_values": self.pixels["pixel_values"][index], "labels": self.labels[index]}


def processor() -> ViTImageProcessor:
    """What makes an image of 16 pixels and three channels of a digit."""
    return ViTImageProcessor(size={"height": IMAGE, "width": IMAGE}, image_mean=[0.5] * 3, image_std=[0.5] * 3)


def new_teacher() -> ResNetForImageClassification:
    """A residual network with two stages; its last map has 2 x 2 positions of 96 neurons."""
    return _resnet(0, 48, 96)


def narrow_cnn(seed: int) -> ResNetForImageClassification:
    """A student of the teacher's family: the same with a third of the width."""
    return _resnet(seed, 16, 32)


def small_vit(seed: int) -> ViTForImageClassification:
    """A student of another family: two blocks of 48 neurons, 16 patches."""
    torch.manual_seed(seed)
    return ViTForImageClassification(
        ViTConfig(
            hidden_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=96,
            image_size=IMAGE,
            patch_size=4,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            **_names(range(CLASSES)),
        )
    )


def balanced_rows(labels: torch.Tensor, count: int, seed: int) -> list[int]:
    """Numbers of `count` images, with equal shares of every class."""
    rows, _ = train_test_split(np.arange(len(labels)), train_size=count, stratify=labels.numpy(), random_state=seed)
    return rows.tolist()


def _resnet(seed: int, *widths: int) -> ResNetForImageClassification:
    torch.manual_seed(seed)
    return ResNetForImageClassification(
        ResNetConfig(
            embedding_size=widths[0],
            hidden_sizes=list(widths),
            depths=[1] * len(widths),
            layer_type="basic",
            **_names(range(CLASSES)),
        )
    )


def _names(classes: Sequence[int]) -> dict[str, Any]:
    return {"id2label": {i: str(i) for i in classes}, "label2id": {str(i): i for i in classes}}
