"""One error for every argument that takes one of a few names."""

from __future__ import annotations

import difflib
from collections.abc import Sequence


def check_choice(name: str, value: str, legal: Sequence[str]) -> None:
    """Raises a ValueError that names the value, what is legal, and the nearest legal choice."""
    if value in legal:
        return
    near = difflib.get_close_matches(str(value), legal, n=1, cutoff=0.4)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"unknown {name} {value!r}: choose one of {', '.join(map(repr, legal))}.{hint}")
