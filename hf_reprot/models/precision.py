"""The data types that a student is trained in and a teacher runs in."""

from __future__ import annotations

import logging

import torch
from torch import nn

from ..settings.names import TEACHER_DTYPES
from .modules import some

logger = logging.getLogger(__name__)

_HALF = (torch.bfloat16, torch.float16)


def in_training_precision(model: nn.Module, student_dtype: str | None = None) -> nn.Module:
    """Brings a student's weights into the data type that they are trained in, in place.

    An optimiser's small steps vanish in half precision: a weight of 1 in bfloat16 does not change by less than 0.004.
    Checkpoints on the Hub are often stored that way, and transformers loads them as they are. For speed and memory use
    bf16=True, which computes in half precision and keeps the weights.

    Args:
        model: The student.
        student_dtype: None: float32, with a warning, where a weight that is trained is in half precision; "auto": as
            it is; or "float32", "bfloat16", "float16".

    Returns:
        The same module. Quantised models, and those whose weights DeepSpeed has taken apart, stay as they are.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad and p.is_floating_point()}
    taken_apart = any(hasattr(p, "ds_id") for p in trained.values())
    if student_dtype == "auto" or is_quantised(model) or taken_apart:
        return model
    if student_dtype is not None:
        return model.to(getattr(torch, student_dtype))
    half = [name for name, p in trained.items() if p.dtype in _HALF]
    if not half:
        return model
    logger.warning(
        "%d of the student's %d trainable weights are in %s (%s), where small steps of the optimizer are lost: they "
        "are trained, and saved, in float32. Set bf16=True to compute in bfloat16 all the same, or "
        "student_dtype='auto' to train them as they are.",
        len(half),
        len(trained),
        str(trained[half[0]].dtype).removeprefix("torch."),
        some(half),
    )
    return model.float()


def is_quantised(model: nn.Module) -> bool:
    """Whether a model's weights are stored in a quantised form, which is no matter of a data type."""
    return bool(
        getattr(model, "is_quantized", False)
        or getattr(model, "is_loaded_in_4bit", False)
        or getattr(model, "is_loaded_in_8bit", False)
    )


def teacher_dtype(dtype: str | torch.dtype | None) -> torch.dtype | str | None:
    """The data type that a teacher is loaded in: "auto", None (as it is stored), or one of torch's.

    Raises:
        ValueError: a name that is none of `TEACHER_DTYPES`.
    """
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype
    name = str(dtype).removeprefix("torch.")
    if name not in TEACHER_DTYPES:
        raise ValueError(f"unknown data type {dtype!r} for a teacher: choose one of {', '.join(TEACHER_DTYPES)}")
    return name if name == "auto" else getattr(torch, name)
