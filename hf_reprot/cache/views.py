"""The exact views of an example that a cache holds: no augmentation, or a reproducible one."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

PLAIN = "none"


@dataclass
class View:
    """How the rows of a part of a cache were augmented.

    Attributes:
        augmentation: "none", or the collator's augmentation.
        epoch, seed: What the augmentation of each image followed from.
        mirrored: With "flip" cached for all epochs: whether this view is the mirrored one.
    """

    augmentation: str = PLAIN
    epoch: int | None = None
    seed: int | None = None
    mirrored: bool | None = None

    def __str__(self) -> str:
        if self.augmentation == PLAIN:
            return "no augmentation"
        if self.mirrored is not None:
            return f"{self.augmentation}, {'mirrored' if self.mirrored else 'not mirrored'}"
        return f"{self.augmentation}, epoch {self.epoch}, seed {self.seed}"


def views_of(collator: Any, epochs: int | str | None, seed: int) -> list[View]:
    """The views that a build makes of every example.

    Args:
        collator: What makes batches; one with an `augmentation` must also have `set_epoch`.
        epochs: How many epochs' views; "all": both views of the augmentation "flip"; None: one view without
            augmentation, both of "flip".
        seed: The seed of the training run.

    Raises:
        ValueError: an augmentation that cannot be made again, or without end, or a number of epochs that is none.
    """
    augmentation = getattr(collator, "augmentation", PLAIN)
    if augmentation == PLAIN:
        return [View()]
    if not hasattr(collator, "set_epoch"):
        raise ValueError(
            f"augmentation {augmentation!r} of {type(collator).__name__} follows from nothing that can be repeated (it "
            "has no set_epoch): cache without augmentation"
        )
    if epochs is None or epochs == "all":
        if augmentation == "flip":
            return [View("flip", mirrored=False), View("flip", mirrored=True)]
        raise ValueError(
            f"augmentation {augmentation!r} makes another view in every epoch: say how many epochs to cache "
            "(epochs=3), or cache without augmentation"
        )
    if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1:
        raise ValueError(f'epochs must be a whole number above 0, "all" or None, got {epochs!r}')
    return [View(augmentation, epoch, seed) for epoch in range(epochs)]


class ViewCollator:
    """A collator held at one view.

    Args:
        collator: What makes batches out of rows.
        view: The view.
    """

    def __init__(self, collator: Any, view: View):
        self.view = view
        self.collate: Any = collator
        if view.mirrored is not None:
            self.collate = collator.for_evaluation()
        elif view.epoch is not None:
            self.collate = copy.deepcopy(collator)  # the trainer's own goes on from where it is
            self.collate.set_epoch(view.epoch, seed=view.seed)

    def __call__(self, rows: Sequence[Any]) -> dict[str, Any]:
        batch = dict(self.collate(rows))
        if self.view.mirrored:
            batch["pixel_values"] = batch["pixel_values"].flip(-1)
        return batch
