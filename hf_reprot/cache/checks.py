"""Training from a feature cache: a stand-in for each teacher, and the checks before the first step."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..config import OTTransferConfig
from ..data.dataset_columns import is_transformed
from ..data.seeding import seed_of_data
from ..features.pairs import LayerPair
from ..models.loading import commit_of
from ..models.spec import PARTS, parse_teacher
from ..models.teacher import Teacher
from ..utils.hub_ids import split_revision
from .keys import weights_hash
from .manifest import CacheError, PixelFacts
from .store import FeatureCache
from .teacher import CachedTeacher

_SAMPLED_ROWS = 16


def cached_teachers(sources: Any, teacher_model: Any, args: OTTransferConfig) -> list[CachedTeacher]:
    """Opens and checks the caches of a run.

    Args:
        sources: A `FeatureCache`, a folder, a data set repository ("name/features@commit"), or a list of these.
        teacher_model: The teachers that the run names as well, if it does: each cache must be of its one.
        args: The settings.

    Raises:
        CacheError: a damaged cache, or one of another teacher, of pooled features where positions are needed, of
            tokens pooled in another way, or without logits where they are.
        ValueError: as many teachers as caches are needed; a setting that needs a live teacher.
    """
    sources = list(sources) if isinstance(sources, list | tuple) else [sources]
    caches = [FeatureCache.open(source) for source in sources]
    named = teacher_model if isinstance(teacher_model, list | tuple) else [teacher_model]
    named, parts = zip(*map(_taken_apart, named), strict=True) if named else ((), ())
    named = [teacher for teacher in named if teacher is not None]
    if named and len(named) != len(caches):
        raise ValueError(
            f"teacher_features has {len(caches)} cache(s) and teacher_model {len(named)} teacher(s): give one cache "
            "for each teacher, or leave teacher_model out"
        )
    if args.compares_layers and args.finds_layers:
        raise ValueError('layer_pairs="auto" runs the teacher to measure its layers: name the pairs to use a cache')
    for name in ("teacher_sharded", "teacher_offload", "teacher_compile"):
        if getattr(args, name):
            raise ValueError(f"{name} is about a teacher's weights, and teacher_features has none: leave it out")
    if args.delta_weight > 0:
        raise ValueError("delta_weight compares student and teacher before training, which takes the teacher itself")
    for cache, teacher in zip(caches, named, strict=False):
        _check_teacher(cache, teacher, args)
    for cache in caches:
        _check_image_size(cache, args)
        _check_settings(cache, args)
    teachers = [CachedTeacher(cache, i) for i, cache in enumerate(caches)]
    for teacher, part in zip(teachers, parts, strict=False):
        teacher.take_part(**part)
    return teachers


def check_layers(pairs: Sequence[LayerPair], teachers: Sequence[Teacher]) -> None:
    """Refuses layer pairs whose teacher layer is not in the teacher's cache.

    Raises:
        CacheError: it names the layer and those that are cached.
    """
    for pair in pairs:
        teacher = teachers[pair.teacher_index]
        if isinstance(teacher, CachedTeacher) and pair.teacher not in teacher.cache.layers:
            raise CacheError(
                f"the feature cache {teacher.cache.title} does not hold the layer {pair.teacher}: it holds "
                f"{', '.join(teacher.cache.layers)}. Choose layer_pairs among these, or build a cache with "
                f"layers=[{pair.teacher!r}]"
            )


def check_data(trainer: Any) -> None:
    """Looks up some training rows as the first and the last epoch make them, and compares the preprocessing.

    Raises:
        CacheError: the run's preprocessing, data or views are not those of the cache.
    """
    caches = [teacher.cache for teacher in trainer.teachers if isinstance(teacher, CachedTeacher)]
    for cache in caches:
        theirs, ours = cache.settings.pixels, PixelFacts.of(trainer.preprocessing)
        known = trainer.preprocessing is not None and trainer.preprocessing.normalises
        fields = [
            f.name
            for f in dataclasses.fields(PixelFacts)
            if theirs is not None and ours is not None and getattr(theirs, f.name) != getattr(ours, f.name)
            if known or f.name == "size"  # of images prepared by the caller, rows are compared below
        ]
        if fields:
            said = "; ".join(f"{n} {getattr(theirs, n)} there and {getattr(ours, n)} here" for n in fields)
            raise CacheError(f"the feature cache {cache.title} was built with other preprocessing: {said}")
    data, collator = trainer.train_dataset, trainer.data_collator
    if not caches or data is None or not hasattr(data, "__len__") or not hasattr(data, "__getitem__") or not len(data):
        return
    if hasattr(data, "column_names") and not is_transformed(data):
        data = trainer._remove_unused_columns(data, description="training")
    count = min(_SAMPLED_ROWS, len(data))
    rows = [data[round(i * (len(data) - 1) / max(count - 1, 1))] for i in range(count)]
    args = trainer.args
    seed = seed_of_data(args)
    last = max(int(-(-args.num_train_epochs // 1)) - 1, 0) if args.max_steps <= 0 else 0
    with torch.random.fork_rng():
        for epoch in dict.fromkeys((last, 0)):  # the collator is left at the epoch that comes first
            collator.set_epoch(epoch, seed=seed)
            try:
                collator(rows)
            except CacheError as error:
                when = f" (looking at {count} training rows as epoch {epoch} makes them, before training)"
                raise CacheError(f"{error}{when}") from None


def _taken_apart(source: Any) -> tuple[Any, dict[str, Any]]:
    """A teacher as `teacher_model` names it, and the part that it plays among several."""
    if isinstance(source, Teacher):
        return source, {name: getattr(source, name) for name in PARTS}
    unnamed = isinstance(source, Mapping) and source.get("id") is None  # the cache says which teacher it is
    given, part = parse_teacher({**source, "id": ""} if unnamed else source)
    for name in part:
        if name not in PARTS:
            raise ValueError(f"teacher: with teacher_features, {name!r} is said when the cache is built, not here")
    return None if unnamed else given, part


def _check_teacher(cache: FeatureCache, teacher: Any, args: OTTransferConfig) -> None:
    """Whether a cache is of the teacher that a run names; a hub id is compared without loading anything."""
    facts = cache.settings.teacher
    if isinstance(teacher, str) and not os.path.exists(os.path.expanduser(teacher)) and facts.origin == "hub":
        options = args.teacher_model_init_kwargs or {}
        given = options.get("revision") if isinstance(options, dict) else None
        repo, revision = split_revision(teacher, given, title="the teacher", setting="teacher_model_init_kwargs")
        if repo != facts.name:
            raise CacheError(f"the feature cache {cache.title} is of the teacher {cache.settings.title}, not of {repo}")
        if revision and not re.fullmatch("[0-9a-f]{40}", revision):
            revision = commit_of(repo, revision)
        if revision and revision != facts.revision:
            raise CacheError(
                f"the feature cache {cache.title} is of {repo} at revision {facts.revision}, and the run asks for "
                f"{revision}: build the cache for that revision, or ask for the other one"
            )
        return
    loaded = Teacher.load(teacher, dtype=args.teacher_dtype)
    if loaded.image_size is None and isinstance(args.teacher_image_size, int):
        loaded.set_image_size(args.teacher_image_size)
    if weights_hash(loaded.model) != cache.settings.weights:
        raise CacheError(
            f"the feature cache {cache.title} is of {cache.settings.title}, and teacher_model has other weights: build "
            "the cache for them, or leave teacher_model out"
        )
    settings = cache.settings
    patches = None if loaded.patches is None else [loaded.patches.side, loaded.patches.count]
    ours = (PixelFacts.of(loaded.preprocessing), loaded.size and list(loaded.size), loaded.channels, patches)
    theirs = (settings.teacher_pixels, settings.teacher_size, settings.teacher_channels, settings.teacher_patches)
    if ours != theirs:
        raise CacheError(
            f"the feature cache {cache.title} was built with other images for the teacher (preprocessing, size, "
            f"channels, patches): {theirs} there and {ours} here"
        )


def _check_image_size(cache: FeatureCache, args: OTTransferConfig) -> None:
    """Whether the teacher saw images of the size that the run asks for."""
    wanted, there = args.teacher_image_size, cache.settings.teacher_image_size
    size = "its own size in" if there is None else f"{there[0]} x {there[1]}"
    if wanted == "auto" and there is None:
        raise CacheError(
            f"teacher_image_size='auto' looks at the teacher, and the feature cache {cache.title} was built at its own "
            "size: build it with teacher_image_size='auto', or leave that out"
        )
    if wanted not in (None, "auto") and there != [wanted, wanted]:
        raise CacheError(
            f"the run asks for teacher_image_size={wanted}, and the teacher of the feature cache {cache.title} saw "
            f"images of {size} pixels: build the cache with that size"
        )


def _check_settings(cache: FeatureCache, args: OTTransferConfig) -> None:
    settings = cache.settings
    if not settings.positions and args.compares_layers:
        if args.layer_positions == "all" or args.ot_positions == "all":
            reason = "ot_positions='all'" if args.ot_positions == "all" else f"feature_loss={args.feature_loss!r}"
            reason = "delta_weight" if args.ot_positions != "all" and args.delta_weight > 0 else reason
            raise CacheError(
                f"the feature cache {cache.title} holds pooled features, and {reason} needs every position: build it "
                "with positions=True"
            )
        if args.ot_tokens != settings.tokens and any(
            layer.class_token or layer.tokens_grid for layer in settings.layers
        ):
            raise CacheError(
                f"the feature cache {cache.title} was pooled with tokens={settings.tokens!r}, and the run has "
                f"ot_tokens={args.ot_tokens!r}: build it with tokens={args.ot_tokens!r}, or set ot_tokens back"
            )
    if args.kd_weight > 0 and settings.classes is None:
        raise CacheError(f"kd_weight is above 0, and the feature cache {cache.title} holds no logits: set kd_weight=0")
