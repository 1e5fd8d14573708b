"""What happens to images in training before a model sees them: torchvision's transforms by name, or any callable."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image as PILImage
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF
from transformers import BaseImageProcessor

from ..settings.augmentation import ERASING, PLAIN, check_augmentation
from .images import random_crop
from .preprocessing import Preprocessing, convert_images

# With torchvision's own defaults where it has any; the jitter is timm's.
_POLICIES: dict[str, Callable[[], Any]] = {
    "randaugment": v2.RandAugment,
    "trivialaugment": v2.TrivialAugmentWide,
    "autoaugment": v2.AutoAugment,
    "augmix": v2.AugMix,
    "color-jitter": lambda: v2.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4),
}
_RAW = Preprocessing(mean=(0.0,), std=(1.0,))  # values in [0, 1]


class Augmentation:
    """An augmentation, ready to be called; what it draws is drawn from generators that its caller sets.

    Args:
        asked: As `check_augmentation` takes it; or a callable of one image (a transform of torchvision, say), which
            gets a PIL image. What it gives may be a PIL image or a tensor of bytes (channels, height, width), which go
            through the processor, or a tensor of floats, which is taken for the model's `pixel_values` as it is.
        processor: The student's image processor.

    Attributes:
        name: The names, joined by "+"; of a callable, how it shows itself.
        crops, flips: Whether a part of half the area or more is cut out first; whether images are mirrored last.

    Raises:
        ValueError: as `check_augmentation`; "random-resized-crop" for a processor whose images have no fixed size.
        TypeError: neither names nor a callable.
    """

    def __init__(self, asked: str | Callable[[Any], Any], processor: BaseImageProcessor):
        self.crops = self.flips = False
        self._final: Preprocessing | None = None
        self._policy: Callable[[Any], Any] | None = None
        self._erasing: Any = None
        if callable(asked):
            self.name, self._policy = _title(asked), asked
            return
        if not isinstance(asked, str):
            raise TypeError(f"augmentation must be names or a callable of one image, got {type(asked).__name__}")
        self.name = check_augmentation(asked)
        names = self.name.split("+")
        self.crops, self.flips = "crop" in names, "flip" in names
        steps = [_POLICIES[name]() for name in names if name in _POLICIES]
        if "random-resized-crop" in names:
            self._final = _fixed_size(processor)
            steps.insert(0, v2.RandomResizedCrop(self._final.size, interpolation=v2.InterpolationMode.BICUBIC))
        if steps:
            self._policy = v2.Compose(steps)
        if ERASING in names:
            self._erasing = v2.RandomErasing()

    @property
    def changes(self) -> bool:
        """Whether anything happens at all."""
        return self.name != PLAIN

    @property
    def draws(self) -> bool:
        """Whether `image` does anything."""
        return self._policy is not None

    @property
    def erases(self) -> bool:
        """Whether parts of `pixel_values` are set to the mean."""
        return self._erasing is not None

    def crop(self, images: Sequence[PILImage.Image], generators: Sequence[torch.Generator | None]) -> list[Any]:
        """A random part of each image, where that is asked for."""
        if not self.crops:
            return list(images)
        return [random_crop(image, generator) for image, generator in zip(images, generators, strict=True)]

    def image(self, image: PILImage.Image) -> Any:
        """What an image becomes before the processor."""
        if self._policy is None:
            return image
        found = self._policy(image)
        if not isinstance(found, PILImage.Image | Tensor):
            raise ValueError(
                f"the augmentation {self.name} gives {type(found).__name__} of an image: legal is a PIL image or a "
                "tensor (channels, height, width)"
            )
        return found

    def pixels(self, images: Sequence[Any], process: Callable[[Sequence[Any]], Tensor]) -> Tensor:
        """(batch, channels, height, width) of what `image` gave.

        Args:
            images: The images.
            process: What the processor makes of images.
        """
        if any(isinstance(image, Tensor) and image.is_floating_point() for image in images):
            shapes = {tuple(image.shape) if isinstance(image, Tensor) else "a PIL image" for image in images}
            if len(shapes) > 1:
                raise ValueError(
                    f"the augmentation {self.name} gives images of several kinds: "
                    f"{', '.join(sorted(map(str, shapes)))}. Tensors of floats are pixel_values as they are, "
                    "of one shape"
                )
            return torch.stack(list(images))
        if self._final is None or not self._final.normalises:
            return process(images)
        # They have their final size: resizing and cropping again would only lose pixels.
        raw = torch.stack([TF.pil_to_tensor(image) for image in images]).float() / 255
        return convert_images(raw, _RAW, self._final)

    def erase(self, pixels: Tensor) -> Tensor:
        """A rectangle of one image's `pixel_values` set to the mean, half of the time."""
        return self._erasing(pixels)


def _fixed_size(processor: BaseImageProcessor) -> Preprocessing:
    known = Preprocessing.of(processor)
    if known is None or known.size is None:
        raise ValueError(
            f"augmentation 'random-resized-crop' needs a processor that makes images of one size, and "
            f"{type(processor).__name__} does not: set augmentation='crop', or a fixed size in the processor"
        )
    return known


def _title(transform: Callable[[Any], Any]) -> str:
    """How a callable shows itself, without its place in memory."""
    shown = " ".join(repr(transform).split())
    if " at 0x" not in shown:
        return shown
    return getattr(transform, "__qualname__", type(transform).__qualname__)
