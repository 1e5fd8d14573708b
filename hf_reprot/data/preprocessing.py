"""How `pixel_values` came from an image, and how to bring them from one model's convention to another's."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from transformers import BaseImageProcessor

from ..features.architecture import config_of, timm_settings
from ..utils.lazy import late_module

timm = late_module("timm")
logger = logging.getLogger(__name__)

# One-coloured images: from what a processor makes of them follows its normalisation, whatever its settings are called.
_COLOURS = {
    "black": (0, 0, 0),
    "white": (255, 255, 255),
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
}
# What the config of a model of images and texts calls the settings of the half that sees.
VISION_CONFIGS = ("vision_config", "image_config")
_TALL, _WIDE = (48, 64), (64, 48)  # (width, height)


@dataclass(frozen=True)
class Preprocessing:
    """How `pixel_values` were made: `(value - mean) / std` for every channel, with `value` in [0, 1].

    Attributes:
        mean, std: One number per channel, in the order of the channels of `pixel_values`. None where it is not known.
        size: (height, width) of every image; None where it is not known or where it follows the image.
        bgr: The channels stand in the order blue, green, red.
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    size: tuple[int, int] | None = None
    bgr: bool = False

    @property
    def channels(self) -> int | None:
        """Number of channels, where the normalisation tells."""
        return len(self.mean) if self.mean is not None else None

    @property
    def normalises(self) -> bool:
        """Whether the normalisation is known."""
        return self.mean is not None and self.std is not None

    @classmethod
    def of(cls, thing: Any) -> Preprocessing | None:
        """What an image processor does, or what a model expects; None for anything else (a tokenizer, None, ...).

        An image processor is asked by giving it one-coloured images, so that any kind of it works. A timm model
        (wrapped or not) says what it expects in its `pretrained_cfg`; of other models only the image size is known.
        """
        if thing is None or isinstance(thing, Preprocessing):
            return thing
        if isinstance(thing, BaseImageProcessor):
            return _of_processor(thing)
        if isinstance(getattr(thing, "image_processor", None), BaseImageProcessor):
            return _of_processor(thing.image_processor)
        if isinstance(thing, nn.Module):
            return _of_model(thing)
        return None

    @classmethod
    def size_of(cls, model: nn.Module) -> Preprocessing | None:
        """The image size that a model tells, and no normalisation: what it was made for is not what was done."""
        told = _of_model(model)
        return cls(size=told.size) if told is not None and told.size is not None else None


def convert_images(
    images: Tensor,
    source: Preprocessing | None,
    target: Preprocessing | None,
    *,
    size: tuple[int, int] | None = None,
    channels: int | None = None,
) -> Tensor:
    """Converts normalised images from one model's convention to another's.

    Where either normalisation is unknown, the values stay as they are. Resizing is bicubic with antialiasing and acts
    on the whole image: another aspect ratio stretches it. A value a little outside [0, 1], which bicubic resizing makes
    at edges, is kept.

    Args:
        images: (batch, channels, height, width), floating point.
        source: How `images` were made.
        target: How the result is to look.
        size: (height, width) of the result; None: as it is.
        channels: Number of channels of the result: grey images become RGB ones by repeating the channel. None: as they
            are.

    Returns:
        (batch, channels, height, width) in the type of `images`.
    """
    dtype = images.dtype
    before, after = _normalisation(source), _normalisation(target)
    if before is None or after is None or _same_normalisation(before, after):
        before = after = None  # the values stay as they are
    copies = channels if channels is not None and channels > 1 and images.shape[1] == 1 else None
    if before is not None and after is not None:
        images = images.float() * _column(before.std, images) + _column(before.mean, images)
        if before.bgr != after.bgr and copies is None:
            images = images.flip(1)
    if size is not None and tuple(images.shape[-2:]) != tuple(size):
        images = F.interpolate(images.float(), size=tuple(size), mode="bicubic", antialias=True, align_corners=False)
    if copies is not None:
        images = images.expand(-1, copies, -1, -1)
    if after is not None:
        images = (images - _column(after.mean, images)) / _column(after.std, images)
    return images.to(dtype)


