"""Placement of teachers: replicated on every process, or sharded over all of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from .teacher import Teacher

# Lists of modules have no forward pass, which is where parameters are gathered.
_NEVER_CALLED = (nn.ModuleList, nn.ModuleDict)
_LISTS = (nn.Sequential, *_NEVER_CALLED)
_LEAST_SHARE = 0.01


def place_teachers(trainer: Any) -> None:
    """Brings the teachers of a trainer to its device, spread over its processes with `teacher_sharded`; with
    `teacher_offload` only while they run.

    Raises:
        ValueError: both of them, or `teacher_sharded` with one process, under DeepSpeed, or for a teacher that cannot
            be spread.
    """
    args = trainer.args
    if not args.teacher_sharded or not trainer.teachers:
        for teacher in trainer.teachers:
            if is_sharded(teacher.model):
                continue
            if args.teacher_offload:
                teacher.park(args.device)
            else:
                teacher.model.to(args.device)
        return
    if args.teacher_offload:
        raise ValueError(
            "teacher_offload keeps a teacher on the CPU between its passes, and teacher_sharded spreads it over the "
            "processes' devices: leave one of them out"
        )
    if trainer.is_deepspeed_enabled:
        raise ValueError(
            "teacher_sharded=True does not go with DeepSpeed: leave it out (the teacher is then whole on every "
            "device), or train with FSDP or DDP"
        )
    if trainer.accelerator.num_processes == 1:
        raise ValueError(
            "teacher_sharded=True spreads a teacher over processes and this run has one: start several with torchrun "
            "or `accelerate launch`, or leave it out"
        )
    for teacher in trainer.teachers:
        shard_teacher(teacher, args.device)


def shard_teacher(teacher: Teacher, device: torch.device) -> None:
    """Spreads the weights of a teacher over all processes, in place; every forward pass gathers them block by block.

    Between passes each process holds 1 / processes of every parameter, within one the largest block beside it. Buffers
    (the statistics of batch normalisation) are whole everywhere. All processes must run the teacher equally often.
    What is spread already stays as it is.

    Args:
        teacher: The teacher, with the same weights on every process; on the CPU it never lies on the device as a whole.
        device: Where its parts go.

    Raises:
        ValueError: weights that are not the same everywhere, are not floating point numbers, or are in a module that
            was compiled.

    References: "PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel" (Zhao et al., VLDB 2023); in the
    form of `torch.distributed.fsdp.fully_shard`.
    """
    model = teacher.model
    if is_sharded(model):
        return
    if hasattr(model, "_orig_mod"):
        raise ValueError(
            f"teacher_sharded=True cannot spread the teacher {teacher.title}, which is compiled: give the module itself"
        )
    odd = [name for name, p in model.named_parameters() if not p.is_floating_point()]
    if odd:
        raise ValueError(
            f"teacher_sharded=True cannot spread the teacher {teacher.title}, whose weights are quantised ({odd[0]}): "
            "load it in a floating point type such as teacher_dtype='bfloat16', or leave teacher_sharded out"
        )
    _check_same(teacher, device)
    for parameter in model.parameters():
        parameter.data = parameter.data.contiguous()  # `fully_shard` takes no other, such as channels_last
    scalars = {p for p in model.parameters() if p.dim() == 0}  # nor these: they stay whole
    for scalar in scalars:
        scalar.data = scalar.data.to(device)
    mesh = _all_processes(device)
    for module in (*blocks(model), model):
        # Nothing runs backward through a teacher: the outermost module, too, frees what it gathered.
        fully_shard(module, mesh=mesh, reshard_after_forward=True, ignored_params=scalars)


def is_sharded(model: nn.Module) -> bool:
    """Whether the parameters of a model are spread over processes."""
    return any(isinstance(module, FSDPModule) for module in model.modules())


def blocks(model: nn.Module) -> list[nn.Module]:
    """The modules whose parameters are gathered together, inner ones first; the model itself is left out.

    Elements of lists and sequences, since these are called as modules, whatever the architecture. Each holds at least a
    hundredth of all parameters beside the blocks inside of it: smaller ones would be many small messages.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 8), nn.ReLU()), nn.LayerNorm(1))
        >>> [name for name, module in model.named_modules() if module in blocks(model)]
        ['0', '1.0', '2']
    """
    least = _LEAST_SHARE * sum(p.numel() for p in model.parameters())
    found: list[nn.Module] = []
    seen: set[nn.Module] = set()

    def visit(module: nn.Module, element: bool) -> int:
        """Collects the blocks inside; returns how many parameters are left to the block around."""
        if module in seen:
            return 0
        seen.add(module)
        left = sum(p.numel() for p in module.parameters(recurse=False))
        left += sum(visit(child, isinstance(module, _LISTS)) for child in module.children())
        if element and left > 0 and left >= least and not isinstance(module, _NEVER_CALLED):
            found.append(module)
            return 0
        return left

    visit(model, False)
    return found


def _check_same(teacher: Teacher, device: torch.device) -> None:
    """Parts of different models would be put together silently."""
    weights = [p.detach() for p in teacher.model.parameters()]
    sums = torch.stack([f(w.double()).sum().cpu() for w in weights for f in (torch.Tensor.abs, torch.Tensor.clone)])
    mine = sums.to(device, torch.float32)
    everyone = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, mine)
    if not all(torch.allclose(mine, other, rtol=1e-5, atol=1e-6, equal_nan=True) for other in everyone):
        raise ValueError(
            f"the teacher {teacher.title} has other weights on other processes: load it from a hub id or a folder, or "
            "set the same seed before it is made"
        )


def _all_processes(device: torch.device) -> DeviceMesh:
    return init_device_mesh(device.type, (dist.get_world_size(),))
