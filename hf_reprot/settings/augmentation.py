"""Augmentations by name."""

from __future__ import annotations

from ..utils.messages import check_choice

PLAIN = "none"
CROPS = ("crop", "random-resized-crop")
POLICIES = ("randaugment", "trivialaugment", "autoaugment", "augmix", "color-jitter")  # torchvision's
ERASING = "random-erasing"
AUGMENTATIONS = (PLAIN, "flip", *CROPS, *POLICIES, ERASING)


def check_augmentation(asked: str) -> str:
    """The names that an augmentation is made of, as they are written here.

    Args:
        asked: Names of `AUGMENTATIONS` joined by "+", such as "random-resized-crop+flip+randaugment". Case, `_` for `-`
            and "colour" do not count.

    Raises:
        ValueError: an unknown name (the nearest is named), one that stands there twice, two crops, or "none" among
            others.
    """
    names = [_plain(name) for name in str(asked).split("+")]
    for name in names:
        check_choice("augmentation", name, AUGMENTATIONS, "or several joined by '+', as in 'crop+flip'")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"augmentation {asked!r} names {twice!r} twice: once is enough")
    if PLAIN in names and len(names) > 1:
        raise ValueError(f"augmentation {asked!r} has 'none' among others: leave it out, or the others")
    if all(crop in names for crop in CROPS):
        raise ValueError(f"augmentation {asked!r} names two crops: choose 'crop' or 'random-resized-crop'")
    return "+".join(names)


def _plain(name: str) -> str:
    return name.strip().lower().replace("_", "-").replace("colour", "color")