def fixed_image_size(model: nn.Module) -> tuple[int, int] | None:
    """(height, width) of a model that takes, or was made for, one image size only; None for all others.

    timm models say so. Among transformers' models, those that can interpolate position embeddings on request
    (`interpolate_pos_encoding`) refuse another size, or were not trained for it, without that request.
    """
    inner = timm_module(model)
    if inner is not None:
        return _timm_fixed_size(inner)
    config = config_of(model)
    size = _image_size(config)
    names = _forward_names(model)
    # A classifier around a vision model (CLIP's) passes the request on without naming it
    fixed = "interpolate_pos_encoding" in names or not hasattr(config, "image_size")
    return size if fixed or getattr(config, "model_type", "") in _FIXED_TYPES else None


def _image_size(config: Any) -> tuple[int, int] | None:
    """(height, width) that a config states, itself or for the half that sees."""
    parts = (config, *(getattr(config, name, None) for name in VISION_CONFIGS))
    return next((size for part in parts if (size := _pair(getattr(part, "image_size", None))) is not None), None)


# Models with tables for one size only and no way to interpolate them.
_FIXED_TYPES = ("aimv2_vision_model", "levit", "pvt")


def image_channels(model: nn.Module) -> int | None:
    """Number of channels of the images that a model takes, where it tells."""
    inner = timm_module(model)
    if inner is not None:
        traits = getattr(inner, "in_chans", None)
        return traits or int((inner.pretrained_cfg.get("input_size") or (3,))[0])
    channels = getattr(config_of(model), "num_channels", None)
    return channels if isinstance(channels, int) else None


