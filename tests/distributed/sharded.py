"""What two processes do with teachers and students whose weights are spread over both."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from safetensors.torch import load_file
from torch import distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import ResNetForImageClassification
from transformers.integrations import is_fsdp_enabled as transformers_fills_first_process_only

from hf_reprot import Teacher
from hf_reprot.models.sharding import shard_teacher
from tests.distributed.runs import PAIRS, run
from tests.tiny_models import CONFIGS, batch, images, timm_model, transformers_model
from tests.toy_models import Images, resnet, timm_vit, vit
from tests.training.runs import make_trainer, training_logs

CPU = torch.device("cpu")
TEXT = ("Bert", "GPT2")
TEACHERS = ("ViT", "Swin", "Segformer", "ConvNext", *TEXT, "resnet10t", "efficientnet_lite0", "beit_base_patch16_224")
WITH_LOGITS = {"kd_weight": 1.0, "layer_pairs": PAIRS, "max_steps": 2}
SHARDED_RUNS = {
    "with logits": WITH_LOGITS,
    "bfloat16, accumulation": {"teacher_dtype": "bfloat16", "plan_momentum": 0.9, "gradient_accumulation_steps": 2},
}
# Left to themselves, transformers and accelerate name layers that overlap (ViT) or do not exist (timm).
WRAP = "transformer_layer_cls_to_wrap"
FSDP = {"fsdp": True, "fsdp_config": {WRAP: ["ViTLayer"], "cpu_ram_efficient_loading": True}}


def held(model: nn.Module) -> int:
    """Numbers of a model's parameters that this process holds."""
    return sum((p.to_local() if isinstance(p, DTensor) else p).numel() for p in model.parameters())


def teachers(folder: Path) -> dict[str, Any]:
    """Every kind of teacher on the same batch, whole and spread."""
    results = {}
    for name in TEACHERS:
        if name in CONFIGS:
            model = transformers_model(name, f"For{'Sequence' if name in TEXT else 'Image'}Classification")
            inputs = batch(name)
        else:
            model = timm_model(name).to(memory_format=torch.channels_last)
            inputs = {"pixel_values": images(name)}
        model.temperature = nn.Parameter(torch.ones(()))  # some models have scalars
        teacher = Teacher(model)
        title, whole, expected = teacher.title, held(model), teacher(inputs)
        shard_teacher(teacher, CPU)
        shard_teacher(teacher, CPU)  # a second time changes nothing
        logits = teacher(inputs)
        results[name] = {
            "difference": (logits - expected).abs().max().item(),
            "type": type(logits) is torch.Tensor,
            "share": held(model) / whole,
            "frozen": not any(p.requires_grad for p in model.parameters()),
            "title": teacher.title == title,
        }
    return results


def teacher_in_training(folder: Path) -> dict[str, Any]:
    """The same runs with the teacher whole and spread."""
    results: dict[str, Any] = {}
    for name, settings in SHARDED_RUNS.items():
        results[name] = {
            sharded: run(folder / "sharded", vit, {**settings, "teacher_sharded": sharded}, processes=2)
            for sharded in (False, True)
        }
    return results


def teacher_is_kept_out(folder: Path) -> dict[str, Any]:
    """Training, evaluating and saving with a spread teacher."""
    teacher = resnet(seed=1)
    whole, before = held(teacher), {name: value.clone() for name, value in teacher.state_dict().items()}
    trainer = make_trainer(
        folder / "kept_out",
        teacher=teacher,
        eval_data=Images(16),
        teacher_sharded=True,
        save_strategy="steps",
        save_steps=1,
    )
    trainer.train()
    metrics = trainer.evaluate()
    trainer.save_model()  # writes the card's facts, which are collected on one process
    after = {
        name: value.full_tensor() if isinstance(value, DTensor) else value
        for name, value in teacher.state_dict().items()
    }
    saved = [name for file in (folder / "kept_out").rglob("*.safetensors") for name in load_file(file)]
    return {
        "share": held(teacher) / whole,
        "unchanged": all(torch.equal(after[name], value) for name, value in before.items()),
        "evaluated": "eval_loss" in metrics,
        "saved": len(saved) > 0 and not any("resnet" in name for name in saved),
        "optimised": len([p for group in trainer.optimizer.param_groups for p in group["params"]]),
        "student": len(list(trainer.model.parameters())),
    }


def refused_teachers(folder: Path) -> dict[str, str]:
    """Messages on teachers that cannot be spread."""
    quantised = resnet()
    quantised.classifier[1].weight = nn.Parameter(torch.zeros(3, 12, dtype=torch.int8), requires_grad=False)
    cases = {
        "other weights": resnet(seed=dist.get_rank()),
        "quantised": quantised,
        "compiled": torch.compile(resnet(), backend="eager"),
    }
    found = {}
    for name, model in cases.items():
        try:
            shard_teacher(Teacher(model), CPU)
        except ValueError as error:
            found[name] = str(error)
    return found


