"""Metrics of an evaluation, as `Trainer`'s `compute_metrics` takes them."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

import numpy as np
import transformers
from transformers import EvalPrediction


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """{"accuracy": share of samples whose best logit is their label's}."""
    logits = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
    return {"accuracy": float(np.mean(logits.argmax(-1) == prediction.label_ids))}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Only errors of transformers and of this package, and no bars of transformers; afterwards all is as before."""
    own, theirs = logging.getLogger("hf_reprot"), transformers.logging
    before, level, bars = own.level, theirs.get_verbosity(), theirs.is_progress_bar_enabled()
    theirs.set_verbosity_error()
    theirs.disable_progress_bar()
    own.setLevel(logging.ERROR)
    try:
        yield
    finally:
        own.setLevel(before)
        theirs.set_verbosity(level)
        if bars:
            theirs.enable_progress_bar()