def _of_processor(processor: BaseImageProcessor) -> Preprocessing | None:
    grey = takes_grey(processor)
    names: tuple[str, ...] = ("black", "white") if grey else tuple(_COLOURS)
    try:
        colours = dict(zip(names, _process(processor, names, _TALL, grey), strict=True))
        other = _process(processor, ("black",), _WIDE, grey)
    except Exception as error:  # someone's processor, asked for something that it may not be made for
        logger.debug("%s cannot be asked for its normalisation: %s", type(processor).__name__, error)
        return None
    height, width = colours["black"].shape[-2:]
    fixed = tuple(other.shape[-2:]) == (height, width) and not makes_patches(processor)
    size = (height, width) if fixed else None
    # The middle pixel: a processor that crops may have padded the border.
    values = {name: image[:, height // 2, width // 2].double() for name, image in colours.items()}
    offset, scale = values["black"], values["white"] - values["black"]  # value = offset + scale * v, v in [0, 1]
    if (scale.abs() < 1e-12).any():
        return Preprocessing(size=size)
    bgr = False
    if not grey and len(scale) == 3:
        matrix = torch.stack([values[c] - offset for c in ("red", "green", "blue")], dim=1) / scale[:, None]
        straight, swapped = torch.eye(3, dtype=torch.float64), torch.eye(3, dtype=torch.float64).flip(0)
        bgr = torch.allclose(matrix, swapped, atol=1e-3)
        if not bgr and not torch.allclose(matrix, straight, atol=1e-3):
            return Preprocessing(size=size)  # channels are mixed: no normalisation by channel describes it
    std = 1 / scale
    mean = -offset / scale
    return Preprocessing(_rounded(mean), _rounded(std), size, bgr)


def takes_grey(processor: BaseImageProcessor) -> bool:
    """Whether an image processor is set up for images of one channel."""
    data = getattr(processor, "data_config", None)
    if isinstance(data, Mapping) and "input_size" in data:
        return data["input_size"][0] == 1
    mean = getattr(processor, "image_mean", None)
    return isinstance(mean, list | tuple) and len(mean) == 1


def makes_patches(processor: BaseImageProcessor) -> bool:
    """Whether an image processor gives patches with their grid, and no images (SigLIP2 NaFlex)."""
    return "spatial_shapes" in (getattr(processor, "model_input_names", None) or ())


def _process(processor: BaseImageProcessor, names: tuple[str, ...], size: tuple[int, int], grey: bool) -> Tensor:
    images = [Image.new("RGB", size, _COLOURS[name]).convert("L" if grey else "RGB") for name in names]
    values = processor(images, return_tensors="pt")["pixel_values"]
    if makes_patches(processor) and isinstance(values, Tensor) and values.dim() == 3:
        values = values[:, 0].unflatten(1, (-1, 3)).transpose(1, 2)[..., None]  # the pixels of the first patch
    if not isinstance(values, Tensor) or values.dim() != 4 or len(values) != len(names):
        raise ValueError("its pixel_values are not (batch, channels, height, width)")
    return values


def _of_model(model: nn.Module) -> Preprocessing | None:
    inner = timm_module(model)
    config = config_of(model)
    if inner is None:
        size = _image_size(config)
        return Preprocessing(size=size) if size is not None else None
    settings = dict(inner.pretrained_cfg)
    stated = getattr(config, "pretrained_cfg", None)  # the wrapper's config belongs to the weights
    settings |= {k: v for k, v in (stated or {}).items() if v is not None}
    data = timm.data.resolve_data_config(pretrained_cfg=settings)
    size = _timm_fixed_size(inner) or tuple(data["input_size"][-2:])
    channels = image_channels(model)
    mean, std = _fitted(data["mean"], channels), _fitted(data["std"], channels)
    return Preprocessing(mean, std, size) if mean is not None and std is not None else Preprocessing(size=size)


def timm_module(model: nn.Module) -> Any:
    """The timm module that a model is, or wraps; None for other models."""
    inner = getattr(model, "timm_model", model)
    return inner if timm_settings(inner) is not None else None


def _timm_fixed_size(inner: Any) -> tuple[int, int] | None:
    embedding = getattr(inner, "patch_embed", None)
    strict = getattr(embedding, "strict_img_size", None)
    if strict is not None:
        return _pair(getattr(embedding, "img_size", None)) if strict else None
    traits = getattr(inner, "_traits", {})  # what the model was made with; newer timm
    settings = inner.pretrained_cfg
    if not traits.get("fixed_input_size", settings.get("fixed_input_size", False)):
        return None
    return _pair(traits.get("img_size")) or _pair((settings.get("input_size") or (None,))[-2:])


class _Normalisation(NamedTuple):
    mean: tuple[float, ...]
    std: tuple[float, ...]
    bgr: bool


def _normalisation(pixels: Preprocessing | None) -> _Normalisation | None:
    """The normalisation, where it is known."""
    if pixels is None or pixels.mean is None or pixels.std is None:
        return None
    return _Normalisation(pixels.mean, pixels.std, pixels.bgr)


def _forward_names(model: nn.Module) -> tuple[str, ...]:
    return tuple(inspect.signature(model.forward).parameters)


def _same_normalisation(a: _Normalisation, b: _Normalisation) -> bool:
    def near(left: tuple[float, ...], right: tuple[float, ...]) -> bool:
        count = max(len(left), len(right))
        pairs = zip(_fitted(left, count) or (), _fitted(right, count) or (), strict=False)
        return all(abs(x - y) <= 1e-4 * abs(y) + 1e-6 for x, y in pairs)

    return a.bgr == b.bgr and near(a.mean, b.mean) and near(a.std, b.std)


def _fitted(values: Any, channels: int | None) -> tuple[float, ...] | None:
    """Values for the number of channels: a single one holds for all; None where the numbers do not fit."""
    values = tuple(float(v) for v in values)
    if channels is None or len(values) == channels:
        return values
    if len(set(values)) == 1:
        return values[:1] * channels
    return None


def _column(values: tuple[float, ...], images: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=images.device).view(1, -1, 1, 1)


def _rounded(values: Tensor) -> tuple[float, ...]:
    """Without the rounding errors of float32, so that 0.485 comes out as 0.485."""
    return tuple(float(f"{value:.6g}") + 0.0 for value in values.tolist())  # + 0.0: no minus zero


def _pair(size: Any) -> tuple[int, int] | None:
    if isinstance(size, int):
        return (size, size)
    if isinstance(size, list | tuple) and len(size) == 2 and all(isinstance(s, int) for s in size):
        return (size[0], size[1])
    return None
