"""Fields of a settings class that say what they are: help, choices, and whether one weighs a term of the loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import Field, field, fields
from typing import Any


class Help(str):
    """A help text that carries what else is known of its field: parsers hand all other metadata to argparse."""

    facts: Mapping[str, Any]

    def __new__(cls, text: str, **facts: Any) -> Help:
        """The text, with facts beside it."""
        made = super().__new__(cls, text)
        made.facts = facts
        return made


def setting(default: Any, help: str, choices: list[str] | None = None, **facts: Any) -> Any:
    """A field with what the command line, the docs and a card read of it.

    Args:
        default: Its default; lists and mappings are copied.
        help: One sentence.
        choices: Its legal values, where they are few.
        facts: `of_loss` (it belongs to a term of the loss); or, of the weight of a term, `term` (what a card calls it,
            with other settings in braces), `needs` ("layers" or "logits" of a teacher), `only_with` (another setting,
            without which the term takes no part).
    """
    metadata: dict[str, Any] = {"help": Help(help, **facts)} | ({"choices": choices} if choices is not None else {})
    if isinstance(default, list | dict):
        return field(default_factory=lambda: default.copy(), metadata=metadata)
    return field(default=default, metadata=metadata)


def _facts(of: Field) -> Mapping[str, Any]:
    return getattr(of.metadata.get("help"), "facts", {})


def weights_of_terms(settings: type, needs: str | None = None) -> dict[str, Mapping[str, Any]]:
    """The fields that weigh a term of the loss, with the facts of each.

    Args:
        settings: A dataclass.
        needs: Only terms that need this of a teacher: "layers" or "logits".
    """
    found = {f.name: _facts(f) for f in fields(settings) if "term" in _facts(f)}
    return {name: said for name, said in found.items() if needs is None or said.get("needs") == needs}


def settings_of_loss(settings: type) -> list[str]:
    """The fields that are about the loss, in their order: weights and what belongs to terms."""
    return [f.name for f in fields(settings) if "term" in _facts(f) or _facts(f).get("of_loss")]


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
