"""Runs a teacher over a data set, once, for a `FeatureCache`: what `FeatureCache.build` does."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..data.preprocessing import Preprocessing
from ..models.teacher import Teacher
from ..settings.names import TOKENS
from ..utils.messages import check_choice
from .builder import Builder, rows_and_collator
from .reading import Reader
from .shards import DTYPES
from .views import views_of


def write_features(
    teacher: Any,
    dataset: Any,
    folder: str | os.PathLike,
    *,
    layers: str | Sequence[str] = "last",
    collator: Any = None,
    processor: Any = None,
    dtype: str = "float16",
    positions: bool = False,
    tokens: str = "auto",
    logits: bool = True,
    epochs: int | str | None = None,
    seed: int = 42,
    batch_size: int = 32,
    shard_rows: int | None = None,
    num_workers: int = 0,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> Path:
    """Runs a teacher over a data set and writes what its layers give.

    Shards are written atomically. A build that was killed, or ran out of disk space, resumes where it stopped when it
    is started again; no complete shard is computed twice. Any number of processes may build in one folder at the same
    time (start the same program several times, or with torchrun): each takes shards that nobody works on.

    Training from a float32 cache equals training with the live teacher on the same views: bit for bit where
    `batch_size` is the run's `per_device_train_batch_size`, the device, the number of threads and the libraries are the
    same, every batch is full, no mixed precision is on, and a row's features do not depend on its place in the batch,
    which a build looks at and records (`cache.settings.bitwise`). Else, up to how matrix products round (about 1e-7 of
    the values).

    Args:
        teacher: What `Teacher.load` takes.
        dataset: The examples, in any order: a data set with a length, or a list of rows.
        folder: Where the cache goes.
        layers: The teacher's layers: "last", "stages", "blocks", "stage:i", "block:i", a module path; or several.
        collator: What makes the student's batches in training, augmentation and all.
        processor: The student's image processor, in the place of a collator, for raw images without augmentation.
        dtype: "float16", "bfloat16" or "float32".
        positions: Keep every position (for `ot_positions="all"` and losses on maps) instead of pooled features.
        tokens: How layers with tokens are pooled: the run's `ot_tokens`.
        logits: Keep the logits of a teacher that has a head.
        epochs: With augmentation, the epochs whose views are cached; "all": both views of "flip" (the default there).
        seed: The seed of the training run (its `data_seed` if it has one), which augmentation follows from.
        batch_size: Rows in a forward pass of the teacher.
        shard_rows: Rows in a shard; None: about 64 MB.
        num_workers: Processes that open images.
        device: Where the teacher runs; None: a GPU if there is one (of several processes, each its own).
        progress: Show a progress bar.

    Returns:
        The folder. Where several processes build, each returns when all shards are there.

    Raises:
        ValueError: an empty data set, unknown layers, a data type too small for the values, an augmentation that
            cannot be made again.
        CacheError: the folder holds another build (what differs is named).
        OSError: the folder cannot be written to, or the disk is full.

    Example: see `FeatureCache`; with images,
    `FeatureCache.build(teacher, train, "features", processor=processor)`.
    """
    check_choice("dtype", dtype, list(DTYPES))
    check_choice("tokens", tokens, list(TOKENS))
    if batch_size < 1 or (shard_rows is not None and shard_rows < 1):
        raise ValueError(f"batch_size and shard_rows must be at least 1, got {batch_size} and {shard_rows}")
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise ValueError(
            f"a {type(dataset).__name__} has no numbered rows, so that a build could not go on where it stopped: give "
            "a data set with a length"
        )
    if len(dataset) == 0:
        raise ValueError("the data set is empty: there is nothing to cache")
    folder = _made_folder(folder)
    teacher = Teacher.load(teacher)
    teacher.model.to(device if device is not None else _device())
    dataset, collator = rows_and_collator(dataset, collator, processor)
    pixels = Preprocessing.of(processor) or Preprocessing.of(getattr(collator, "processor", None))
    wanted = [layers] if isinstance(layers, str) else list(layers)
    reader = Reader(
        teacher,
        wanted,
        dtype=dtype,
        positions=positions,
        tokens=tokens,
        preprocessing=pixels,
        batch_size=batch_size,
        logits=logits,
    )
    try:
        builder = Builder(folder, reader, dataset, collator, views_of(collator, epochs, seed), num_workers)
        builder.settle(pixels, shard_rows)
        builder.run(progress)
    finally:
        reader.close()
    return folder


def _made_folder(folder: str | os.PathLike) -> Path:
    folder = Path(folder).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".{os.getpid()}.part"
        probe.touch()
        probe.unlink(missing_ok=True)
    except OSError as error:
        raise OSError(f"{folder} cannot be written to ({error.strerror or error}): choose another folder") from error
    return folder


def _device() -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
