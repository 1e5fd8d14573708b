"""Builds the feature cache for a training run: what `hf-reprot cache` runs."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console
from rich.table import Table

from ..cache.store import FeatureCache
from ..config import OTTransferConfig
from ..data.preprocessing import Preprocessing
from ..features.pairs import match_pairs
from ..models.spec import parse_teacher
from ..models.teacher import Teacher
from ..training.teacher_images import settle_image_sizes
from ..utils.messages import check_choice
from .train import Recipe, parse_recipe, prepare, teachers_of

DTYPES = ("float16", "bfloat16", "float32")


@dataclass
class CacheOptions:
    """What a cache needs beside the recipe of the run; each field's help is in its metadata."""

    layers: list[str] = dataclasses.field(
        default_factory=list,
        metadata={
            "help": 'The teacher\'s layers: "last", "stages", "blocks", "stage:i", "block:i" or paths; left out: '
            "those that layer_pairs of the run names."
        },
    )
    dtype: str = dataclasses.field(
        default="float16", metadata={"help": f"What features are kept in: {', '.join(DTYPES)}."}
    )
    positions: bool = dataclasses.field(
        default=False, metadata={"help": "Keep every position; also where the run needs it (ot_positions=all)."}
    )
    epochs: str | None = dataclasses.field(
        default=None,
        metadata={"help": 'Epochs whose augmented views are cached; left out: both views of "flip", num_train_epochs.'},
    )
    shard_rows: int | None = dataclasses.field(default=None, metadata={"help": "Rows per shard; default: about 64 MB."})
    device: str | None = dataclasses.field(
        default=None, metadata={"help": "Device for the teacher; default: a GPU if there is one."}
    )
    push_to: str | None = dataclasses.field(
        default=None, metadata={"help": "Data set repository to push the cache to, name/features."}
    )
    public: bool = dataclasses.field(default=False, metadata={"help": "Make that repository public."})


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} (--help lists all settings)")


def parse_cache(
    arguments: Sequence[str], recipe_file: str | Path | None = None
) -> tuple[Recipe, OTTransferConfig, CacheOptions]:
    """Reads the recipe of the run, its flags, and the flags of the cache; `--output_dir` is the cache's folder.

    Raises:
        ValueError: as `parse_recipe`; or a flag of the cache that does not parse.
    """
    parser = _Parser(add_help=False, allow_abbrev=False)
    for field in dataclasses.fields(CacheOptions):
        kinds: dict[str, dict[str, Any]] = {"layers": {"nargs": "+"}, "shard_rows": {"type": int}}
        kinds |= {name: {"action": "store_true"} for name in ("positions", "public")}
        parser.add_argument(f"--{field.name}", default=argparse.SUPPRESS, **kinds.get(field.name, {}))
    own, rest = parser.parse_known_args(list(arguments))
    options = CacheOptions(**vars(own))
    check_choice("dtype", options.dtype, DTYPES)
    if options.epochs not in (None, "all") and not options.epochs.isdigit():
        raise ValueError(f'--epochs takes a number of epochs or "all", got {options.epochs!r}')
    if not any(argument.split("=")[0] == "--output_dir" for argument in rest):
        raise ValueError("no folder for the cache given: pass --output_dir FOLDER")
    return *parse_recipe(rest, recipe_file), options


def print_cache_help(console: Console) -> None:
    """The settings of a cache, with their defaults."""
    console.print("hf-reprot cache [RECIPE.yaml] --output_dir FOLDER [--setting value ...]\n")
    table = Table("setting", "default", "what it is", title="cache", title_justify="left")
    for field in dataclasses.fields(CacheOptions):
        default = [] if field.default is dataclasses.MISSING else field.default
        table.add_row(f"--{field.name}", str(default), field.metadata["help"])
    console.print(table)
    console.print("and the settings of the training run that the cache is for, as `hf-reprot train --help` lists them:")
    console.print("--teacher, --dataset, --student, --augmentation, --layer_pairs, --ot_positions, --seed, ...")


def cache_recipe(recipe: Recipe, config: OTTransferConfig, options: CacheOptions) -> FeatureCache:
    """Builds the cache that a run needs, with the run's own images, views and batch size, and pushes it where asked.

    Raises:
        ValueError: no teacher or several; anything that the run, or `FeatureCache.build`, would refuse.
    """
    teachers = teachers_of(recipe)
    if len(teachers) != 1:
        raise ValueError(f"a cache is of one teacher, and {len(teachers)} are given: pass --teacher ID")
    source, settings = parse_teacher(teachers[0])
    own = {n: settings[n] for n in ("preprocessing", "resize", "image_size", "license") if n in settings}
    dtype = settings.get("dtype") or config.teacher_dtype
    given = config.teacher_model_init_kwargs
    teacher = Teacher.load(source, dtype=dtype, init_kwargs=given if isinstance(given, dict) else {}, **own)
    prepared = prepare(recipe, config)
    settle_image_sizes(config, prepared.student, [teacher], Preprocessing.of(prepared.processor))
    positions = options.positions or (config.compares_layers and config.layer_positions == "all")
    cache = FeatureCache.build(
        teacher,
        prepared.train,
        str(config.output_dir),
        layers=options.layers or _layers(settings.get("layers"), config, prepared.student, teacher),
        collator=prepared.collator,
        dtype=options.dtype,
        positions=positions,
        tokens=config.ot_tokens,
        epochs=_epochs(recipe, config, options),
        seed=config.seed if config.data_seed is None else config.data_seed,
        batch_size=config.per_device_train_batch_size,
        shard_rows=options.shard_rows,
        num_workers=config.dataloader_num_workers,
        device="cpu" if config.use_cpu and options.device is None else options.device,
    )
    if options.push_to is not None:
        cache.push_to_hub(options.push_to, private=not options.public)
    return cache


def _layers(own: Any, config: OTTransferConfig, student: Any, teacher: Teacher) -> list[str]:
    """The teacher's layers in the layer pairs of the run; none where no term compares layers."""
    if not config.compares_layers:
        return []
    if config.finds_layers:
        raise ValueError('layer_pairs="auto" finds layers while it trains: name those to cache with --layers')
    specs = own or config.layer_pairs
    pairs = match_pairs(specs, student, [teacher.model], positions=config.layer_positions)
    return list(dict.fromkeys(pair.teacher for pair in pairs))


def _epochs(recipe: Recipe, config: OTTransferConfig, options: CacheOptions) -> int | str | None:
    if options.epochs is not None:
        return options.epochs if options.epochs == "all" else int(options.epochs)
    return None if config.augmentation in ("none", "flip") else max(1, int(-(-config.num_train_epochs // 1)))
