"""What a feature cache needs beside the recipe of the run."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, NoReturn

from ..utils.messages import check_choice
from ..utils.settings import setting as _setting
from .names import CACHE_DTYPES


@dataclass
class CacheOptions:
    """What a cache needs beside the recipe of the run; each field's help is in its metadata."""

    layers: list[str] = _setting(
        [],
        'The teacher\'s layers: "last", "stages", "blocks", "stage:i", "block:i" or paths; left out: those that '
        "layer_pairs of the run names.",
    )
    dtype: str = _setting("float16", f"What features are kept in: {', '.join(CACHE_DTYPES)}.")
    positions: bool = _setting(False, "Keep every position; also where the run needs it (ot_positions=all).")
    epochs: str | None = _setting(
        None, 'Epochs whose augmented views are cached; left out: both views of "flip", num_train_epochs.'
    )
    shard_rows: int | None = _setting(None, "Rows per shard; default: about 64 MB.")
    device: str | None = _setting(None, "Device for the teacher; default: a GPU if there is one.")
    push_to: str | None = _setting(None, "Data set repository to push the cache to, name/features.")
    public: bool = _setting(False, "Make that repository public.")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} (--help lists all settings)")


def split_cache_options(arguments: Sequence[str]) -> tuple[CacheOptions, list[str]]:
    """The flags of a cache, and those of the run that it is for; `--output_dir` is the cache's folder.

    Raises:
        ValueError: a flag of the cache that does not parse, or no folder.
    """
    parser = _Parser(add_help=False, allow_abbrev=False)
    for field in fields(CacheOptions):
        kinds: dict[str, dict[str, Any]] = {"layers": {"nargs": "+"}, "shard_rows": {"type": int}}
        kinds |= {name: {"action": "store_true"} for name in ("positions", "public")}
        parser.add_argument(f"--{field.name}", default=argparse.SUPPRESS, **kinds.get(field.name, {}))
    own, rest = parser.parse_known_args(list(arguments))
    options = CacheOptions(**vars(own))
    check_choice("dtype", options.dtype, CACHE_DTYPES)
    if options.epochs not in (None, "all") and not options.epochs.isdigit():
        raise ValueError(f'--epochs takes a number of epochs or "all", got {options.epochs!r}')
    if not any(argument.split("=")[0] == "--output_dir" for argument in rest):
        raise ValueError("no folder for the cache given: pass --output_dir FOLDER")
    return options, rest
