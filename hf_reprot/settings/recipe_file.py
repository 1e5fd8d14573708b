"""Recipe files: settings in YAML, which may come from anyone, read as plain data of bounded size."""

from __future__ import annotations

import contextlib
import json
import math
import types
import typing
from collections.abc import Iterable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import yaml

from ..utils.hub_tokens import token_in, without_tokens
from ..utils.messages import did_you_mean
from ..utils.strict_json import UnclearJson, check_json

LARGEST = 1_000_000  # bytes
DEEPEST = 20  # mappings and lists inside each other
# What a file from someone else must not set, wherever in it.
_BY_HAND = {
    "trust_remote_code": "runs code that comes with a repository",
    "cache_dir": "writes outside of the output folder",
}
_OFF = ("none", "false", "0", "no", "")
_WORDS = {True: "on, yes or true", False: "off, no or false"}


class _RecipeError(ValueError):
    """A mistake in a recipe, said already."""


def read_recipe_file(path: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings in a recipe file.

    A recipe is data: it makes no objects, refers to no other part of itself (so that a short text cannot stand for a
    huge one), and neither switches on code that comes with a repository nor names a folder to write to beside the
    output: these are for the person who runs it, on the command line.

    Args:
        path: A YAML file: a mapping of settings.
        settings: The legal names and their types, as `typing.get_type_hints` gives them.

    Raises:
        ValueError: the file cannot be read, is not YAML or not a mapping; names a setting that does not exist (the
            nearest one is named) or gives it a value of another type, or twice; holds an infinite number or a token of
            the Hub; is too large or too deep.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "run.yaml"
        >>> _ = file.write_text("student: resnet10t\\nmax_steps: 3\\n")
        >>> read_recipe_file(file, {"student": str, "max_steps": int})
        {'student': 'resnet10t', 'max_steps': 3}
    """
    text = _text(path)
    try:
        _check_shape(path, yaml.parse(text, Loader=yaml.SafeLoader))
        _check_names(path, yaml.compose(text, Loader=yaml.SafeLoader))
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"the recipe {path} is not YAML: {_hidden(' '.join(str(error).split()))}") from None
    except _RecipeError:
        raise
    except (ValueError, OverflowError) as error:  # a date that is none, a number of thousands of digits
        raise ValueError(f"the recipe {path} holds a value that cannot be read: {_hidden(str(error))}") from None
    if token_in(content) or (isinstance(content, dict) and content.get("hub_token")):
        raise ValueError(
            f"the recipe {path} holds a token of the Hub: a recipe is shared. Take it out and revoke the token; "
            "runs have theirs from `hf auth login` or the environment (HF_TOKEN)"
        )
    if not isinstance(content, dict):
        raise ValueError(f"the recipe {path} must be a mapping of settings, got {type(content).__name__}")
    for name, value in content.items():
        if name not in settings:
            hint = did_you_mean(name, settings)
            raise ValueError(f"the recipe {path} names {_short(name)}, which is no setting.{hint}")
        if _is_endless(value):
            raise ValueError(f"the recipe {path} gives {name} the value {_short(value)}: it takes finite numbers")
        for part in _json_in(value):
            try:
                check_json(part)
            except UnclearJson as error:
                raise ValueError(
                    f"the recipe {path} gives {name} JSON that is unclear: {_hidden(str(error))}"
                ) from None
        if not _fits(value, settings[name]):
            raise ValueError(
                f"the recipe {path} gives {name} the value {_short(value)}, and it takes "
                f"{_kinds(settings[name])}{_hint(value, settings[name])}"
            )
        asked = _asks_for(name, value)
        if asked is not None:
            raise ValueError(
                f"the recipe {path} sets {asked}, which {_BY_HAND[asked]}: that is for the person who runs it to say, "
                f"on the command line (--{name})"
            )
    return content


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(LARGEST + 1)
    except OSError as error:
        raise ValueError(f"the recipe {path} cannot be read: {error.strerror}") from error
    if len(raw) > LARGEST:
        raise ValueError(f"the recipe {path} is larger than {LARGEST:,} bytes: it holds settings, not data")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"the recipe {path} is not text in UTF-8") from error


def _check_shape(path: Path, events: Iterable[yaml.Event]) -> None:
    """Looks at the text piece by piece, before anything is made of it."""
    depth = 0
    for event in events:
        if isinstance(event, yaml.AliasEvent):
            raise _RecipeError(
                f"the recipe {path} repeats a part of itself by a reference (*{event.anchor}): write the part again"
            )
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > DEEPEST:
            raise _RecipeError(f"the recipe {path} has more than {DEEPEST} lists and mappings inside each other")


def _check_names(path: Path, node: yaml.Node | None) -> None:
    """Refuses a name that stands twice in a mapping, where YAML would take the last one without a word."""
    left = [node]
    while left:
        node = left.pop()
        if isinstance(node, yaml.SequenceNode):
            left += node.value
        elif isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key, value in node.value:
                left += [key, value]
                if not isinstance(key, yaml.ScalarNode):
                    continue  # YAML has a word for it
                line = key.start_mark.line + 1
                if key.tag == "tag:yaml.org,2002:merge":
                    raise _RecipeError(f"the recipe {path} merges mappings (<<, line {line}): write them out")
                if key.value in seen:
                    raise _RecipeError(f"the recipe {path} gives {_hidden(key.value)} twice (line {line}): keep one")
                seen.add(key.value)


def _is_endless(value: Any) -> bool:
    """Whether a number that is infinite, or none, stands anywhere in a value."""
    if isinstance(value, Mapping):
        return any(map(_is_endless, value.values()))
    if isinstance(value, list):
        return any(map(_is_endless, value))
    return isinstance(value, float) and not math.isfinite(value)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value of YAML is of a setting's type; text goes anywhere, since a flag of the command line is text."""
    if hint is Any or isinstance(value, str):
        return True
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in typing.get_args(hint))
    if origin is typing.Literal:
        return value in typing.get_args(hint)
    kind = origin or hint
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if kind is list:
        options = typing.get_args(hint) or (Any,)
        return isinstance(value, list) and all(_fits(item, options[0]) for item in value)
    return isinstance(kind, type) and isinstance(value, kind)


