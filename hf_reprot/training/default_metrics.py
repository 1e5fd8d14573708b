"""Accuracy, where the user gives no `compute_metrics` and the student chooses one class a sample."""

from __future__ import annotations

from typing import Any

import numpy as np
from transformers import EvalPrediction

from ..models.modules import base_of, class_count
from ..models.problems import FOLLOW_LABELS
from ..utils.running import accuracy
from .collating import dense_kind
from .dense_metrics import MeanIoU


class DefaultMetrics:
    """What `compute_metrics` is where the user gives none: {"accuracy": share of right answers}, or nothing.

    Nothing for labels that are no classes, for a head that nothing has taught, and in a search for hyperparameters,
    where `Trainer` would take any metric for what is searched for, instead of the loss.

    Args:
        trainer: The `OTTransferTrainer` that it belongs to.
    """

    def __init__(self, trainer: Any):
        self.trainer = trainer

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        given = prediction.predictions
        logits = np.asarray(given[0] if isinstance(given, tuple) else given)
        labels = np.asarray(prediction.label_ids)
        classes = labels.ndim == 1 and np.issubdtype(labels.dtype, np.integer)
        if not classes or logits.ndim != 2 or logits.shape[1] < 2 or (labels == -100).all():
            return {}
        return accuracy(prediction) if self._taught() and self.trainer.hp_search_backend is None else {}

    def _taught(self) -> bool:
        args = self.trainer.args
        return args.task_weight > 0 or args.kd_weight > 0 or self.trainer.head is not None


def settle_default_metrics(trainer: Any) -> None:
    """Gives a trainer without `compute_metrics` the default ones, if its student is a classifier of whole samples."""
    if trainer.compute_metrics is not None or trainer.args.batch_eval_metrics:
        return
    if trainer.preprocess_logits_for_metrics is not None or trainer.compute_loss_func is not None:
        return  # what comes of the logits, or what labels mean, is the user's own
    student = trainer.student()
    config = getattr(student, "config", None)
    if any(getattr(config, name, False) for name in ("output_hidden_states", "output_attentions")):
        return  # metrics make `Trainer` keep all outputs of an evaluation, and those would not fit into memory
    base = base_of(student)
    kind = dense_kind(base)
    if kind == "masks" and trainer.args.task_weight > 0:
        ignored = getattr(config, "semantic_loss_ignore_index", 255)
        metric = MeanIoU(class_count(base) or 1, ignored)
        trainer.compute_metrics, trainer.preprocess_logits_for_metrics = metric, metric.of_logits
        trainer.args.batch_eval_metrics = True  # masks of all images would not fit into memory
    if kind == "boxes":
        trainer.args.prediction_loss_only = True  # boxes of different images cannot be put side by side
    if getattr(base, "loss_type", None) in FOLLOW_LABELS:
        trainer.compute_metrics = DefaultMetrics(trainer)
