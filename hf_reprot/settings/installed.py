"""The settings of the installed transformers, read from its source: importing them takes torch, and seconds."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import field, make_dataclass
from enum import Enum
from pathlib import Path
from types import NoneType
from typing import Any, Literal, Optional, Union

_TYPES: dict[str, Any] = {kind.__name__: kind for kind in (bool, dict, float, int, list, str, tuple)}
_TYPES |= {"Any": Any, "Literal": Literal, "Optional": Optional, "Union": Union}


class UnreadableError(Exception):
    """transformers' source is not written as it was when this was: its own classes have to tell."""


class Unknown(str):
    """Stands for a type that is not found: every text may be one."""


def installed_parser() -> type:
    """transformers' `HfArgumentParser`, from its own file alone.

    Raises:
        UnreadableError: transformers is not installed, or the file needs other parts of it.
    """
    spec = importlib.util.spec_from_file_location("hf_reprot_argument_parser", _folder() / "hf_argparser.py")
    if spec is None or spec.loader is None:
        raise UnreadableError("transformers/hf_argparser.py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        return module.HfArgumentParser
    except (ImportError, OSError, AttributeError) as error:
        raise UnreadableError("transformers/hf_argparser.py") from error


def installed_arguments() -> type:
    """A dataclass with the fields of `transformers.TrainingArguments`: names, types, choices, and defaults as written.

    What is not written down as a plain value (a default that depends on the machine, a type from another library) is
    None, or takes any text: what this class refuses, transformers refuses, not the other way round.

    Raises:
        UnreadableError: transformers is not installed, or its settings are not a single dataclass with annotations.
    """
    tree = _tree(_folder() / "training_args.py")
    found = next((n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "TrainingArguments"), None)
    if found is None or found.bases or found.keywords:
        raise UnreadableError("TrainingArguments inherits settings")
    members: list[Any] = [n for n in found.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)]
    names = {name for n in members for name in _names(n.annotation)}
    known = _TYPES | {name: _enum(tree, name) or Unknown for name in names - set(_TYPES)}
    try:
        fields = [(n.target.id, _kind(n.annotation, known), _default(n.value)) for n in members]
    except (TypeError, ValueError) as error:
        raise UnreadableError("TrainingArguments has types that cannot be read") from error
    return make_dataclass("TrainingArguments", fields)


def _folder() -> Path:
    spec = importlib.util.find_spec("transformers")
    if spec is None or spec.origin is None:
        raise UnreadableError("transformers is not installed as files")
    return Path(spec.origin).parent


def _tree(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_text("utf-8"))
    except (OSError, SyntaxError, UnicodeDecodeError) as error:
        raise UnreadableError(str(path)) from error


def _names(annotation: ast.expr) -> Iterator[str]:
    return (n.id for n in ast.walk(annotation) if isinstance(n, ast.Name))


def _kind(annotation: ast.expr, known: Mapping[str, Any]) -> Any:
    """The type that an annotation means."""
    if isinstance(annotation, ast.Constant) and annotation.value is None:
        return None
    if isinstance(annotation, ast.Name):
        return known[annotation.id]
    if isinstance(annotation, ast.BinOp) and isinstance(annotation.op, ast.BitOr):
        return _kind(annotation.left, known) | _kind(annotation.right, known)
    if isinstance(annotation, ast.Subscript):
        outer, inner = _kind(annotation.value, known), annotation.slice
        if outer is Literal:
            return outer[ast.literal_eval(inner)]
        parts = inner.elts if isinstance(inner, ast.Tuple) else [inner]
        return outer[tuple(_kind(part, known) for part in parts)]
    return Unknown


def _default(value: ast.expr | None) -> Any:
    """What stands behind a field's annotation, as a field that has a default."""
    if not isinstance(value, ast.Call):
        return field(default=_plain(value))
    given = {keyword.arg: keyword.value for keyword in value.keywords}
    metadata = given.get("metadata")
    said = {}
    if isinstance(metadata, ast.Dict):
        said = {_plain(k): _plain(v) for k, v in zip(metadata.keys, metadata.values, strict=True) if k is not None}
    if "aliases" in said and said["aliases"] is None:
        raise UnreadableError(ast.unparse(value))
    said = {name: text for name, text in said.items() if text is not None and name != "help"}
    factory = given.get("default_factory")
    if factory is not None:
        made = {"list": list, "dict": dict}.get(getattr(factory, "id", ""), NoneType)
        return field(default_factory=made, metadata=said)
    return field(default=_plain(given.get("default")), metadata=said)


def _plain(value: ast.expr | None) -> Any:
    """A value that is written down; None for what has to be computed."""
    try:
        return None if value is None else ast.literal_eval(value)
    except ValueError:
        return None


def _enum(tree: ast.Module, name: str) -> type[Enum] | None:
    """An enumeration of texts that a file of transformers defines, or imports from a file beside it."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return _enum_of(node)
        if isinstance(node, ast.ImportFrom) and node.level == 1 and any(a.name == name for a in node.names):
            path = _folder().joinpath(*(node.module or "").split(".")).with_suffix(".py")
            return _enum(_tree(path), name) if path.is_file() else None
    return None


def _enum_of(node: ast.ClassDef) -> type[Enum] | None:
    if not any("Enum" in ast.unparse(base) for base in node.bases):
        return None
    members = {}
    for statement in node.body:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            value = _plain(statement.value)
            if not isinstance(value, str):
                return None
            members[statement.targets[0].id] = value
    make: Any = Enum  # with names: a class
    return make(node.name, members) if members else None