def teacher_by_name(folder: Path) -> dict[str, Any]:
    """A teacher from a folder where transformers would fill the first process only."""
    if dist.get_rank() == 0:
        resnet(seed=1).save_pretrained(folder / "teacher")
    dist.barrier()
    seen = []
    load = ResNetForImageClassification.from_pretrained.__func__

    def loading(cls, *args, **kwargs):
        seen.append(transformers_fills_first_process_only())
        return load(cls, *args, **kwargs)

    with _environment({"ACCELERATE_USE_FSDP": "true", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}):
        ResNetForImageClassification.from_pretrained = classmethod(loading)
        try:
            teacher = Teacher.load(folder / "teacher")
        finally:
            ResNetForImageClassification.from_pretrained = classmethod(load)
        after = transformers_fills_first_process_only()
    same = all(torch.equal(p, q) for p, q in zip(teacher.model.parameters(), resnet(seed=1).parameters(), strict=True))
    equal = torch.tensor(float(same))
    dist.all_reduce(equal)
    return {"equal": equal.item(), "while loading": seen, "afterwards": after}


def fsdp(folder: Path) -> dict[str, Any]:
    """`Trainer`'s own FSDP: training, saving, resuming and a gradient that is not finite, against DDP."""
    results: dict[str, Any] = {}
    results["DDP"] = run(folder / "fsdp", vit, {**WITH_LOGITS, "max_steps": 3}, processes=2)
    with cpus_as_accelerators():
        for sharded in (False, True):
            settings = {**WITH_LOGITS, "max_steps": 3, "teacher_sharded": sharded}
            results[f"teacher_sharded={sharded}"] = _gathered(
                run(folder / "fsdp", vit, {**FSDP, **settings}, processes=2)
            )
        whole = fsdp_trainer(folder / "fsdp_whole")
        whole.train()
        again = fsdp_trainer(folder / "fsdp_again")
        again.train(resume_from_checkpoint=str(folder / "fsdp_whole" / "checkpoint-2"))
        results["whole"], results["again"] = _outcome(whole), _outcome(again)
        results["not finite"] = _poisoned(folder / "fsdp_poisoned")
        timm = fsdp_trainer(folder / "fsdp_timm", model=timm_vit(), layer_pairs="last", fsdp_config={WRAP: ["Block"]})
        timm.train()
        timm.save_model()
        results["timm"] = _outcome(timm)
    return results


def fsdp_trainer(folder: Path, **changes: Any):
    # torch cannot load the empty state of plain SGD there
    settings = {
        "optim": "adamw_torch",
        "layer_pairs": PAIRS,
        "max_steps": 4,
        "save_strategy": "steps",
        "save_steps": 2,
        "plan_momentum": 0.9,
    }
    return make_trainer(folder, data=Images(64), eval_data=Images(16), **{**FSDP, **settings, **changes})


def _poisoned(folder: Path) -> dict[str, Any]:
    """NaN in the second of four steps, on the second process only."""
    student = vit()
    trainer = fsdp_trainer(folder, model=student, save_strategy="no", max_grad_norm=1.0)

    def poison(module, args, output):
        if trainer.is_in_train and dist.get_rank() == 1 and trainer.state.global_step == 1:
            return output * float("nan")
        return None

    student.vit.layers[1].register_forward_hook(poison)
    trainer.train()
    return _outcome(trainer)


def _outcome(trainer) -> dict[str, Any]:
    evaluation = trainer.evaluate()
    logs = [{k: v for k, v in e.items() if isinstance(v, int | float)} for e in training_logs(trainer)]
    weights = {name: value.full_tensor().clone() for name, value in trainer.model.state_dict().items()}
    return {"logs": logs, "weights": weights, "eval_loss": evaluation["eval_loss"]}


def _gathered(result: dict[str, Any]) -> dict[str, Any]:
    parts = ("gradients", "weights")
    return result | {
        part: {name: value.full_tensor().clone() for name, value in result[part].items()} for part in parts
    }


@contextlib.contextmanager
def cpus_as_accelerators() -> Iterator[None]:
    """accelerate leaves FSDP out on CPUs, although torch can do it there: tells accelerate that it is on."""
    original, state = AcceleratorState.__init__, PartialState._shared_state
    kind = state["distributed_type"]

    def init(self, *args, fsdp_plugin=None, **kwargs):
        original(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            state["distributed_type"] = AcceleratorState._shared_state["distributed_type"] = DistributedType.FSDP
            AcceleratorState._shared_state["fsdp_plugin"] = fsdp_plugin

    AcceleratorState._reset_state()
    AcceleratorState.__init__ = init
    try:
        with _environment({}):
            yield
    finally:
        AcceleratorState.__init__ = original
        state["distributed_type"] = kind
        AcceleratorState._reset_state()


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ |= values
    try:
        yield
    finally:
        os.environ.clear()
        os.environ |= before


JOBS = (teachers, teacher_in_training, teacher_is_kept_out, refused_teachers, teacher_by_name, fsdp)
