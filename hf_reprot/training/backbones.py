"""Students without a head: what they can be trained on, and what a batch gives them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..config import OTTransferConfig
from ..data.columns import columns_of_student
from ..models.modules import class_name, is_headless

__all__ = ["check_backbone", "evaluated_columns", "features_of", "without_labels"]


def check_backbone(args: OTTransferConfig, student: nn.Module, own_loss: Any = None) -> None:
    """Refuses a student without a head where a term reads its logits.

    Args:
        args: The settings.
        student: The student, unwrapped.
        own_loss: The user's `compute_loss_func`, which may do with features what it likes.

    Raises:
        ValueError: such a term, with what to set.
    """
    if not is_headless(student):
        return
    title = class_name(student)
    if args.task_weight > 0 and own_loss is None:
        raise ValueError(
            f"{title} is a backbone: it has no head that answers with a class, and task_weight is {args.task_weight}. "
            "Set task_weight=0 to train its representation, or give a student with a head "
            "(AutoModelForImageClassification, timm with num_classes=N)"
        )
    if args.kd_weight > 0:
        raise ValueError(
            f"{title} is a backbone: it has no logits to distil, and kd_weight is {args.kd_weight}. Set kd_weight=0, "
            "or give a student with a head"
        )


def without_labels(inputs: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """A batch without the columns of labels, for a student that has no use for them."""
    return {name: value for name, value in inputs.items() if name not in names and name != "labels"}


def evaluated_columns(inputs: Mapping[str, Any], student: nn.Module, names: Sequence[str]) -> dict[str, Any]:
    """What of a batch goes into a student that is evaluated: a backbone has no loss that labels would go into."""
    own = columns_of_student(inputs)
    return without_labels(own, names) if is_headless(student) else own


def features_of(outputs: Mapping[str, Any]) -> Tensor | None:
    """(n, d) everything that a model without logits gives for n samples, side by side; None where it gives nothing."""
    found: list[Tensor] = []
    for value in outputs.values():
        tensors = value if isinstance(value, tuple | list) else [value]
        found += [t.flatten(1) for t in tensors if isinstance(t, Tensor) and t.is_floating_point() and t.dim() > 1]
    return torch.cat([t.float() for t in found], 1) if found else None
