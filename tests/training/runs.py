"""A trainer with settings that tests share: small, on the CPU, without trackers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from hf_reprot import OTTransferConfig, OTTransferTrainer
from tests.toy_models import Images, resnet, vit

# Newer versions of transformers call gradient checkpointing by what it keeps.
CHECKPOINTING = (
    "activation_checkpointing" if hasattr(TrainingArguments, "activation_checkpointing") else "gradient_checkpointing"
)


def make_config(folder: Path, **settings: Any) -> OTTransferConfig:
    defaults = {
        "output_dir": str(folder),
        "use_cpu": True,
        "report_to": "none",
        "per_device_train_batch_size": 8,
        "max_steps": 2,
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
        "learning_rate": 1e-2,
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
    }
    return OTTransferConfig(**{**defaults, **settings})


def make_trainer(folder: Path, *, model=None, teacher=None, data=None, eval_data=None, trainer=None, **settings: Any):
    """A trainer; `trainer` holds arguments of `OTTransferTrainer`, `settings` those of the config."""
    return OTTransferTrainer(
        model=None if model is False else vit() if model is None else model,  # False: from `model_init`
        teacher_model=resnet(seed=1) if teacher is None else teacher,
        args=make_config(folder, **settings),
        train_dataset=Images() if data is None else data,
        eval_dataset=eval_data,
        **(trainer or {}),
    )


def training_logs(trainer: OTTransferTrainer) -> list[dict[str, float]]:
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def weights_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}
