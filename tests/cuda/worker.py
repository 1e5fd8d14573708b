"""One process of a distributed run on the device: `torchrun ... --module tests.cuda.worker JOB FOLDER`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from hf_reprot.losses import RepresentationTransport, collective
from hf_reprot.ot.moments import pair_moments
from tests.toy_models import batch, vit

from .places import DEVICE
from .test_training import losses

FSDP = {"fsdp": True, "fsdp_config": {"transformer_layer_cls_to_wrap": ["ViTLayer"]}}


def collectives(folder: Path) -> dict[str, Any]:
    """The exchange of moments, which one process leaves out, made all the same."""
    start()
    local = pair_moments(torch.randn(32, 8, device=DEVICE), torch.randn(32, 12, device=DEVICE))
    with mock.patch.object(collective, "world_size", side_effect=[2, *[1] * 9]):
        (merged,) = collective.merge_over_processes([local])
    theirs = merged.tensors()
    return {"merged": max(float((theirs[name] - x).abs().max()) for name, x in local.tensors().items()), "wrapper": ""}


def ddp(folder: Path) -> dict[str, Any]:
    found, trainer = losses(folder)
    return {"losses": found, "wrapper": type(trainer.model_wrapped).__name__}


def fsdp2(folder: Path) -> dict[str, Any]:
    found, trainer = losses(folder, **(FSDP if DEVICE == "cuda" else {}))
    sharded = any(isinstance(p, DTensor) for p in trainer.model_wrapped.parameters())
    start()
    return {"losses": found, "wrapper": "DTensor" if sharded else "", "gradient": sharded_gradient()}


def sharded_gradient() -> float:
    """How far the gradients of transport are from a sharded student's, relative to theirs."""
    inputs = {name: value.to(DEVICE) for name, value in batch(16).items()}
    teacher = torch.randn(16, 20, generator=torch.Generator().manual_seed(0)).to(DEVICE)

    def gradients(model, shard: bool) -> list[torch.Tensor]:
        forward = model
        if shard:
            mesh = dist.device_mesh.init_device_mesh(DEVICE, (1,))
            for layer in model.vit.layers:
                fully_shard(layer, mesh=mesh)
            forward = fully_shard(model, mesh=mesh)
        output = forward(**inputs, output_hidden_states=True)
        neurons = output.hidden_states[-1].mean(1)
        (output.loss + RepresentationTransport(tolerance=1e-4)(neurons, teacher).loss).backward()
        found = [p.grad for p in model.parameters() if p.grad is not None]
        return [x.full_tensor() if isinstance(x, DTensor) else x for x in found]

    plain, sharded = (gradients(vit().to(DEVICE), shard) for shard in (False, True))
    assert len(plain) == len(sharded)
    scale = max(float(x.norm()) for x in plain)
    return max(float((x - y).norm()) / scale for x, y in zip(plain, sharded, strict=True))


def start() -> None:
    """The processes' group, where no trainer has started it."""
    if DEVICE == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if not dist.is_initialized():
        dist.init_process_group("nccl" if DEVICE == "cuda" else "gloo")


if __name__ == "__main__":
    name, where = sys.argv[1], Path(sys.argv[2])
    found = {"collectives": collectives, "ddp": ddp, "fsdp2": fsdp2}[name](where)
    (where / "found.json").write_text(json.dumps(found))
    if dist.is_initialized():
        dist.destroy_process_group()
