"""Teachers of images: the vision side of a model of images and texts, inputs that are patches, another image size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import BaseImageProcessor, PreTrainedConfig, PreTrainedModel

from ..data.preprocessing import VISION_CONFIGS, fixed_image_size, timm_module
from ..features.architecture import config_of
from .modules import class_name, names_of

_GRID = "spatial_shapes"
_INTERPOLATE = "interpolate_pos_encoding"


def vision_config(config: Any) -> PreTrainedConfig | None:
    """The settings of the half that sees, of a model of images and texts (CLIP, SigLIP); None of any other model."""
    found = (getattr(config, name, None) for name in VISION_CONFIGS)
    return next((part for part in found if isinstance(part, PreTrainedConfig)), None)


def vision_side(model: nn.Module) -> nn.Module:
    """The vision model inside a whole model of images and texts; any other model as it is.

    Raises:
        ValueError: a model of images and texts whose vision model is not to be found.
    """
    if not isinstance(model, PreTrainedModel) or not {"input_ids", "pixel_values"} <= set(names_of(model)):
        return model
    settings = vision_config(config_of(model))
    if settings is None:
        return model
    for part in model.modules():
        if isinstance(part, PreTrainedModel) and part is not model and isinstance(part.config, type(settings)):
            return part
    raise ValueError(
        f"{class_name(model)} reads images and texts, and its vision model was not found: pass that module as teacher"
    )


def check_images(model: nn.Module, columns: Mapping[str, Any], title: str) -> None:
    """Refuses a batch of texts for a model of transformers or timm that takes images.

    Raises:
        ValueError: it names the columns of the batch.
    """
    sees = getattr(model, "main_input_name", None) == "pixel_values" or timm_module(model) is not None
    if sees and "input_ids" in columns and not {"pixel_values", "input_ids"} & set(names_of(model)) & set(columns):
        raise ValueError(
            f"the teacher {title} sees images, and the batch has none: it has {', '.join(columns)}. Give a teacher of "
            "texts, or the images in a column teacher_pixel_values"
        )


def takes_patches(model: nn.Module) -> bool:
    """Whether a model takes images as patches with their grid (SigLIP2 NaFlex)."""
    return _GRID in names_of(model)


class Patches:
    """Makes the patches that a NaFlex model takes, with the model's own image processor.

    Args:
        model: The model.
        processor: Its image processor; None: transformers' for this family, with the model's patches and their number.
    """

    def __init__(self, model: nn.Module, processor: BaseImageProcessor | None = None):
        config = config_of(model)
        if processor is None:
            kind = transformers.Siglip2ImageProcessor  # imported when it is used
            processor = kind(patch_size=config.patch_size, max_num_patches=config.num_patches)
        self.processor: Any = processor
        self.side = int(config.patch_size)
        self.count = int(getattr(processor, "max_num_patches", config.num_patches))

    def __call__(self, images: Tensor, *, normalise: bool) -> dict[str, Tensor]:
        """Patches, their mask and their grid.

        Args:
            images: (n, channels, height, width), with values in [0, 1] where they are to be normalised.
            normalise: Whether they are.

        Returns:
            `pixel_values` (n, patches, channels * side * side), `pixel_attention_mask` (n, patches) and
            `spatial_shapes` (n, 2), without padding: all images of a batch have one size.
        """
        if images.shape[1] == 1:
            images = images.expand(-1, 3, -1, -1)
        options: dict[str, Any] = {"do_rescale": False, "return_tensors": "pt", "max_num_patches": self.count}
        options |= {} if normalise else {"do_normalize": False}
        made = self.processor(images=list(images.float()), **options)
        height, width = made[_GRID][0].tolist()
        found = {name: made[name] for name in ("pixel_values", "pixel_attention_mask")}
        found = {name: value[:, : height * width] for name, value in found.items()} | {_GRID: made[_GRID]}
        return {name: value.to(images.device) for name, value in found.items()}


def accept_image_size(model: nn.Module, size: tuple[int, int], title: str) -> dict[str, Any]:
    """Lets a model take images of another size than its own: position embeddings are interpolated.

    A timm model whose size is fixed is changed in place (`set_input_size`); one of transformers is asked at each call.

    Args:
        model: The model.
        size: (height, width).
        title: What a message calls it.

    Returns:
        What its `forward` needs beside the images.

    Raises:
        ValueError: the model cannot, or the size is no multiple of its patches.
    """
    refusal = f"the teacher {title} cannot see images of {_words(size)} pixels: "
    if min(size) < 1:
        raise ValueError(f"{refusal}a size is above 0")
    if "input_ids" in names_of(model):
        raise ValueError(f"{refusal}it reads text")
    side = _patch_side(model)
    if side is not None and any(length % side for length in size):
        near = sorted({side * max(1, n) for length in size for n in (length // side, -(-length // side))})
        raise ValueError(
            f"{refusal}its patches have {side} x {side}. The next sizes are {' and '.join(map(str, near))}"
        )
    own = fixed_image_size(model)
    if own is None or own == size:
        return {}
    if _INTERPOLATE in names_of(model) or vision_config(config_of(model)) is not None:
        return {_INTERPOLATE: True}
    inner = timm_module(model)
    if inner is None or not hasattr(inner, "set_input_size"):
        raise ValueError(f"{refusal}{class_name(model)} takes {_words(own)} only")
    try:
        inner.set_input_size(img_size=size)
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{refusal}{reason} ({class_name(inner)} of timm, made for {_words(own)})") from error
    model.requires_grad_(False)  # it makes new position embeddings
    return {}


def _patch_side(model: nn.Module) -> int | None:
    inner = timm_module(model)
    if inner is not None:
        side: Any = getattr(getattr(inner, "patch_embed", None), "patch_size", None)
    else:
        side = getattr(config_of(model), "patch_size", None)
    side = side[0] if isinstance(side, list | tuple) and side else side
    return side if isinstance(side, int) and side > 0 else None


def _words(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


class Parking:
    """A frozen model that lies on the CPU and comes to a device only while it runs.

    Its weights never change, so that nothing is copied back.

    Args:
        model: The model; it is brought to the CPU.
        device: Where it runs.
    """

    def __init__(self, model: nn.Module, device: torch.device):
        self.model, self.device = model.to("cpu"), device
        if device.type == "cuda":
            for held in self._tensors():
                held.data = held.data.pin_memory()

    def _tensors(self) -> list[Tensor]:
        return [*self.model.parameters(), *self.model.buffers()]

    def __enter__(self) -> None:
        self._home = [(held, held.data) for held in self._tensors()]
        for held, home in self._home:
            held.data = home.to(self.device, non_blocking=True, copy=True)

    def __exit__(self, *_: object) -> None:
        for held, home in self._home:
            held.data = home


def without_padding(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Patches that a user prepared, without what pads all of them alike."""
    mask = inputs.get("pixel_attention_mask")
    if not isinstance(mask, Tensor) or mask.dim() != 2 or _GRID not in inputs:
        return dict(inputs)
    longest = max(int(mask.sum(1).max()), 1)
    cut = {name: inputs[name][:, :longest] for name in ("pixel_values", "pixel_attention_mask")}
    return {**inputs, **cut}
