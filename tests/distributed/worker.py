"""What the processes of one launch do: `python -m tests.distributed.worker JOB FOLDER`, under torchrun."""

from __future__ import annotations

import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist
from torch.distributed.fsdp import fully_shard

from hf_reprot.features.taps import Taps
from hf_reprot.losses import GaussianTransport, RepresentationTransport, collective
from hf_reprot.training.non_finite import GradientGuard
from tests.distributed import sharded
from tests.distributed.runs import LOCAL, PAIRS, RUNS, run
from tests.toy_models import Images, batch, resnet, vit
from tests.training.runs import make_trainer, training_logs

RESUMED = {
    "max_steps": 6,
    "save_strategy": "steps",
    "save_steps": 3,
    "logging_steps": 2,
    "optim": "adamw_torch",
    "lr_scheduler_type": "cosine",
    "plan_momentum": 0.9,
    "ot_warmup_steps": 4,
    "max_grad_norm": 1.0,
}
UNEVEN = [(20, 12), (31, 1), (32, 0)]


def resumable(folder: Path, **settings: Any):
    student = vit()
    for module in student.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.1  # each process draws its own
    return make_trainer(folder, model=student, data=Images(64), **{**RESUMED, **settings})


def killed(folder: Path) -> None:
    """The second process is killed in step 5."""
    trainer = resumable(folder / "killed")
    step = trainer.training_step

    def last_step(*args, **kwargs):
        if trainer.state.global_step == 4 and dist.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(*args, **kwargs)

    trainer.training_step = last_step
    trainer.train()


def resumed(folder: Path) -> dict[str, Any]:
    """The uninterrupted run, and the killed one resumed; then the same with a state of each process's own."""
    results = {}
    whole = resumable(folder / "whole")
    whole.train()
    killed = resumable(folder / "killed")
    killed.train(resume_from_checkpoint=True)
    results["whole"], results["killed"] = outcome(whole), outcome(killed)
    own = resumable(folder / "own", ot_global_batch=False)
    own.train()
    again = resumable(folder / "again", ot_global_batch=False)
    again.train(resume_from_checkpoint=str(folder / "own" / "checkpoint-3"))
    results["own"], results["own again"] = outcome(own), outcome(again)
    return results


def outcome(trainer) -> dict[str, Any]:
    return {"logs": training_logs(trainer), "weights": dict(trainer.model.state_dict())}


def _sinkhorn(settings: dict[str, Any]) -> partial:
    return partial(RepresentationTransport, tolerance=1e-7, **settings)


def loss_alone(folder: Path) -> dict[str, Any]:
    """The loss on uneven batches, and what goes over the wire."""
    rank, results = dist.get_rank(), {}
    student, teacher = (torch.randn(32, d, generator=torch.Generator().manual_seed(d)) for d in (10, 14))
    for settings in ({}, {"standardize": False}, {"debiased": True}, "gaussian"):
        make = (
            partial(RepresentationTransport, tolerance=1e-7, **settings)
            if settings != "gaussian"
            else GaussianTransport
        )
        loss, whole = make(), make(global_batch=False)
        for sizes in UNEVEN:
            mine = slice(0, sizes[0]) if rank == 0 else slice(sizes[0], 32)
            local, everything = student[mine].clone().requires_grad_(), student.clone().requires_grad_()
            sent = []
            with counted(sent):
                out = loss(local, teacher[mine])
            out.loss.backward()
            expected = whole(everything, teacher)
            expected.loss.backward()
            results[f"{settings} {sizes}"] = {
                "value": out.loss.item(),
                "expected value": expected.loss.item(),
                "gradient": gathered(local.grad.sum(0)).sum(0) / 2,  # as DDP averages what a weight gathers
                "expected gradient": everything.grad.sum(0),
                "own rows": (local.grad / 2 - everything.grad[mine]).abs().max().item() if sizes[rank] else 0.0,
                "scale": everything.grad.abs().max().item(),
                "bytes": sum(sent),
            }
    results["bytes by hand"] = collective.bytes_per_merge([(10, 14)])
    return results


class counted:
    """Counts the bytes that this process hands to collectives."""

    def __init__(self, sent: list[int]):
        self.sent = sent

    def __enter__(self):
        self.original = {name: getattr(dist, name) for name in ("all_reduce", "all_gather_into_tensor")}

        def counting(name, position):
            def call(*args, **kwargs):
                self.sent.append(args[position].numel() * args[position].element_size())
                return self.original[name](*args, **kwargs)

            return call

        dist.all_reduce = counting("all_reduce", 0)
        dist.all_gather_into_tensor = counting("all_gather_into_tensor", 1)

    def __exit__(self, *_):
        for name, function in self.original.items():
            setattr(dist, name, function)


def gathered(tensor: torch.Tensor) -> torch.Tensor:
    """(processes, ...) in the order of the processes."""
    parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.stack(parts)


