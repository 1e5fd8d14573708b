"""Fields of a settings class that say what they are: help, choices, and whether one weighs a term of the loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, fields
from typing import Any


def setting(default: Any, help: str, **metadata: Any) -> Any:
    """A field with what the command line, the docs and a card read of it.

    Args:
        default: Its default; lists and mappings are copied.
        help: One sentence.
        metadata: `choices` (legal values); `of_loss` (it belongs to a term of the loss); or, of the weight of a term,
            `term` (what a card calls it, with other settings in braces), `needs` ("layers" or "logits" of a teacher),
            `only_with` (another setting, without which the term takes no part).
    """
    if isinstance(default, list | dict):
        return field(default_factory=lambda: default.copy(), metadata={"help": help, **metadata})
    return field(default=default, metadata={"help": help, **metadata})


def weights_of_terms(settings: type, needs: str | None = None) -> dict[str, Mapping[str, Any]]:
    """The fields that weigh a term of the loss, with their metadata.

    Args:
        settings: A dataclass.
        needs: Only terms that need this of a teacher: "layers" or "logits".
    """
    found = {f.name: f.metadata for f in fields(settings) if "term" in f.metadata}
    return {name: said for name, said in found.items() if needs is None or said.get("needs") == needs}


def settings_of_loss(settings: type) -> list[str]:
    """The fields that are about the loss, in their order: weights and what belongs to terms."""
    return [f.name for f in fields(settings) if "term" in f.metadata or f.metadata.get("of_loss")]


def weight_counts(settings: type, weight: str, values: Mapping[str, Any]) -> bool:
    """Whether the term with this weight takes part.

    Args:
        settings: A dataclass.
        weight: The field that weighs it.
        values: Values by name; a weight of None is one that is still to be chosen, above 0.
    """
    other = weights_of_terms(settings)[weight].get("only_with")
    value = values.get(weight)
    return (value is None or value > 0) and (other is None or values.get(other) is not None)