def _kinds(hint: Any) -> str:
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", dict: "a mapping"}
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(_kinds(option) for option in typing.get_args(hint)))
    if hint is type(None):
        return "null"
    kind = typing.get_origin(hint) or hint
    if kind is list:
        return "a list"
    if isinstance(kind, type) and issubclass(kind, Enum):
        return "text"
    return names.get(kind, str(hint))


def _hint(value: Any, hint: Any) -> str:
    """YAML reads some words as truth values: `save_strategy: no`."""
    word = isinstance(value, bool) and "text" in _kinds(hint)
    return f" (YAML reads {_WORDS[value]} so: put the word in quotes)" if word else ""


def _json_in(value: Any) -> list[str]:
    """The JSON objects that stand as text anywhere in a value, as on the command line."""
    if isinstance(value, Mapping):
        return [text for item in value.values() for text in _json_in(item)]
    if isinstance(value, list):
        return [text for item in value for text in _json_in(item)]
    return [value] if isinstance(value, str) and value.lstrip().startswith("{") else []


def _asks_for(name: str, value: Any) -> str | None:
    """The name of what only a person may set, where it stands in a setting with a value that switches it on."""
    left = [{name: value}]
    while left:
        item = left.pop()
        if isinstance(item, str) and _json_in(item):
            with contextlib.suppress(ValueError, RecursionError):
                item = json.loads(item)
        if isinstance(item, Mapping):
            for key in _BY_HAND:
                if str(item.get(key)).lower() not in _OFF:
                    return key
            left += item.values()
        elif isinstance(item, list):
            left += item
    return None


def _hidden(text: str) -> str:
    return without_tokens(text, "<token>")


def _short(value: Any) -> str:
    text = _hidden(repr(value))
    return text if len(text) <= 60 else f"{text[:60]}..."