def fully_sharded(folder: Path) -> dict[str, Any]:
    """Transport and the guard of the gradient on a student whose parameters are sharded."""
    rank, world = dist.get_rank(), dist.get_world_size()
    inputs = batch(16)
    teacher = torch.randn(16, 20, generator=torch.Generator().manual_seed(0))

    def gradients(model, forward, inputs, teacher, transport):
        taps = Taps(model, ["vit.layers.0", "classifier:input"])
        with taps.recording():
            output = forward(**inputs)
        neurons = [layer.tensor.flatten(1)[:, :24] for layer in taps.take().values()]
        outs = transport.forward_pairs([(s, teacher) for s in neurons])
        (output.loss + sum(out.loss for out in outs)).backward()

    expected = vit()
    gradients(expected, expected, inputs, teacher, RepresentationTransport(tolerance=1e-6, global_batch=False))
    model = vit()
    mesh = dist.device_mesh.init_device_mesh("cpu", (world,))
    for layer in model.vit.layers:
        fully_shard(layer, mesh=mesh)
    forward = fully_shard(model, mesh=mesh)
    share = {name: value.chunk(world)[rank] for name, value in inputs.items()}
    gradients(model, forward, share, teacher.chunk(world)[rank], RepresentationTransport(tolerance=1e-6))
    scale = max(e.grad.norm().item() for e in expected.parameters())
    difference = max(
        (p.grad.full_tensor() - e.grad).norm().item() / (e.grad.norm().item() + 0.1 * scale)
        for p, e in zip(model.parameters(), expected.parameters(), strict=True)
    )
    guard = GradientGuard(2)
    kept_finite = guard.check(model)
    if rank == 1:
        next(p for p in model.parameters() if p.grad.to_local().numel()).grad.to_local().fill_(torch.nan)
    dropped = guard.check(model)
    return {
        "difference": difference,
        "finite": bool(gathered(torch.tensor(float(kept_finite))).max()),
        "dropped": bool(gathered(torch.tensor(float(dropped))).min()),
        "left": sum(p.grad is not None for p in model.parameters()),
    }


def not_finite(folder: Path) -> dict[str, Any]:
    """NaN or inf in one layer, on the second process only."""
    results: dict[str, Any] = {}
    for side in ("student", "teacher"):
        for value in (float("nan"), float("inf")):
            results[f"{side} {value}"] = poisoned(folder, side, value, steps=(1, 3), max_steps=5)
        results[f"{side} again and again"] = poisoned(folder, side, float("nan"), steps=range(9), max_steps=9)
    return results


def poisoned(folder: Path, side: str, value: float, steps, max_steps: int) -> dict[str, Any]:
    student, teacher = vit(), resnet(seed=1)
    trainer = make_trainer(
        folder / "poisoned",
        model=student,
        teacher=teacher,
        layer_pairs=PAIRS[1:],
        max_steps=max_steps,
        ot_nonfinite_limit=3,
        max_grad_norm=1.0,
    )

    def poison(module, args, output):
        if not trainer.is_in_train or dist.get_rank() != 1 or trainer.state.global_step not in steps:
            return None
        tensor = (output[0] if isinstance(output, tuple) else output).clone()
        tensor[0] = value
        return (tensor, *output[1:]) if isinstance(output, tuple) else tensor

    layer = student.vit.layers[1] if side == "student" else teacher.resnet.encoder.stages[1].layers[-1]
    layer.register_forward_hook(poison, prepend=True)
    error = ""
    try:
        trainer.train()
    except FloatingPointError as raised:
        error = str(raised)
    flat = torch.cat([p.detach().flatten() for p in student.parameters()])
    both = gathered(flat)
    errors: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(errors, error)
    return {
        "finite": bool(torch.isfinite(both).all()),
        "equal": bool(torch.equal(both[0], both[1])),
        "logs": training_logs(trainer),
        "errors": errors,
        "steps": trainer.state.global_step,
    }


def fitted_head(folder: Path) -> dict[str, Any]:
    """A head fitted to 27 samples: what it was fitted to, and whether both processes have the same."""
    trainer = make_trainer(folder / "head", task_weight=0.0)
    fit = trainer.fit_head(Images(27))
    weights = {name: value for name, value in trainer.model.state_dict().items() if name.startswith("classifier")}
    flat = gathered(torch.cat([value.flatten() for value in weights.values()]))
    return {"samples": fit.samples, "weights": weights, "equal": bool(torch.equal(flat[0], flat[1]))}


def everything(folder: Path) -> dict[str, Any]:
    results: dict[str, Any] = {"runs": {}}
    for name, (make, settings) in RUNS.items():
        results["runs"][name] = run(folder / "runs", make, settings, processes=2)
    results["local"] = run(folder / "runs", *LOCAL, processes=2)
    for job in (loss_alone, fully_sharded, not_finite, resumed, fitted_head, *sharded.JOBS):
        results[job.__name__] = job(folder)
    return results


JOBS = {job.__name__: job for job in (everything, killed)}


def main() -> None:
    torch.set_num_threads(1)
    job, folder = sys.argv[1], Path(sys.argv[2])
    make_trainer(folder / "start")  # accelerate opens the process group
    assert dist.get_world_size() == 2
    results = JOBS[job](folder)
    if dist.get_rank() == 0:
        torch.save(results, folder / f"{job}.pt")
    dist.barrier()
    dist.destroy_process_group()
    # Past the interpreter's teardown, in which threads of the libraries now and then abort a process that has done all.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
