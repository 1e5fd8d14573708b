"""Flags and recipe files into settings: for a run, and, without torch, to refuse mistakes before anything is loaded."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NoReturn, get_args, get_type_hints

from ..utils.messages import did_you_mean
from ..utils.strict_json import UnclearJson, check_json
from .installed import Unknown, UnreadableError, installed_arguments, installed_parser
from .recipe import Recipe
from .recipe_file import read_recipe_file
from .transfer import TransferSettings

__all__ = ["check_early", "early_config", "given", "legal_names", "parse_settings"]


def parse_settings(
    parser: type, config: type, arguments: Sequence[str], recipe_file: str | Path | None = None
) -> tuple[Recipe, Any]:
    """Reads a recipe file and flags, which win over the file.

    Args:
        parser: `HfArgumentParser`.
        config: The dataclass of the trainer's settings.
        arguments: Flags, such as ["--ot_weight", "2"].
        recipe_file: YAML with the same names as the flags, without dashes.

    Returns:
        The recipe, and an instance of `config`.

    Raises:
        ValueError: the file is no mapping, or names a setting that does not exist (the nearest one is named).
            Or a flag that does not exist or does not parse.
    """
    reader = _reader(parser, config)
    if recipe_file is not None:
        reader.set_defaults(**_read_recipe(Path(recipe_file), config))
    for flag, argument in zip(["", *arguments], arguments, strict=False):
        name, _, value = argument.partition("=") if argument.startswith("--") else (flag, "", argument)
        if value.lstrip().startswith("{"):
            try:
                check_json(value)
            except UnclearJson as error:
                raise ValueError(f"{name} holds JSON that is unclear: {error}") from None
    recipe, settings, rest = reader.parse_args_into_dataclasses(args=list(arguments), return_remaining_strings=True)
    if rest:
        hint = did_you_mean(rest[0].split("=")[0], [f"--{name}" for name in legal_names(config)])
        raise ValueError(f"{rest[0]} is no setting.{hint or ' --help lists all settings'}")
    for name in ("student", "dataset"):
        given(name, getattr(recipe, name))
    return recipe, settings


def check_early(arguments: Sequence[str], recipe_file: str | Path | None = None) -> None:
    """Refuses what `parse_settings` would refuse for a run, in a fraction of the time that torch takes to import.

    It knows the names, types and choices of every setting, and checks all that transfer adds. What only transformers
    can tell (the machine, the company of its own settings) it lets through, and everything where the installed
    transformers is written in a way that cannot be read.

    Raises:
        ValueError: as `parse_settings`.
    """
    if recipe_file is not None and Path(recipe_file).exists() and not Path(recipe_file).is_file():
        return  # a pipe can be read once
    try:
        parser, config = installed_parser(), early_config()
        _reader(parser, config)
    except (UnreadableError, ValueError, TypeError, RuntimeError):
        return
    parse_settings(parser, config, arguments, recipe_file)


@functools.cache
def early_config() -> type:
    """A stand-in for `OTTransferConfig` that needs neither torch nor transformers.

    Raises:
        UnreadableError: the installed transformers is written in a way that cannot be read.
    """

    @dataclass
    class EarlyConfig(TransferSettings, installed_arguments()):  # type: ignore[misc]
        def __post_init__(self) -> None:
            self.check()

    return EarlyConfig


def legal_names(config: type) -> list[str]:
    """Every setting of a recipe and of the trainer."""
    return [f.name for f in (*fields(Recipe), *fields(config)) if f.init]


def given(name: str, value: str | None) -> str:
    """A setting that a run cannot do without."""
    if value is None:
        raise ValueError(f"no {name} given: pass --{name} or name it in the recipe")
    return value


def _reader(parser: type, config: type) -> Any:
    """A parser that raises where argparse prints its usage, of two hundred flags, and ends the process."""

    class Reader(parser):
        def error(self, message: str) -> NoReturn:
            raise ValueError(f"{message}{_nearest_choice(message)} (--help lists all settings)")

    return Reader((Recipe, config), prog="hf-reprot train", allow_abbrev=False)


def _nearest_choice(message: str) -> str:
    """The legal value nearest to what argparse refused."""
    refused = re.search(r"invalid choice: (.*) \(choose from (.*)\)$", message)
    if refused is None:
        return ""
    legal = [choice.strip("'\" ") for choice in refused[2].split(",")]
    return did_you_mean(refused[1].strip("'\""), legal, cutoff=0.4)


def _read_recipe(path: Path, config: type) -> dict[str, Any]:
    types = get_type_hints(Recipe) | get_type_hints(config)
    # One name stands for a list of one, and a layer pair may be a mapping.
    types |= {"layer_pairs": str | dict | list, "student_model_args": str | dict | None}
    types |= {"teacher_compile": str | bool | None}
    types["teacher"] = list[str | dict] | dict
    # transformers takes more than it says
    types |= dict.fromkeys(("fsdp", "resume_from_checkpoint"), str | bool | None)
    types |= {name: Any for name, hint in types.items() if Unknown in (hint, *get_args(hint))}
    content = read_recipe_file(path, {name: types[name] for name in legal_names(config)})
    # argparse takes strings apart by a setting's type; what YAML has parsed already is left as it is
    if isinstance(content.get("teacher"), str | dict):
        content["teacher"] = [content["teacher"]]
    if isinstance(content.get("teacher_features"), str):
        content["teacher_features"] = [content["teacher_features"]]
    if isinstance(content.get("layer_pairs"), str | dict):
        content["layer_pairs"] = [content["layer_pairs"]]
    if isinstance(content.get("student_model_args"), dict):
        content["student_model_args"] = json.dumps(content["student_model_args"])
    return content
