"""Fields of a settings class that say what they are: help, choices, and whether one weighs a term of the loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import Field, field, fields
from typing import Any


class _Help(str):
    """A help text that knows more than it says: argparse gets everything else that stands in a field's metadata."""

    facts: Mapping[str, Any]


_FACTS = ("term", "needs", "only_with", "of_loss")


def setting(default: Any, help: str, **metadata: Any) -> Any:
    """A field with what the command line, the docs and a card read of it.

    Args:
        default: Its default; lists and mappings are copied.
        help: One sentence.
        metadata: `choices` (legal values) and whatever else argparse takes; `of_loss` (it belongs to a term of the
            loss); or, of the weight of a term, `term` (what a card calls it, with other settings in braces), `needs`
            ("layers" or "logits" of a teacher), `only_with` (another setting, without which the term takes no part).
    """
    text = _Help(help)
    text.facts = {name: metadata.pop(name) for name in _FACTS if name in metadata}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: default.copy(), metadata={"help": text, **metadata})
    return field(default=default, metadata={"help": text, **metadata})


def _facts(of: Field) -> Mapping[str, Any]:
    return getattr(of.metadata.get("help"), "facts", {})


def weights_of_terms(settings: type, needs: str | None = None) -> dict[str, Mapping[str, Any]]:
    """The fields that weigh a term of the loss, with what `setting` was told of each.

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
