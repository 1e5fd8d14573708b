"""Images, texts and labels as model inputs: loading, normalising, augmenting, collating; the embedded digits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..utils.lazy import lazy_names

if TYPE_CHECKING:
    from .collator import ImageCollator
    from .datasets import load_image_dataset

__all__ = ["ImageCollator", "load_image_dataset"]

__getattr__, __dir__ = lazy_names(__name__, {"ImageCollator": "collator", "load_image_dataset": "datasets"})
