"""The settings in groups, for help and docs: those that matter first, then by what they are about."""

from __future__ import annotations

import re
from dataclasses import MISSING, Field, dataclass, fields
from typing import Any

from .recipe import Recipe
from .transfer import TransferSettings

OTHER = "Other settings"
MODELS_AND_DATA = "Say which models and which data"
# The ten to know first. What transformers says of its own is longer than a line.
FIRST = {
    "student": None,
    "teacher": None,
    "dataset": None,
    "output_dir": "Folder for the student, its checkpoints and its card.",
    "num_train_epochs": "Passes over the training data.",
    "learning_rate": "Initial learning rate; new students want a larger one, such as 1e-3.",
    "task_weight": None,
    "ot_weight": None,
    "kd_weight": None,
    "fit_head": None,
}


@dataclass(frozen=True)
class Row:
    """A setting as help shows it."""

    name: str
    default: Any
    help: str


def transfer_groups() -> dict[str, list[str]]:
    """The settings of `TransferSettings` by the headings of its docstring; those that it does not name come last."""
    left = [f.name for f in fields(TransferSettings)]
    groups: dict[str, list[str]] = {}
    title = OTHER
    for line in (TransferSettings.__doc__ or "").splitlines():
        if heading := re.match(r"\s*> Parameters that (.*)", line):
            title = heading[1][:1].upper() + heading[1][1:].rstrip(":")
            continue
        entry = re.match(r"        ([a-z0-9_, ]+)[:,]", line)
        for name in re.split(r",\s*", entry[1]) if entry else ():
            if name in left:
                groups.setdefault(title, []).append(name)
                left.remove(name)
    if left:
        groups[OTHER] = left
    return groups


def rows(settings: type) -> dict[str, Row]:
    """Each field of a dataclass by its name."""
    return {f.name: Row(f.name, default_of(f), f.metadata.get("help", "")) for f in fields(settings)}


def default_of(field: Field) -> Any:
    """The default of a field."""
    return field.default_factory() if field.default_factory is not MISSING else field.default


def help_groups(defaults: type | None) -> dict[str, list[Row]]:
    """All settings of a recipe and of the transfer, in groups: the first ten, models and data, and the transfer's.

    Args:
        defaults: A dataclass that has transformers' settings, too; None: their defaults are not shown.
    """
    known = rows(TransferSettings) | rows(Recipe)
    theirs = rows(defaults) if defaults is not None else {}
    first = []
    for name, text in FIRST.items():
        row = known.get(name) or theirs.get(name) or Row(name, "", "")
        first.append(Row(name, row.default, text or row.help))
    groups = {"The first to know": first, MODELS_AND_DATA: list(rows(Recipe).values())}
    groups |= {title: [known[name] for name in names] for title, names in transfer_groups().items()}
    return {title: [row for row in group if group is first or row.name not in FIRST] for title, group in groups.items()}
