"""Checks at construction, on a made-up batch, that student, teachers and layer pairs fit together."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..config import OTTransferConfig
from ..images.preprocessing import image_channels
from ..student import evaluating
from .cached import CachedTeacher
from .objective import TransferObjective, pair_name

logger = logging.getLogger(__name__)

_SAMPLES = 2


def check_pairs(student: nn.Module, objective: TransferObjective, device: torch.device) -> list[tuple[int, int]]:
    """Runs student and teachers once on a made-up batch and checks every layer pair.

    Args:
        student: The unwrapped student.
        objective: The objective to check.
        device: Where the student lives.

    Returns:
        The widths (d_s, d_t) of each pair; empty where no batch could be made up (the inputs are unknown).

    Raises:
        ValueError: widths that "identity" cannot take, logits that do not fit, an image size that a teacher refuses,
            layers whose positions cannot be paired.
    """
    if not objective.teachers:
        return []
    inputs = _made_up_batch(student, objective, device)
    if inputs is None:
        logger.info("The student's inputs are not known before training: layer pairs are checked on the first batch.")
        return []
    for teacher in objective.teachers:
        teacher.check_input(inputs, objective.preprocessing)
    cached = [teacher for teacher in objective.teachers if isinstance(teacher, CachedTeacher)]
    made_up = {name: value for teacher in cached for name, value in teacher.made_up(_SAMPLES, device).items()}
    # With gradients, so that a layer that none can flow through is found here.
    with torch.enable_grad(), evaluating(student), objective.recording():
        outputs = _forward(student, inputs)
    layers, logits = objective.teach(inputs | made_up)
    if objective.distillation is not None:
        _check_logits(outputs["logits"], logits, objective)
    if not objective.pairs:
        return []
    students = objective.student_taps.take()
    objective.rivals.check(students, layers)
    neurons = objective.neurons(students, layers, inputs)
    widths = [(s.shape[1], t.shape[1]) for s, t in neurons]
    for pair, (ds, dt) in zip(objective.pairs, widths, strict=True):
        if objective.config.ot_weight > 0 and objective.config.ot_method == "identity" and ds != dt:
            raise ValueError(
                f"ot_method='identity' pairs neuron i with neuron i, but {pair_name(pair)} has {ds} student and {dt} "
                "teacher neurons: choose layers of equal width, or ot_method='sinkhorn'"
            )
    return widths


def _forward(student: nn.Module, inputs: dict[str, Tensor]) -> Any:
    try:
        return student(**inputs)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a model raises on a shape that it cannot take
        given = ", ".join(f"{name} {tuple(value.shape)}" for name, value in inputs.items())
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"the student does not take what its processor makes ({given}): {reason.rstrip('.')}. Give a "
            "processing_class of the student's own size"
        ) from error


def check_batch_size(config: OTTransferConfig, samples: int, widths: Sequence[tuple[int, int]]) -> None:
    """Refuses a batch that transport cannot see anything in, and warns about one that shows mostly noise.

    Args:
        config: The settings.
        samples: Samples that one plan rests on: those of all processes where they share one problem.
        widths: (d_s, d_t) of each pair.

    Raises:
        ValueError: one sample a step with pooled, standardised neurons.
    """
    if config.ot_weight == 0 or config.ot_positions != "pooled":
        return
    if samples < 2 and config.ot_standardize:
        raise ValueError(
            f"a batch of {samples} has no variance to standardise by: raise per_device_train_batch_size to 2 or more, "
            "or set ot_positions='all' or ot_standardize=False"
        )
    matched = config.ot_method not in ("identity", "random", "independent") and config.ot_cost != "learned"
    if widths and matched and config.plan_momentum == 0:
        widest = max(max(pair) for pair in widths)
        noise = math.sqrt(2 * math.log(max(widest, 2)) / samples)  # largest of d correlations of pure noise
        if noise > 0.3:
            logger.warning(
                "The plan is solved on %d samples a step: among %d neurons, pure noise alone shows correlations up to "
                "%.2f there. Set plan_momentum (0.9 or so) to let the plan rest on many steps, or use larger batches.",
                samples,
                widest,
                min(noise, 1.0),
            )


def _made_up_batch(student: nn.Module, objective: TransferObjective, device: torch.device) -> dict[str, Any] | None:
    dtype = next((p.dtype for p in student.parameters() if p.is_floating_point()), torch.float32)
    main = getattr(student, "main_input_name", None)
    generator = torch.Generator().manual_seed(0)
    if main == "pixel_values" and objective.preprocessing is not None and objective.preprocessing.size is not None:
        channels = image_channels(student) or objective.preprocessing.channels or 3
        images = torch.randn(_SAMPLES, channels, *objective.preprocessing.size, generator=generator)
        return {"pixel_values": images.to(device, dtype)}
    if main == "input_ids":
        # The smallest vocabulary: a teacher may have tokens of its own, which the data brings in columns of their own.
        models = [student, *(teacher.model for teacher in objective.teachers)]
        vocabulary = min(getattr(getattr(model, "config", None), "vocab_size", None) or 2 for model in models)
        tokens = torch.randint(0, vocabulary, (_SAMPLES, 8), generator=generator).to(device)
        return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    return None


def _check_logits(student: Tensor, teachers: Sequence[Tensor | None], objective: TransferObjective) -> None:
    count = student.shape[-1]
    for i, (teacher, logits) in enumerate(zip(objective.teachers, teachers, strict=True)):
        outputs = objective.distillation.outputs(i, count)
        if logits is None and all(other is None for other in teachers):
            raise ValueError(f"kd_weight is above 0 but teacher {teacher.title} has no head: set kd_weight=0")
        if outputs is None or logits is None:
            continue
        if teacher.classes is not None and logits.shape[-1] != outputs:
            raise ValueError(
                f"the teacher {teacher.title} has {logits.shape[-1]} outputs and {outputs} classes are given: give one "
                "for each output, in their order (None for an output that the student has no class for)"
            )
        if logits.shape != (*student.shape[:-1], outputs):
            raise ValueError(
                f"kd_weight is above 0 but teacher {teacher.title} has {logits.shape[-1]} classes and the student "
                f"{count}: set kd_weight=0 or use a teacher of the student's task; or say which of the student's "
                "classes its outputs stand for (Teacher.load(..., classes=[...]); an empty list leaves its logits out)"
            )
