"""What an adapter (PEFT) does not hold of its student: running statistics, and a head that was made new."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from safetensors import safe_open
from torch import Tensor, nn

from ..features.architecture import head_paths
from ..features.paths import core
from ..models.modules import some

logger = logging.getLogger(__name__)

_WEIGHTS = "model.safetensors"


def is_adapter(model: nn.Module) -> bool:
    """Whether a model is a PEFT model, of which an adapter alone is saved."""
    return bool(getattr(model, "peft_config", None)) and hasattr(model, "get_base_model")


def still_modules(student: nn.Module) -> list[nn.Module]:
    """The modules of an adapter's student whose running statistics must stand still while it trains.

    A batch norm counts what it sees in training, also with its weights frozen, and an adapter does not hold the counts:
    the saved student would be another one. In evaluation mode such a module uses the base model's statistics, in
    training and after loading alike. Modules in `modules_to_save` are saved whole, and train.

    Args:
        student: The unwrapped student.

    Returns:
        Modules that have a floating-point buffer of their own (saved in a checkpoint, not in the adapter); none for a
        student that is no adapter.
    """
    if not is_adapter(student):
        return []
    saved = _saved(student)
    found = [
        (path, module)
        for path, module in _used(student)
        if any(_moves(module, name, buffer, saved) for name, buffer in module.named_buffers(recurse=False))
    ]
    if found:
        names = list(dict.fromkeys(_ending(path) for path, _ in found))
        logger.warning(
            "An adapter does not hold running statistics: %d modules of the student (%s) keep those of the base model "
            "and run in evaluation mode while the adapter trains. To train and save them: modules_to_save=%s besides "
            "what is in it.",
            len(found),
            some([path for path, _ in found]),
            names,
        )
    return [module for _, module in found]


def check_head(student: nn.Module) -> None:
    """Refuses an adapter whose head is neither in it nor in the checkpoint that it goes on.

    Args:
        student: The unwrapped student, which trains on logits.

    Raises:
        ValueError: such a head; the message gives the `modules_to_save` to write.
    """
    if not is_adapter(student):
        return
    saved, start = _saved(student), core(student)[1]
    lost: list[str] = []
    for path in head_paths(student):
        for name, tensor in student.get_submodule(path).named_parameters():
            full = f"{path}.{name}"
            if ".original_module." in f".{full}" or _memory(tensor) in saved:
                continue
            plain = full.removeprefix(start).replace(".base_layer.", ".")
            if not _in_checkpoint(student, plain, tensor):
                lost.append(path)
                break
    if lost:
        wanted = [_shortest(student, path) for path in lost]
        raise ValueError(
            f"the adapter does not hold the student's head ({', '.join(lost)}), and no checkpoint of its base model "
            "is known to hold these weights: after loading, the head would be another, random one. Write "
            f"modules_to_save={wanted} in the adapter's config"
            + (" (it then leaves the head out of target_modules)" if _is_targeted(student, lost) else "")
            + ", or set task_weight=0 and kd_weight=0 to train the representation alone"
        )


def _used(student: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules that take part in a forward pass: PEFT keeps the originals of what it saves whole."""
    for path, module in student.named_modules():
        if ".original_module." not in f".{path}.":
            yield path, module


def _saved(student: Any) -> set[int]:
    """Memory of the tensors that saving the student writes."""
    from peft import get_peft_model_state_dict  # an optional dependency

    # "auto" would ask the Hub whether an embedding has grown
    states = [
        get_peft_model_state_dict(student, adapter_name=name, save_embedding_layers=False)
        for name in student.peft_config
    ]
    return {_memory(tensor) for state in states for tensor in state.values()}


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr() + int(tensor.storage_offset()) * tensor.element_size()


def _moves(module: nn.Module, name: str, buffer: Tensor, saved: set[int]) -> bool:
    """Whether training may change a buffer that a checkpoint has and the adapter has not."""
    kept = name not in module._non_persistent_buffers_set
    return kept and buffer.is_floating_point() and buffer.device.type != "meta" and _memory(buffer) not in saved


def _ending(path: str) -> str:
    """The last name in a path, with the one before it where it is a number: PEFT compares the ends of paths."""
    *around, last = path.split(".")
    return f"{around[-1]}.{last}" if last.isdigit() and around else last


def _is_targeted(student: nn.Module, heads: Sequence[str]) -> bool:
    return any(hasattr(module, "base_layer") for path in heads for module in student.get_submodule(path).modules())


def _shortest(student: nn.Module, path: str) -> str:
    """The shortest end of a path that PEFT, which compares ends, takes for this module alone."""
    inner, start = core(student)
    paths = [name for name, _ in _used(inner)]
    segments = path.removeprefix(start).split(".")
    for count in range(1, len(segments)):
        end = ".".join(segments[-count:])
        if sum(name.endswith(end) for name in paths) == 1:
            return end
    return ".".join(segments)


def _in_checkpoint(student: Any, name: str, tensor: Tensor) -> bool:
    """Whether the checkpoint that the base model was loaded from holds a parameter with the values that it has."""
    if getattr(core(student)[0], "weights_from", None) == "scratch":
        return False
    config = next(iter(student.peft_config.values()))
    sources = (config.base_model_name_or_path, getattr(getattr(student, "config", None), "_name_or_path", None))
    for source in dict.fromkeys(source for source in sources if source):
        for key in (name, f"timm_model.{name}"):
            stored = _stored(str(source), key, config.revision)
            if stored is not None:
                return stored.shape == tensor.shape and torch.equal(stored.to(tensor), tensor.detach())
    return False


def _stored(source: str, key: str, revision: str | None) -> Tensor | None:
    """One tensor of a checkpoint in a folder or, as it was loaded, in the Hub's cache; None where there is none."""

    def file(name: str) -> Path | None:
        if Path(source).is_dir():
            return Path(source) / name
        found = try_to_load_from_cache(source, name, revision=revision) if source.count("/") <= 1 else None
        return Path(found) if isinstance(found, str) else None

    index, weights = file(_WEIGHTS + ".index.json"), file(_WEIGHTS)
    if index is not None and index.exists():
        part = json.loads(index.read_text())["weight_map"].get(key)
        weights = file(part) if part else None
    if weights is None or not weights.exists():
        return None
    with safe_open(weights, "pt") as tensors:
        return tensors.get_tensor(key) if key in tensors.keys() else None  # noqa: SIM118 (it is no mapping)
