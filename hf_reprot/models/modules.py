"""What can be read off a module: its class, what its `forward` takes, whose memory it holds."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from ..features.architecture import (
    DeclaresLayers,
    config_of,
    head_paths,
    is_timm,
    is_transformers,
    timm_settings,
)
from ..features.paths import core

_UNNAMED = re.compile(r"LABEL_\d+")  # what transformers calls a class without a name


def check_not_shared(student: nn.Module, teacher: nn.Module, title: str | None = None) -> None:
    """Refuses a student and a teacher that hold the same memory: training one would change, or not train, the other.

    Raises:
        ValueError: they share parameters or buffers (named).
    """
    held = {_memory(tensor) for _, tensor in _tensors(teacher)} - {None}
    shared = [name for name, tensor in _tensors(student) if _memory(tensor) in held]
    if shared:
        raise ValueError(
            f"the teacher {title or class_name(teacher)} shares weights with the student ({some(shared)}): a "
            "teacher stays as it is while the student trains. Give a copy (copy.deepcopy(student)) or its hub id"
        )


def class_name(model: nn.Module) -> str:
    """The name of a model's class, also where `fully_shard` has put a class of its own around it."""
    name = type(model).__name__
    return name.removeprefix("FSDP") if isinstance(model, FSDPModule) else name


def base_of(model: Any) -> Any:
    """The model inside PEFT's adapters; any other as it is."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def names_of(model: nn.Module) -> tuple[str, ...]:
    """Names of what a model's `forward` takes, itself or the model inside an adapter or a compiled module."""
    return forward_parameters(model)[0]


def forward_parameters(model: nn.Module) -> tuple[tuple[str, ...], bool]:
    """(names, whether any other name is taken, too)."""
    inner = base_of(getattr(model, "_orig_mod", model))  # torch.compile
    parameters = inspect.signature(inner.forward).parameters.values()
    names = tuple(p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY))
    return names, not names and any(p.kind == p.VAR_KEYWORD for p in parameters)


def is_headless(model: nn.Module) -> bool:
    """Whether a model of transformers or timm gives features and no logits: a backbone."""
    if isinstance(model, DeclaresLayers):  # it stands for a model that is not there
        return False
    inner, _ = core(model)
    if is_timm(inner):
        return getattr(inner, "num_classes", 0) <= 0
    return is_transformers(inner) and not head_paths(model) and "labels" not in names_of(model)


def class_names(model: nn.Module) -> list[str] | None:
    """Names of a head's classes in the order of its logits; None where they are only numbers or not known."""
    return names_of_config(config_of(model))


def names_of_config(config: Any) -> list[str] | None:
    """Names of the classes that a config lists; None where they are only numbers or not known."""
    names = getattr(config, "id2label", None)
    if not names or all(_UNNAMED.fullmatch(str(name)) for name in names.values()):
        return None
    return [str(names[key]) for key in sorted(names, key=int)]


def class_count(model: nn.Module) -> int | None:
    """Number of a head's classes; None where it has no head or does not tell."""
    if is_headless(model):  # the config counts two all the same
        return None
    config = config_of(model)
    stated = getattr(config, "num_labels", None) if hasattr(config, "id2label") else None
    counts = (stated, getattr(model, "num_classes", None))
    return next((int(n) for n in counts if isinstance(n, int) and n > 0), None)


def stated_license(model: nn.Module) -> str | None:
    """The licence that a timm model, or the config of a wrapped one, carries among its input settings."""
    for settings in (getattr(config_of(model), "pretrained_cfg", None), timm_settings(model)):
        if isinstance(settings, Mapping) and isinstance(settings.get("license"), str):
            return settings["license"]
    return None


def some(names: list[str]) -> str:
    """The first of several names, for a message."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


def _memory(tensor: Tensor) -> Any:
    if tensor.device.type == "meta" or tensor.numel() == 0:
        return None
    return (str(tensor.device), tensor.untyped_storage().data_ptr()) if _has_storage(tensor) else id(tensor)


def _has_storage(tensor: Tensor) -> bool:
    try:
        return tensor.untyped_storage().data_ptr() != 0
    except (RuntimeError, NotImplementedError):  # sharded or quantised tensors
        return False
