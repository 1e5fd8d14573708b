"""Builds the feature cache for a training run: what `hf-reprot cache` runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..cache.store import FeatureCache
from ..config import OTTransferConfig
from ..data.preprocessing import Preprocessing
from ..data.seeding import seed_of_data
from ..features.pairs import match_pairs
from ..models.spec import parse_teacher
from ..models.teacher import Teacher
from ..settings.cache import CacheOptions, split_cache_options
from ..settings.recipe import Recipe
from ..training.teacher_images import settle_image_sizes
from .train import parse_recipe, prepare, teachers_of


def parse_cache(
    arguments: Sequence[str], recipe_file: str | Path | None = None
) -> tuple[Recipe, OTTransferConfig, CacheOptions]:
    """Reads the recipe of the run, its flags, and the flags of the cache; `--output_dir` is the cache's folder.

    Raises:
        ValueError: as `parse_recipe`; or a flag of the cache that does not parse.
    """
    options, rest = split_cache_options(arguments)
    return *parse_recipe(rest, recipe_file), options


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
        seed=seed_of_data(config),
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
