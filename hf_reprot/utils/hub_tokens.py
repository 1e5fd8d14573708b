"""What a token of the Hub looks like: the one pattern by which texts are searched for them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# `hf_` followed by a word of a name is none.
TOKEN = re.compile(r"\bhf_oauth_[\w.-]{20,}|\b(?:hf|api_org)_[A-Za-z0-9]{20,}\b")


def without_tokens(text: str, replacement: str) -> str:
    """A text with something else in the place of each token."""
    return TOKEN.sub(replacement, text)


def token_in(value: Any) -> bool:
    """Whether a value of JSON's kinds holds a token, in a text or as a name."""
    if isinstance(value, str):
        return TOKEN.search(value) is not None
    if isinstance(value, Mapping):
        return any(token_in(key) or token_in(item) for key, item in value.items())
    return isinstance(value, list | tuple) and any(map(token_in, value))
