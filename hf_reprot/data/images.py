"""Images of any kind, as data sets give them, into what an image processor takes."""

from __future__ import annotations

import io
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

# Formats of pixels: a file of another format, whatever its ending, is never opened (PIL runs Ghostscript for EPS).
RASTER = ("BMP", "DIB", "GIF", "JPEG", "MPO", "PNG", "PPM", "TIFF", "WEBP", "AVIF", "JPEG2000", "TGA", "ICO")
_CROP_AREA, _CROP_SHAPE = 0.5, 4 / 3  # the least share of the area; the greatest change of width by height


def open_image(value: Any, mode: str = "RGB") -> Image.Image:
    """Any image as one of 8 bits a channel in `mode` ("RGB" or "L").

    Transparent images are laid on white. Images of 16 bits keep their 8 highest. Of images of floats, the range is
    taken as [0, 1] where nothing lies above 1, else as [0, 255].

    Args:
        value: A PIL image; an encoded image as `datasets` keeps it ({"bytes", "path"}) or its bytes; an array or tensor
            (height, width), (height, width, channels) or (channels, height, width).
        mode: The mode of the result.

    Raises:
        ValueError: not an image, or one that cannot be decoded.
    """
    if isinstance(value, Mapping | bytes):
        try:
            value = _decoded(value)
        except Exception as error:  # truncated, damaged, gone, not an image, too large
            raise ValueError(f"cannot be decoded ({type(error).__name__}: {' '.join(str(error).split())})") from error
    if isinstance(value, torch.Tensor | np.ndarray):
        value = _from_array(np.asarray(value))
    if not isinstance(value, Image.Image):
        raise ValueError(f"is no image but {type(value).__name__}")
    try:
        return _eight_bits(value).convert(mode)
    except OSError as error:  # PIL decodes late
        raise ValueError(f"cannot be decoded ({' '.join(str(error).split())})") from error


def random_crop(image: Image.Image, generator: torch.Generator | None = None) -> Image.Image:
    """A random part of an image: half of its area or more, its sides' ratio changed by 4:3 at most.

    Args:
        image: The image.
        generator: What to draw from; None: torch's own.
    """
    area, shape, left, top = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
    area = _CROP_AREA + (1 - _CROP_AREA) * area
    shape = _CROP_SHAPE ** (2 * shape - 1)
    width = max(1, round(image.width * min(1.0, (area * shape) ** 0.5)))
    height = max(1, round(image.height * min(1.0, (area / shape) ** 0.5)))
    left, top = round(left * (image.width - width)), round(top * (image.height - height))
    return image.crop((left, top, left + width, top + height))


def fingerprint(image: Image.Image) -> int:
    """A number that follows from the pixels."""
    return zlib.crc32(image.tobytes()) ^ (image.width << 32) ^ (image.height << 48)


def raster_endings() -> set[str]:
    """The endings of files that are taken for images, such as ".png"."""
    Image.init()
    return {ending for ending, kind in Image.registered_extensions().items() if kind in RASTER}


def _decoded(value: Mapping[str, Any] | bytes) -> Image.Image:
    """An encoded image, turned as its camera says."""
    stored: Mapping[str, Any] = {"bytes": value} if isinstance(value, bytes) else value
    data = stored.get("bytes")
    if data is None:
        path = stored.get("path")
        if path is None:
            raise ValueError("neither bytes nor a path")
        from datasets.utils.file_utils import xopen

        with xopen(str(path), "rb") as file:  # a local file, or one of the Hub in a stream
            data = file.read()
    Image.init()
    image = Image.open(io.BytesIO(data), formats=[kind for kind in RASTER if kind in Image.OPEN])
    image.load()
    return ImageOps.exif_transpose(image)


def _eight_bits(image: Image.Image) -> Image.Image:
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if image.mode.startswith("I"):  # I;16 and its kin; PIL opens 16-bit files as I, too
        return Image.fromarray(np.clip(np.asarray(image).astype(np.int64) // 256, 0, 255).astype(np.uint8))
    if image.mode == "F":
        return _from_array(np.asarray(image))
    return image


def _from_array(array: np.ndarray) -> Image.Image:
    if array.ndim == 3 and array.shape[0] in (1, 3, 4) and array.shape[-1] not in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] not in (3, 4)) or 0 in array.shape:
        raise ValueError(f"is no image but an array of shape {tuple(array.shape)}")
    if array.dtype == np.bool_:
        array = array * np.uint8(255)
    elif array.dtype == np.uint16:
        array = array // 256
    elif np.issubdtype(array.dtype, np.floating):
        if not np.isfinite(array).all():
            raise ValueError("is no image: it holds values that are not finite")
        array = np.round(array * 255 if array.max() <= 1 else array)
    return Image.fromarray(np.clip(array, 0, 255).astype(np.uint8))
