"""Metrics of an evaluation, as `Trainer`'s `compute_metrics` takes them."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

import numpy as np
import transformers
from transformers import EvalPrediction


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """{"accuracy": share of correct predictions}.

    With one class per sample, a prediction is the class of the largest logit; samples with the label -100 are left out.
    With several labels per sample (floats, one per class), each logit is a prediction: yes above 0, no below.

    Raises:
        ValueError: the labels are numbers to be predicted (regression), which are not right or wrong.
    """
    logits = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
    labels = np.asarray(prediction.label_ids)
    if np.issubdtype(labels.dtype, np.floating):
        if labels.shape != logits.shape or logits.ndim < 2 or logits.shape[-1] < 2:
            raise ValueError(
                f"labels of {labels.dtype} and shape {labels.shape} are numbers, not classes: accuracy counts right "
                "answers; give compute_metrics a measure for regression"
            )
        return {"accuracy": float(np.mean((logits > 0) == (labels > 0.5)))}
    real = labels != -100
    return {"accuracy": float(np.mean((logits.argmax(-1) == labels)[real]))}


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
