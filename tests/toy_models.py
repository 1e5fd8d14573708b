"""Tiny models and data for tests: random weights, fixed by a seed, fast on one core."""

from __future__ import annotations

import torch
from torch.utils.data import Dataset
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from hf_reprot.models.student import create_timm_student

IMAGE = 16


def vit(width: int = 24, labels: int = 3, *, seed: int = 0, layers: int = 2, image: int = IMAGE):
    """A transformers ViT without dropout. Its forward takes loss keywords."""
    torch.manual_seed(seed)
    config = ViTConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=2 * width,
        image_size=image,
        patch_size=4,
        num_labels=labels,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return ViTForImageClassification(config)


def resnet(labels: int = 3, *, seed: int = 0, widths: tuple[int, ...] = (8, 12)):
    """A transformers ResNet."""
    torch.manual_seed(seed)
    config = ResNetConfig(
        embedding_size=8,
        hidden_sizes=list(widths),
        depths=[1] * len(widths),
        layer_type="basic",
        num_labels=labels,
    )
    return ResNetForImageClassification(config)


def convnext(labels: int = 3, *, seed: int = 0):
    """A transformers ConvNext: no batch normalisation, and a forward that takes no loss keywords."""
    torch.manual_seed(seed)
    config = ConvNextConfig(num_stages=2, hidden_sizes=[8, 12], depths=[1, 1], patch_size=2, num_labels=labels)
    return ConvNextForImageClassification(config)


def timm_vit(labels: int = 3, *, seed: int = 0, width: int = 24):
    """A timm ViT inside transformers' wrapper, whose forward takes no loss keywords."""
    torch.manual_seed(seed)
    return create_timm_student(
        "vit_tiny_patch16_224",
        [f"class {i}" for i in range(labels)],
        pretrained_cfg={"input_size": [3, IMAGE, IMAGE]},
        img_size=IMAGE,
        patch_size=4,
        embed_dim=width,
        depth=2,
        num_heads=2,
    )


class Images(Dataset):
    """Random images whose label is their brightest colour, ready for a model."""

    def __init__(self, samples: int = 32, *, image: int = IMAGE, seed: int = 0, labelled: bool = True):
        generator = torch.Generator().manual_seed(seed)
        self.labels = torch.randint(0, 3, (samples,), generator=generator)
        self.pixels = torch.randn(samples, 3, image, image, generator=generator)
        self.pixels[torch.arange(samples), self.labels] += 0.7
        self.labelled = labelled

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        row = {"pixel_values": self.pixels[index]}
        return row | {"labels": self.labels[index]} if self.labelled else row


def batch(samples: int = 8, **kwargs) -> dict[str, torch.Tensor]:
    """The first images of `Images` in one batch."""
    data = Images(samples, **kwargs)
    return torch.utils.data.default_collate([data[i] for i in range(samples)])
