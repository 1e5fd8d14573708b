"""What errors have in common: the value, what is legal, and the nearest legal choice."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


def check_choice(name: str, value: str, legal: Sequence[str], also: str = "") -> None:
    """Raises a ValueError that names the value, what is legal (`also`: besides the names), and the nearest choice."""
    if value in legal:
        return
    hint = did_you_mean(value, legal, cutoff=0.4)
    raise ValueError(
        f"unknown {name} {value!r}: choose one of {', '.join(map(repr, legal))}{also and f', {also}'}.{hint}"
    )


def did_you_mean(value: object, legal: Iterable[str], *, cutoff: float = 0.6) -> str:
    """The end of an error message: " Did you mean 'x'?" with the legal name nearest to a value, "" where none is near.

    Example:
        >>> did_you_mean("ot_wieght", ["ot_weight", "kd_weight"])
        " Did you mean 'ot_weight'?"
    """
    near = nearest(value, legal, 1, cutoff)
    return f" Did you mean {near[0]!r}?" if near else ""


def nearest(value: object, legal: Iterable[str], count: int, cutoff: float = 0.6) -> list[str]:
    """The legal names that look most like a value, the nearest first; `cutoff` from 0 (all) to 1 (the same only)."""
    return difflib.get_close_matches(str(value), list(legal), n=count, cutoff=cutoff)
