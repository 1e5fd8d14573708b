"""The rows of a head, moved to where the classes of the same name now stand."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from .classes import names_at_their_places, only_counts, pair_names, shown

logger = logging.getLogger("hf_reprot")


def settle_rows(
    student: PreTrainedModel,
    names: Sequence[str],
    before: Sequence[str] | None,
    make: Callable[[PreTrainedConfig], PreTrainedModel],
    load: Callable[[], nn.Module],
    title: str,
) -> list[str] | None:
    """Moves the rows of a loaded student's head to the classes that they belong to by name.

    Rows of classes that the head had by name are moved to their new places, all others start anew.

    Args:
        student: As it was loaded, under the new names; a head of another size is new already.
        names: The new names.
        before: The names that the head was saved with; None where it had none: its rows then stay as they are.
        make: Makes the architecture of a config, with new weights.
        load: Loads the student as it was saved.
        title: What to call the source.

    Returns:
        The classes whose rows are new, with random weights; None where the head is as it was loaded.
    """
    if before is None:
        return None
    same_size = len(before) == len(names)
    if same_size and names_at_their_places(before, names) is not None:
        return None
    rows = {} if only_counts(before) and only_counts(names) else _common(before, names)
    if same_size or rows:
        places = class_dimensions(student.config, make)
        old = student.state_dict() if same_size else load().state_dict()
        old = {name: old[name].detach().clone() for name in places if name in old}
        if same_size:
            fresh = make(copy.deepcopy(student.config)).state_dict()
            _write(student, {name: fresh[name] for name in places})
        _move(student, places, old, rows)
    new = [name for i, name in enumerate(names) if i not in rows]
    if rows:
        kept = shown([names[i] for i in sorted(rows)])
        logger.info("The head of %s keeps the rows of %s, by name; new are: %s.", title, kept, shown(new) or "none")
    else:
        logger.info("The head of %s was for other classes (%s): the student's is new.", title, shown(before))
    return new


def class_dimensions(config: PreTrainedConfig, make: Callable[[PreTrainedConfig], nn.Module]) -> dict[str, int]:
    """The weights of an architecture that have a row for each class, and along which dimension.

    Found by what changes its shape where there is one class more; no weights are made.
    """
    shapes = []
    for more in (0, 1):
        changed = copy.deepcopy(config)
        changed.num_labels = (config.num_labels or 0) + more
        with torch.device("meta"):
            shapes.append({name: value.shape for name, value in make(changed).state_dict().items()})
    found = {}
    for name, shape in shapes[0].items():
        dimensions = [d for d, (n, m) in enumerate(zip(shape, shapes[1][name], strict=True)) if n != m]
        if len(dimensions) == 1 and shape[dimensions[0]] == config.num_labels:
            found[name] = dimensions[0]
    return found


def _common(before: Sequence[str], names: Sequence[str]) -> dict[int, int]:
    """For each new class that the head had, its old row."""
    return {i: row for i, row in enumerate(pair_names(names, before).places) if row is not None}


def _write(student: nn.Module, values: dict[str, Tensor]) -> None:
    state = student.state_dict()
    with torch.no_grad():
        for name, value in values.items():
            state[name].copy_(value)


def _move(student: nn.Module, places: dict[str, int], old: dict[str, Tensor], rows: dict[int, int]) -> None:
    state = student.state_dict()
    with torch.no_grad():
        for name, dimension in places.items():
            if name not in old:
                continue
            for new, row in rows.items():
                state[name].select(dimension, new).copy_(old[name].select(dimension, row))
