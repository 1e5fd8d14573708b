"""Mixup and CutMix: batches whose images, and their labels, are mixed with one another."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import v2

from .columns import TEACHER_PREFIX
from .seeding import ReadingSeeds

# (batch, classes) how much of each class a mixed image has; in the place of the labels.
MIXED = "mixed_labels"
IGNORED = -100


class MixingCollator:
    """Makes the batches of another collator, mixed by torchvision's `MixUp`, `CutMix` or, at random, one of the two.

    What is drawn follows from the run's seed, the epoch and the images of the batch alone, so that a resumed run sees
    the same.

    Args:
        collator: Makes batches with `pixel_values` (batch, channels, height, width).
        mixup_alpha, cutmix_alpha: Parameters of Beta(alpha, alpha); 0: that one is not used.
        seeds: Of the run.
        classes: Number of the student's classes; None where labels take no part, and stay as they are.
        label_names: Columns of the labels.

    Returns (when called with rows):
        The batch. Labels that are classes leave it for `mixed_labels` (batch, classes), the shares of the classes in
        each image; a row of a sample without a label (-100) adds nothing to them. Labels of several yes or no
        (batch, classes) are mixed where they stand.

    Raises:
        ValueError: (when called) `pixel_values` of another shape, labels that cannot be mixed, or images of teachers in
            columns of their own.
    """

    def __init__(
        self,
        collator: Callable[[Sequence[Any]], Any],
        mixup_alpha: float,
        cutmix_alpha: float,
        seeds: ReadingSeeds,
        classes: int | None = None,
        label_names: Sequence[str] = ("labels",),
    ):
        self.collator, self.seeds, self.classes, self.label_names = collator, seeds, classes, tuple(label_names)
        kinds = ((v2.MixUp, mixup_alpha), (v2.CutMix, cutmix_alpha))
        transforms = [kind(alpha=alpha) for kind, alpha in kinds if alpha > 0]
        self.mix = transforms[0] if len(transforms) == 1 else v2.RandomChoice(transforms)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "collator" not in self.__dict__:  # while it is unpickled
            raise AttributeError(name)
        return getattr(self.collator, name)

    def __call__(self, rows: Sequence[Any]) -> dict[str, Any]:
        batch = dict(self.collator(rows))
        pixels = batch.get("pixel_values")
        if not isinstance(pixels, Tensor) or pixels.dim() != 4:
            shape = f" of shape {tuple(pixels.shape)}" if isinstance(pixels, Tensor) else ""
            raise ValueError(
                "mixup_alpha and cutmix_alpha mix pixel_values (batch, channels, height, width), and the batch has "
                f"{'them' + shape if shape else 'none: ' + ', '.join(batch)}. Set both to 0"
            )
        others = [name for name in batch if name.startswith(TEACHER_PREFIX) and "pixel" in name]
        if others:
            raise ValueError(
                f"mixup_alpha and cutmix_alpha mix the student's images, and the teacher's in the column {others[0]} "
                "would stay as they are: leave that column out, or set both to 0"
            )
        name = next((n for n in self.label_names if isinstance(batch.get(n), Tensor)), None)
        with self.seeds.drawing("mixed", _checksum(pixels)):
            if self.classes is None or name is None:
                batch["pixel_values"], _ = self.mix(pixels, pixels.new_zeros(len(pixels), 1))
                return batch
            several = batch[name].is_floating_point()
            batch["pixel_values"], mixed = self.mix(pixels, self._shares(batch.pop(name)))
        batch[name if several else MIXED] = mixed
        return batch

    def _shares(self, labels: Tensor) -> Tensor:
        """(batch, classes) 1 for each class that a sample has."""
        if labels.is_floating_point() and labels.dim() == 2:
            return labels
        if labels.dim() != 1 or labels.is_floating_point():
            raise ValueError(
                "mixup_alpha and cutmix_alpha mix classes, and the labels are "
                f"{str(labels.dtype).removeprefix('torch.')} {tuple(labels.shape)}: legal is one class number a sample "
                "(batch,), or one yes or no a class (batch, classes). Set both to 0"
            )
        known = labels != IGNORED
        return F.one_hot(labels.where(known, 0).long(), self.classes or 0).float() * known[:, None]


def mixed_cross_entropy(logits: Tensor, shares: Tensor, smoothing: float = 0.0) -> Tensor:
    """() Cross-entropy of classes in shares: the mean over the labelled samples, each as much as it is labelled.

    With every row of one class, and with label smoothing, it is `torch.nn.functional.cross_entropy`.

    Args:
        logits: (batch, classes).
        shares: (batch, classes), 0 or more; a row's sum is 1, less where samples without a label were mixed in.
        smoothing: Share of each label that is spread evenly over all classes.
    """
    shares = shares.float()
    labelled = shares.sum(-1, keepdim=True)
    targets = (1 - smoothing) * shares + smoothing * labelled / shares.shape[-1]
    loss = -(targets * F.log_softmax(logits.float(), -1)).sum()
    return loss / labelled.sum().clamp_min(torch.finfo(torch.float32).tiny)


def counted_labels(batches: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]] | None:
    """Class numbers in the place of mixed labels, to be counted; None for batches without."""
    if not any(MIXED in batch for batch in batches):
        return None
    return [{"labels": torch.where(b[MIXED].sum(-1) > 0, 0, IGNORED)} if MIXED in b else {} for b in batches]


def _checksum(pixels: Tensor) -> int:
    return zlib.crc32(pixels.detach().contiguous().view(torch.uint8).numpy().data)
