"""Metrics of an evaluation, as `Trainer`'s `compute_metrics` takes them."""

from __future__ import annotations

import numpy as np
from transformers import EvalPrediction


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """{"accuracy": share of samples whose best logit is their label's}."""
    logits = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
    return {"accuracy": float(np.mean(logits.argmax(-1) == prediction.label_ids))}
