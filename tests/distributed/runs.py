"""Training runs that mean the same whatever the number of processes: the samples of a step are the same 32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback

from hf_reprot import Teacher
from tests.cache.samples import build
from tests.toy_models import Images, convnext, resnet, vit
from tests.training.runs import CHECKPOINTING, make_trainer, training_logs

SAMPLES = 32
PAIRS = ["last", "vit.layers.0=resnet.encoder.stages.0", "vit.layers.1=resnet.encoder.stages.1"]


class KeepGradients(TrainerCallback):
    """The gradients of the last step."""

    def __init__(self) -> None:
        self.gradients: dict[str, torch.Tensor] = {}

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        self.gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def frozen_batch_norm(model: nn.Module) -> nn.Module:
    """Batch normalisation in evaluation mode for good."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
            module.train = lambda mode=True, module=module: module
    return model


def frozen_embeddings(model: nn.Module) -> nn.Module:
    for parameter in model.vit.embeddings.parameters():
        parameter.requires_grad_(False)
    return model


def with_unused_parameter(model: nn.Module) -> nn.Module:
    model.unused = nn.Linear(3, 3)
    return model


# Three steps: the student's gradient of the second shows what the projector was after the first.
PROJECTOR = {"ot_weight": 0.0, "feature_loss": "fitnet", "max_steps": 3, "gradient_accumulation_steps": 2}


def parts_of_the_classes() -> list[Teacher]:
    return [Teacher(resnet(2, seed=1), classes=[1, 0]), Teacher(resnet(2, seed=2), classes=[2, 1], weight=2.0)]


PARTIAL = {"teacher": parts_of_the_classes, "kd_weight": 1.0, "ot_standardize": False}

# The second step is the last of the epoch, with what is left of the samples.
UNEVEN = {"max_steps": 2, "kd_weight": 1.0, "ot_weight": 1.0, "learning_rate": 1e-4}

# Name -> (student, settings)
RUNS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "standardised": (vit, {}),
    "raw": (vit, {"ot_standardize": False}),
    "every position": (vit, {"ot_positions": "all", "layer_pairs": ["vit.layers.1=resnet.encoder.stages.0"]}),
    "several layer pairs": (vit, {"layer_pairs": PAIRS}),
    "label-free": (vit, {"task_weight": 0.0}),
    "label-free, frozen": (lambda: frozen_embeddings(vit()), {"task_weight": 0.0}),
    "label-free with logits, frozen": (lambda: frozen_embeddings(vit()), {"task_weight": 0.0, "kd_weight": 1.0}),
    "inner layer, label-free": (vit, {"task_weight": 0.0, "layer_pairs": PAIRS[1:2]}),
    "frozen, unused, logits": (lambda: frozen_embeddings(with_unused_parameter(vit())), {"kd_weight": 1.0}),
    "all terms, debiased": (vit, {"ot_debiased": True, "kd_weight": 1.0, "l2sp_weight": 0.1}),
    "layers found by transport": (
        lambda: vit(layers=3),
        {
            "layer_pairs": "auto",
            "layer_refresh_steps": 2,
            "layer_samples": 96,
            "max_steps": 3,
            "plan_momentum": 0.9,
            # Not the ResNet: its last block, pooled, is what its head is given, and rounding would decide between two
            # equal layers.
            "teacher": lambda: vit(seed=1),
        },
    ),
    "moments carried over steps": (vit, {"plan_momentum": 0.9, "max_steps": 3}),
    "gaussian": (vit, {"ot_method": "gaussian", "layer_pairs": PAIRS}),
    "a learned cost": (vit, {"ot_cost": "learned", "max_steps": 3}),
    "a learned projector": (vit, PROJECTOR),
    "accumulation": (vit, {"gradient_accumulation_steps": 2}),
    "activation checkpointing": (vit, {CHECKPOINTING: True}),
    "frozen batch normalisation": (lambda: frozen_batch_norm(resnet()), {}),
    "no batch normalisation": (convnext, {}),
    "teachers of some classes": (vit, PARTIAL),
    "uneven last batch": (vit, UNEVEN | {"samples": 52}),
    "last batch of one process alone": (vit, UNEVEN | {"samples": 42}),
    "uneven, a projector": (convnext, UNEVEN | PROJECTOR | {"samples": 58, "max_steps": 2}),
    "uneven, every position": (
        vit,
        UNEVEN | {"samples": 37, "ot_positions": "all", "layer_pairs": ["vit.layers.1=resnet.encoder.stages.0"]},
    ),
    "uneven, label-free": (vit, UNEVEN | {"samples": 42, "task_weight": 0.0}),
    "teachers of some classes, label-free": (vit, PARTIAL | {"task_weight": 0.0}),
}
# With logits; two steps, so that the second sees other rows.
CACHED = {"cached": True, "kd_weight": 1.0, "max_steps": 2}
RUNS["features from a cache"] = (vit, CACHED)
LOCAL = (vit, {"ot_global_batch": False, "ot_weight": 3.0})


def run(folder: Path, make: Callable[[], nn.Module], settings: dict[str, Any], processes: int = 1) -> dict[str, Any]:
    """Trains on the same samples whatever the number of processes; logs, gradients of the last step, weights."""
    accumulation = settings.get("gradient_accumulation_steps", 1)
    teacher = settings.get("teacher", lambda: resnet(seed=1))()
    cached = settings.get("cached", False)
    samples = settings.get("samples", 3 * SAMPLES)
    settings = {name: value for name, value in settings.items() if name not in ("teacher", "cached", "samples")}
    keep, data = KeepGradients(), Images(samples, labelled=settings.get("task_weight") != 0)
    more: dict[str, Any] = {"callbacks": [keep]}
    if cached:  # the processes build it together
        more["teacher_features"], teacher = build(folder / "cache", teacher, data, layers="last"), []
    trainer = make_trainer(
        folder,
        model=make(),
        teacher=teacher,
        data=data,
        per_device_train_batch_size=SAMPLES // processes // accumulation,
        train_sampling_strategy="sequential",
        **{"max_steps": 1, "ot_tolerance": 1e-6, "ot_max_iterations": 5000, **settings},
        trainer=more,
    )
    trainer.train()
    logs = [{k: v for k, v in e.items() if isinstance(v, int | float)} for e in training_logs(trainer)]
    return {"logs": logs, "gradients": keep.gradients, "weights": dict(trainer.model.state_dict())}
