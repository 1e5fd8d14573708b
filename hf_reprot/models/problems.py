"""What a model's outputs are: one of transformers' `problem_type`s."""

from __future__ import annotations

from torch import Tensor, nn

from ..losses.distillation import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from .modules import base_of, class_count

# Losses of transformers (`loss_type`) whose form follows the config or the labels, and those with a class per place.
FOLLOW_LABELS = (
    *("ForImageClassification", "ForSequenceClassification", "ForVideoClassification", "ForAudioClassification"),
)
CHOOSE_PER_PLACE = ("ForTokenClassification", "ForSemanticSegmentation")


def problem_of(model: nn.Module, labels: Tensor | None = None) -> str | None:
    """What a model's outputs are: one of transformers' `problem_type`s, found as transformers finds it.

    Args:
        model: Any module; one without a `problem_type` of its own chooses one class a sample.
        labels: A batch's labels, where they are at hand: floats for several outputs are one yes or no a class.

    Returns:
        None where it depends on labels that are not at hand.
    """
    base = base_of(model)  # PEFT
    config = getattr(base, "config", None)
    stated = getattr(config, "problem_type", None)
    kind = getattr(base, "loss_type", None)
    if kind not in FOLLOW_LABELS:  # tokens and pixels have one class each, whatever the config says
        return stated if kind is None and stated is not None else SINGLE_LABEL
    if stated is not None:
        return stated
    if class_count(base) == 1:
        return REGRESSION
    if labels is None:
        return None
    return MULTI_LABEL if labels.is_floating_point() else SINGLE_LABEL


def stated_problem(model: nn.Module) -> str | None:
    """What a model says itself that its outputs are; None where only labels or nothing would tell."""
    base = base_of(model)
    kind = getattr(base, "loss_type", None)
    if kind is None:
        return getattr(getattr(base, "config", None), "problem_type", None)
    return problem_of(base) if kind in (*FOLLOW_LABELS, *CHOOSE_PER_PLACE) else None
