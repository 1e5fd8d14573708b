"""Refuses launches that would silently train something else than was asked for."""

from __future__ import annotations

import os

from transformers import Trainer
from transformers.training_args import ParallelMode

_TORCHRUN = "`torchrun --nproc_per_node N script.py --use_cpu`"


def check_launch(trainer: Trainer) -> None:
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
    if args.l2sp_weight > 0 and sharded:
        raise ValueError("l2sp_weight needs whole parameters on every process: it does not go with FSDP or DeepSpeed")


def _check_processes(trainer: Trainer) -> None:
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
