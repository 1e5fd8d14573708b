"""Checks at construction, on a dummy batch, that student, teachers and layer pairs fit together."""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.training_args import ParallelMode

from ..cache.teacher import CachedTeacher
from ..config import OTTransferConfig
from ..data.preprocessing import image_channels
from ..features.tables import evaluating
from ..models.classes import pair_names
from ..models.modules import class_names
from ..models.teacher import Teacher
from .objective import TransferObjective, logits_of

logger = logging.getLogger(__name__)

_SAMPLES = 2


def check_pairs(objective: TransferObjective, device: torch.device) -> list[tuple[int, int]]:
    """Runs student and teachers once on a dummy batch, and lets every term look at it.

    Args:
        objective: The objective to check.
        device: Where the student lives.

    Returns:
        The widths (d_s, d_t) of each pair; empty where no dummy batch can be made (the inputs are unknown).

    Raises:
        ValueError: what a term cannot work with, an image size that a teacher refuses, layers whose positions cannot be
            paired.
    """
    if not objective.teachers:
        return []
    student = objective.student
    inputs = _dummy_batch(objective, device)
    if inputs is None:
        logger.info("The student's inputs are not known before training: layer pairs are checked on the first batch.")
        return []
    for teacher in objective.teachers:
        teacher.check_input(inputs, objective.preprocessing)
    cached = [teacher for teacher in objective.teachers if isinstance(teacher, CachedTeacher)]
    features = {name: value for teacher in cached for name, value in teacher.dummy(_SAMPLES, device).items()}
    # With gradients, so that a layer that none can flow through is found here.
    with torch.enable_grad(), evaluating(student), objective.recording():
        outputs = _forward(student, inputs)
    batch = objective.batch(inputs | features, logits=logits_of(outputs, has_loss=False))
    for term in objective.terms:
        term.check(batch)
    neurons = objective.layers.neurons(batch.student, batch.teachers, inputs)
    return [(s.shape[1], t.shape[1]) for s, t in neurons]


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
    if samples == 2 and config.ot_standardize:
        logger.warning(
            "With 2 samples a step every standardized neuron is +1 or -1, whatever the student does: the transport's "
            "gradient is 0. Raise per_device_train_batch_size, or set ot_positions='all' or ot_standardize=False."
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


@contextlib.contextmanager
def explained_single_samples() -> Iterator[None]:
    """Says what to do where batch normalisation gets one value a channel: a batch of one sample (the last of an epoch).

    Whether it does depends on the student's grid at each layer; so it is told when it happens.
    """
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise ValueError(
            "the student's batch normalisation cannot train on a batch of one sample: give at least two samples, set "
            "per_device_train_batch_size to 2 or more, and dataloader_drop_last=True where one sample is left over"
        ) from error


def _dummy_batch(objective: TransferObjective, device: torch.device) -> dict[str, Tensor] | None:
    student = objective.student
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


KNOWS_TASK, OTHERWISE = 10.0, 1.0  # docs/study.md: the best of 2 to 250, and of 0.08 to 50


def settle_ot_weight(args: OTTransferConfig, student: nn.Module, teachers: Sequence[Teacher]) -> None:
    """Puts a number where `ot_weight` was left open.

    In the study of this package (docs/study.md) 10 was the best weight, or level with it, wherever the teacher knew the
    task or no label took part; where a teacher that never saw the task stands beside the task's loss, 1 or less was.

    Args:
        args: The settings; `ot_weight` is set if it is None.
        student: The student, unwrapped.
        teachers: Its teachers.
    """
    if args.ot_weight is not None:
        return
    knows = trains_on_teacher_task(args, student, teachers)
    args.ot_weight = KNOWS_TASK if knows else OTHERWISE
    if teachers:
        reason = "the teacher knows the task" if knows else "nothing says that the teacher knows the task"
        logger.info("ot_weight is %g: %s. Give ot_weight to choose it.", args.ot_weight, reason)


def trains_on_teacher_task(args: OTTransferConfig, student: nn.Module, teachers: Sequence[Teacher]) -> bool:
    """Whether the student learns what a teacher knows: no labels, its logits, or classes that both have by name."""
    if args.task_weight == 0 or args.kd_weight > 0:
        return True
    ours = class_names(student)
    return any(teacher.classes or _shares_classes(class_names(teacher.model), ours) for teacher in teachers)


def _shares_classes(theirs: Sequence[str] | None, ours: Sequence[str] | None) -> bool:
    if theirs is None or ours is None:
        return False
    found = pair_names(theirs, ours)
    return found.by_name and found.columns is not None


_TORCHRUN = "`torchrun --nproc_per_node N script.py --use_cpu`"


def check_launch(trainer: Any) -> None:
    """Compares what the launcher, the settings and accelerate say about a run.

    Raises:
        ValueError: the launcher started several processes that would not work together, or was asked for several and
            started one; FSDP was asked for and is not active; one process would use several GPUs in threads; a
            teacher in parts; settings that do not go with sharded training.
    """
    _check_processes(trainer)
    args = trainer.args
    sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    if (args.fsdp or _is_set("ACCELERATE_USE_FSDP")) and not trainer.is_fsdp_enabled:
        raise ValueError("fsdp was asked for but is not active: FSDP needs accelerators; leave it out on CPUs")
    if args.n_gpu > 1 and args.parallel_mode == ParallelMode.NOT_DISTRIBUTED:
        raise ValueError(
            f"{args.n_gpu} GPUs are visible to one process, which would use nn.DataParallel: its replicas run in "
            f"threads and cannot share taps. Start with `torchrun --nproc_per_node {args.n_gpu} ...` or `accelerate "
            "launch`, or set CUDA_VISIBLE_DEVICES to one GPU"
        )
    for teacher in trainer.teachers:
        if any(hasattr(parameter, "ds_id") for parameter in teacher.model.parameters()):
            raise ValueError(
                f"DeepSpeed ZeRO-3 took the weights of the teacher {teacher.title} apart while it was loaded: load "
                "it before the settings are made (Teacher.load(...)), and give the trainer that"
            )
    trainer.average.check(sharded=sharded)
    if args.l2sp_weight > 0 and sharded:
        raise ValueError("l2sp_weight needs whole parameters on every process: it does not go with FSDP or DeepSpeed")


def _check_processes(trainer: Any) -> None:
    world, seen = int(os.environ.get("WORLD_SIZE", "1")), trainer.accelerator.num_processes
    if world != seen or trainer.args.world_size != seen:
        raise ValueError(
            f"WORLD_SIZE is {world} but accelerate sees {seen} process(es): every process would train a model of its "
            f"own. On CPUs start with {_TORCHRUN}"
        )
    # accelerate's launcher for several processes on CPUs sets the address where they are to meet and starts one only
    if _is_set("ACCELERATE_USE_CPU") and "MASTER_PORT" in os.environ and "WORLD_SIZE" not in os.environ:
        raise ValueError(
            "`accelerate launch` was asked for several processes on CPUs and started only this one. Start with "
            f"{_TORCHRUN} instead, or ask for one process"
        )


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("true", "1", "yes")
