"""Mean intersection over union of a segmentation, summed up batch by batch: masks are never kept."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import EvalPrediction

__all__ = ["MeanIoU", "confusion"]


def confusion(logits: Any, labels: Tensor, classes: int, ignored: int = 255) -> Tensor:
    """(batch, classes, classes) how many pixels of each class (rows) were taken for each class (columns).

    Args:
        logits: (batch, classes, h, w), or a tuple that begins with them; brought to the size of the labels (bilinear).
        labels: (batch, height, width).
        classes: How many.
        ignored: The label of pixels that do not count.
    """
    logits = logits[0] if isinstance(logits, tuple | list) else logits
    if logits.shape[-2:] != labels.shape[-2:]:
        logits = F.interpolate(logits.float(), size=labels.shape[-2:], mode="bilinear", align_corners=False)
    answers = logits.argmax(1)
    real = (labels != ignored) & (labels >= 0) & (labels < classes)
    pairs = labels.where(real, 0) * classes + answers
    image = torch.arange(len(labels), device=labels.device)[:, None, None] * classes**2
    counts = torch.bincount((pairs + image)[real], minlength=len(labels) * classes**2)
    return counts.view(len(labels), classes, classes)


class MeanIoU:
    """`compute_metrics` of a segmentation, for `batch_eval_metrics`: mean_iou, mean_accuracy and pixel_accuracy.

    The mean is over the classes that there are in the labels or the answers of all images together, as in the
    benchmarks of ADE20K and Cityscapes. It reads what `confusion` made of the logits.

    Args:
        classes: Number of the student's classes.
        ignored: The label of pixels that do not count.
    """

    def __init__(self, classes: int, ignored: int = 255):
        self.classes, self.ignored = classes, ignored
        self._sum = np.zeros((classes, classes), np.int64)

    def of_logits(self, logits: Any, labels: Tensor) -> Tensor:
        """`preprocess_logits_for_metrics`: counts in the place of logits."""
        return confusion(logits, labels, self.classes, self.ignored)

    def __call__(self, prediction: EvalPrediction, compute_result: bool = True) -> dict[str, float]:
        counts = prediction.predictions
        counts = counts.cpu().numpy() if isinstance(counts, Tensor) else np.asarray(counts)
        self._sum += counts.reshape(-1, self.classes, self.classes).sum(0)
        if not compute_result:
            return {}
        table, self._sum = self._sum, np.zeros_like(self._sum)
        right, labelled, answered = np.diag(table), table.sum(1), table.sum(0)
        union = labelled + answered - right
        if not table.sum():
            return {}
        return {
            "mean_iou": float((right[union > 0] / union[union > 0]).mean()),
            "mean_accuracy": float((right[labelled > 0] / labelled[labelled > 0]).mean()),
            "pixel_accuracy": float(right.sum() / table.sum()),
        }
