"""The door for what others wrote: metadata of teachers, data and folders becomes plain text, an id or an address, or is
left out. Nothing else of it reaches a card, a record or a terminal."""

from __future__ import annotations

import re
import unicodedata
from typing import Any

LONGEST = 200  # characters of a name

REPO_ID = re.compile(r"(?:[A-Za-z0-9][\w.-]{0,95}/)?[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_URL = re.compile(r"https://[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?(?::\d{1,5})?(?:/[\w.~%/+=&?#@:,;-]*)?", re.ASCII)
_WORD = re.compile(r"[a-z0-9][a-z0-9-]{0,63}", re.ASCII)
_PICTURE = re.compile(r"images/[\w-]{1,80}\.png", re.ASCII)
_REVISION = re.compile(r"[\w.-][\w./-]{0,199}", re.ASCII)
# What moves the cursor or turns the reading direction, and halves of characters, which no file can hold.
_UNSEEN = {"Cc", "Cs", "Co", "Cn", "Zl", "Zp"}
_TURNING = {*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F, 0x061C, 0xFEFF}


def clean(text: str) -> str:
    """A text without control characters, changes of reading direction and broken characters; lines stay lines."""
    return "".join(
        c for c in text if c in "\n\t" or (unicodedata.category(c) not in _UNSEEN and ord(c) not in _TURNING)
    )


def text_of(value: Any, longest: int = LONGEST) -> str | None:
    """One line of text from a value that should be text; None where it is none, or is empty."""
    if not isinstance(value, str):
        return None
    text = " ".join(clean(value.replace("\x00", " ")).split())
    return (text if len(text) <= longest else text[: longest - 3].rstrip() + "...") or None


def url_of(value: Any) -> str | None:
    """An address from a value that should be one: https, a host, a path without anything that Markdown or HTML reads;
    None for any other."""
    if isinstance(value, str) and len(value) <= 500 and _URL.fullmatch(value.strip()):
        return value.strip()
    return None


def repo_of(value: Any) -> str | None:
    """The id of a repository, "name" or "owner/name"; None for anything else."""
    return value if isinstance(value, str) and REPO_ID.fullmatch(value) and ".." not in value else None


def revision_of(value: Any) -> str | None:
    """A commit, branch or tag; None for anything else."""
    return value if isinstance(value, str) and _REVISION.fullmatch(value) and ".." not in value else None


def word_of(value: Any) -> str | None:
    """A word of the Hub's vocabulary, such as a task or a language: small letters, digits and dashes; None else."""
    return value if isinstance(value, str) and _WORD.fullmatch(value) else None


def picture_of(value: Any) -> str | None:
    """The place of a card's picture in the student's folder; None for any other place."""
    return value if isinstance(value, str) and _PICTURE.fullmatch(value) else None


def escaped(value: Any) -> str:
    """Text from outside as Markdown that shows it and does nothing else: no link, no heading, no HTML, no formula."""
    text = re.sub(r"([\\`*\[\]<>&$~])", r"\\\1", " ".join(clean(str(value)).split()))
    text = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)  # at the edge of a word; within one it means nothing
    text = re.sub(r"^(#{1,6}(?=\s|$)|[+-](?=\s|$)|=+$|-+$)", r"\\\1", text)  # what begins a heading, a list, a rule
    text = re.sub(r"^(\d+)([.)])(?=\s|$)", r"\1\\\2", text)
    # GitHub's Markdown makes links of bare addresses.
    text = re.sub(r"(?i)\b(https?|ftp|mailto|xmpp):", r"\1\\:", text)
    text = re.sub(r"(?i)\b(www)\.", r"\1\\.", text)
    return re.sub(r"@(?=[\w-]+\.[\w.-]*[a-z])", r"\\@", text)
