"""How big a model may be that a config from someone else describes: looked at before it is built."""

from __future__ import annotations

import copy
import math
import os
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig

from ..utils.safetensors_only import Shapes

MOST_LAYERS = 4096
LARGEST_NUMBER = 2**24  # wider or longer than any layer is
_DEPTHS = re.compile(r"(^|_)(num_)?(hidden_)?(layers?|depths?|blocks?|stages?)($|_)|^n_layer$")
# Numbers that are no sizes.
_NO_SIZES = re.compile(r"(_id|_ids|seed|version|_index|_size_in_bytes|total_size)$|^_")
_SPARE = 2**26  # parameters that a checkpoint may lack: a new head for many classes


def check_numbers(config: Any, *, source: str) -> None:
    """Refuses a config with numbers that no model has: building it would take all memory, or forever.

    Args:
        config: The content of a config.json.
        source: What it belongs to, for the message.

    Raises:
        ValueError: more than 4,096 layers, or another size above 2^24, or a number that is none.
    """
    left: list[tuple[str, Any]] = [("", config)]
    while left:
        name, value = left.pop()
        if isinstance(value, Mapping):
            left += [(str(key), item) for key, item in value.items() if key not in ("label2id", "id2label")]
        elif isinstance(value, list | tuple):
            left += [(name, item) for item in value]
        elif isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"the config of {source!r} says {name}={value}: it must be a finite number")
        elif isinstance(value, int) and not isinstance(value, bool) and not _NO_SIZES.search(name):
            most = MOST_LAYERS if _DEPTHS.search(name) else LARGEST_NUMBER
            if abs(value) > most:
                raise ValueError(f"the config of {source!r} says {name}={value:,}: at most {most:,} can be built")


def check_size(auto_class: Any, config: PreTrainedConfig, shapes: Shapes, *, source: str) -> None:
    """Refuses a config that describes a far larger model than its weights are.

    Raises:
        ValueError: it has more than twice as many parameters.
    """
    there = sum(math.prod(shape) for shape in shapes.values())
    wanted = _parameters(auto_class, config)
    if wanted is not None and wanted > 2 * there + _SPARE:
        raise ValueError(
            f"the config of {source!r} describes a model of {wanted:,} parameters, and its weights are {there:,}: it "
            "is not that of the weights"
        )


def check_memory(auto_class: Any, config: PreTrainedConfig, *, source: str) -> None:
    """Refuses a config whose parameters alone are more than this machine's memory.

    Raises:
        ValueError: they are.
    """
    wanted = _parameters(auto_class, config)
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None
    if wanted is not None and there is not None and 4 * wanted > there:
        raise ValueError(
            f"the config of {source!r} describes a model of {wanted:,} parameters, {4 * wanted / 1e9:,.0f} GB, and "
            f"this machine has {there / 1e9:,.0f} GB of memory"
        )


def _parameters(auto_class: Any, config: PreTrainedConfig) -> int | None:
    """Number of parameters, counted without making one; None where that does not work for the architecture."""
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            model: nn.Module = auto_class.from_config(copy.deepcopy(config))
    except (OverflowError, MemoryError) as error:
        raise ValueError(f"a model with these sizes cannot be built: {error}") from None
    except Exception as error:
        if "numel" in str(error) or "overflow" in str(error).lower() or "too large" in str(error):
            raise ValueError(f"a model with these sizes cannot be built: {error}") from None
        return None  # what is wrong with it, loading it will tell
    return sum(parameter.numel() for parameter in model.parameters())
