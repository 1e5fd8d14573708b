"""Keeps tokens and places on a user's machine out of everything that is published or shown."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path, PureWindowsPath
from typing import Any

from huggingface_hub import get_token

from ..utils.hub_tokens import token_in, without_tokens

REMOVED = "<removed>"

_BEARER = re.compile(r"(?i)\bbearer\s+[^\s'\"]+")
# A path from the root, the home or a drive, inside a text. What follows "://", a word or a dot is none.
_PATH = re.compile(r"(?<![\w.:/\\@~<-])(?:~\w*|[A-Za-z]:)?[/\\](?:[\w.+@~-]+[/\\])+(?P<last>[\w.+@-]*)[/\\]?")
_FILE_URL = re.compile(r"\bfile://[^\s'\"]*?(?P<last>[\w.+@-]*)(?=[\s'\"]|$)")


def redact(text: str, secrets: Iterable[str | None] = ()) -> str:
    """A text without tokens: those that look like one, the one that is logged in, and `secrets`."""
    known = {secret for secret in (*secrets, _logged_in_token()) if secret and len(secret.strip()) >= 6}
    for secret in sorted(known, key=len, reverse=True):
        text = text.replace(secret, REMOVED).replace(secret.strip(), REMOVED)
    return _BEARER.sub(f"Bearer {REMOVED}", without_tokens(text, REMOVED))


def holds_token(text: str) -> bool:
    """Whether a text holds the token that is logged in, or what looks like one of the Hub's."""
    own = _logged_in_token()
    return token_in(text) or bool(own and own in text)


def without_paths(text: str) -> str:
    """A text in which every absolute path is its last part only."""
    stripped = text.strip()
    if os.path.isabs(os.path.expanduser(stripped)) and "\n" not in stripped:
        return folder_name(stripped)
    if re.match(r"[A-Za-z]:[/\\]", stripped):
        return PureWindowsPath(stripped).name
    return _PATH.sub(
        lambda m: m["last"] or re.split(r"[/\\]", m[0].rstrip("/\\"))[-1],
        _FILE_URL.sub(lambda m: m["last"] or "...", text),
    )


def folder_name(path: str | os.PathLike) -> str:
    """The last part of a path, also of "." and "..": all that is told of a place on disk."""
    return Path(path).expanduser().resolve().name or "folder"


def public(value: Any, secrets: Iterable[str | None] = ()) -> Any:
    """A JSON value with `redact` and `without_paths` applied to every text in it, keys included."""
    secrets = tuple(secrets)
    if isinstance(value, str):
        return without_paths(redact(value, secrets))
    if isinstance(value, dict):
        return {public(str(key), secrets): public(item, secrets) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [public(item, secrets) for item in value]
    return value


def _logged_in_token() -> str | None:
    try:
        return get_token()
    except Exception:  # a broken token file is a matter for the push, not for a text
        return None
