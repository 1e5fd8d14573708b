"""Features of a frozen EfficientNet-Lite0 (ImageNet weights) on Fashion-MNIST, for the examples on feature replay."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForImageClassification

from examples.carriers import efficientnet_lite, fashion_mnist

SIDE, ROWS = 64, {"train": 6000, "test": 3000}


def backbone() -> nn.Module:
    """Images (n, 1, 28, 28) between 0 and 1 to features (n, 1280)."""
    with tempfile.TemporaryDirectory() as folder:
        efficientnet_lite.write(folder, number=0)
        return Backbone(AutoModelForImageClassification.from_pretrained(folder).timm_model)


class Backbone(nn.Module):
    """Frozen, and in evaluation mode whatever a Trainer says."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Backbone:
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        scaled = F.interpolate(images, (SIDE, SIDE), mode="bilinear").expand(-1, 3, -1, -1)
        maps = self.network.forward_features((scaled - 0.5) / 0.5)
        return self.network.forward_head(maps, pre_logits=True)


class Student(nn.Module):
    """A linear head for ten classes on a network, of features divided by `scale`."""

    def __init__(self, network: nn.Module, scale: float):
        super().__init__()
        self.network, self.scale, self.classifier = network, scale, nn.Linear(1280, 10)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.classifier(self.network(x) / self.scale)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


def rows(items: Sequence[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """The collator of a `TensorDataset` for a `Student`."""
    x, labels = zip(*items, strict=True)
    return {"x": torch.stack(x), "labels": torch.stack(labels)}


def images(part: str) -> tuple[Tensor, Tensor]:
    """(n, 1, 28, 28) between 0 and 1, and (n,) labels."""
    chosen = fashion_mnist.load()[part].shuffle(seed=0).select(range(ROWS[part]))
    pixels = torch.stack([torch.from_numpy(np.array(image)) for image in chosen["image"]])
    return pixels[:, None].float() / 255, torch.tensor(chosen["label"])


def fashion_features(cache: Path) -> dict[str, Tensor]:
    """ "train", "train_labels", "test", "test_labels"; computed where the cache does not hold them."""
    if not cache.is_file():
        network, found = backbone(), {}
        for part in ROWS:
            pixels, found[f"{part}_labels"] = images(part)
            batches = track(pixels.split(100), description=f"Features, {part}")
            found[part] = torch.cat([network(batch) for batch in batches])
        save_file(found, cache)
    return load_file(cache)


def split(data: dict[str, Tensor], seed: int, sizes: tuple[int, int, int]) -> list[tuple[Tensor, Tensor]]:
    """Training, validation (both of the training images) and test: features and labels of rows drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    train, test = (torch.randperm(len(data[part]), generator=generator) for part in ("train", "test"))
    parts = [("train", train[: sizes[0]]), ("train", train[sizes[0] : sum(sizes[:2])]), ("test", test[: sizes[2]])]
    return [(data[part][own], data[f"{part}_labels"][own]) for part, own in parts]
