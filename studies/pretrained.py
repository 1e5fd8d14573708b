"""Networks with ImageNet weights that a study learns from or starts from."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from examples.carriers import efficientnet_lite, mobilenet_v2
from examples.carriers.fetch import cache_folder
from hf_reprot import load_student

_LITE = "efficientnet-lite"  # and a digit
_MOBILENET = "mobilenet-v2"
_IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def is_pretrained(name: str) -> bool:
    """Whether a study means a network of this module: "efficientnet-lite0" to 2 or "mobilenet-v2"."""
    return name.startswith(_LITE) or name == _MOBILENET


def trunk(name: str) -> nn.Module:
    """timm's network with ImageNet weights, in evaluation mode."""
    return (mobilenet_v2.load() if name == _MOBILENET else lite(name, 2).timm_model).eval()


def lite(name: str, classes: int) -> nn.Module:
    """EfficientNet-Lite ("efficientnet-lite0", 1 or 2) with ImageNet weights and a new head."""
    folder = cache_folder() / "study" / name
    if not folder.is_dir():
        efficientnet_lite.write(folder, number=int(name.removeprefix(_LITE)))
    return load_student(str(folder), [str(i) for i in range(classes)])


def normalised(pixels: Tensor, name: str) -> Tensor:
    """Pixels in [-1, 1] as EfficientNet-Lite takes them; MobileNetV2 was trained with ImageNet's mean and deviation."""
    if name != _MOBILENET:
        return pixels
    mean, deviation = (torch.tensor(values).view(1, 3, 1, 1) for values in _IMAGENET)
    return (pixels * 0.5 + 0.5 - mean) / deviation
