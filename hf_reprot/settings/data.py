"""Settings about the data: which columns, and what is done with images in training."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..utils.settings import setting as _setting
from .augmentation import check_augmentation


@dataclass
class DataSettings:
    """The settings of `OTTransferConfig` that are about data; it says what they mean."""

    image_column: str | None = _setting(
        None, "Column of the images; default: the one of type Image, usual names (image, img, jpg, ...) first."
    )
    label_column: str | None = _setting(
        None,
        "Column of the labels; default: the first with a usual name (label, labels, class, target, fine_label, ...) "
        "and a type of labels, or else the only one of type ClassLabel.",
    )
    augmentation: str | None = _setting(
        None,
        'Augmentation of images in training, names joined by "+": none, flip, crop, random-resized-crop, randaugment, '
        "trivialaugment, autoaugment, augmix, color-jitter, random-erasing. Default: flip on the command line, none in "
        "Python.",
    )
    mixup_alpha: float = _setting(
        0.0, "Mixup: images and labels of each batch are mixed by a weight from Beta(alpha, alpha); 0: not."
    )
    cutmix_alpha: float = _setting(
        0.0, "CutMix, likewise: boxes of images are exchanged. With mixup_alpha as well, one of both for each batch."
    )

    @property
    def mixes(self) -> bool:
        """Whether the images of a batch are mixed with one another."""
        return self.mixup_alpha > 0 or self.cutmix_alpha > 0

    def check_data_settings(self) -> None:
        """Refuses values that these settings cannot have.

        Raises:
            ValueError: such a value.
        """
        if self.augmentation is not None:
            self.augmentation = check_augmentation(self.augmentation)
        for name in ("mixup_alpha", "cutmix_alpha"):
            value = getattr(self, name)
            if not math.isfinite(value) or value < 0:
                raise ValueError(f"{name} must be a finite number at least 0, got {value}")
