"""Taps on models that several processes train together, against one process on the whole batch."""

import faulthandler
import os
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from hf_reprot.features.taps import Taps

from ..tiny_models import batch, transformers_model

LAYERS = ["vit.layers.1", "classifier:input"]


def loss_of(forward, taps, inputs):
    with taps.recording():
        output = forward(**inputs)
    taken = taps.take()
    assert list(taken) == LAYERS
    assert all(type(layer.tensor) is torch.Tensor for layer in taken.values())
    return output.logits.square().mean() + sum(layer.tensor.square().mean() for layer in taken.values())


def expected_gradients(inputs):
    model = transformers_model("ViT", "ForImageClassification")
    loss_of(model, Taps(model, LAYERS), inputs).backward()
    return {name: p.grad for name, p in model.named_parameters()}


def share(inputs, rank, world):
    return {name: value.chunk(world)[rank] for name, value in inputs.items()}


def wrapped(model, kind, world):
    if kind == "ddp":
        return DistributedDataParallel(model)
    if kind == "fsdp with checkpointing":
        model.train()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    mesh = dist.device_mesh.init_device_mesh("cpu", (world,))
    for layer in model.vit.layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def worker(rank, world, port):
    faulthandler.enable()
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world)
    try:
        inputs = batch("ViT", n=2 * world)
        expected = expected_gradients(inputs)
        for kind in ("ddp", "fsdp", "fsdp with checkpointing"):  # in one go: starting processes takes longest
            model = transformers_model("ViT", "ForImageClassification")
            taps = Taps(model, LAYERS)
            forward = wrapped(model, kind, world)
            forward(**share(inputs, rank, world))  # disarmed: not recorded
            assert taps._store.caught == {}
            loss_of(forward, taps, share(inputs, rank, world)).backward()
            for name, parameter in model.named_parameters():
                grad = parameter.grad if kind == "ddp" else parameter.grad.full_tensor()
                torch.testing.assert_close(grad, expected[name], rtol=1e-4, atol=1e-6, msg=f"{kind}: {name}")
        dist.barrier()
    finally:
        dist.destroy_process_group()
    # Past the interpreter's teardown, in which threads of the libraries now and then abort a process that has done all.
    os._exit(0)


@pytest.mark.distributed
def test_two_processes_record_what_one_does():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(worker, (2, port), nprocs=2)
