"""`Builder`: the shards of one cache, computed one by one by whoever gets hold of them."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from rich import get_console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.data import DataLoader, Subset
from transformers import BaseImageProcessor, default_data_collator

from ..data.collator import ImageCollator
from ..data.dataset_columns import image_columns, is_transformed
from ..data.datasets import leave_encoded
from ..data.preprocessing import Preprocessing
from ..hub.facts import DataFacts
from ..hub.provenance import data_facts, teacher_facts
from ..models.modules import class_names
from ..models.problems import stated_problem
from .keys import content_hash, row_keys, source_hashes, weights_hash
from .manifest import MANIFEST, SETTINGS, CacheError, Manifest, PixelFacts, Settings, ShardFacts, read_json, write_json
from .reading import Reader, base_prefix, paths_of
from .shards import Shard, shard_name, write_shard
from .views import View, ViewCollator

_SHARD_BYTES = 64 << 20
_SAMPLED_ROWS = 32
_POLL_SECONDS = 0.2
_SOFTWARE = ("hf-reprot", "torch", "transformers", "timm", "datasets")


class Builder:
    """Builds one cache in one folder, beside any number of others that build the same one.

    Args:
        folder: The folder.
        reader: Runs the teacher.
        dataset: The rows.
        collator: Makes the student's batches.
        views: The views of each row.
        num_workers: Processes that collate.
    """

    def __init__(
        self, folder: Path, reader: Reader, dataset: Any, collator: Any, views: Sequence[View], num_workers: int = 0
    ):
        self.folder, self.reader, self.dataset, self.views = folder, reader, dataset, list(views)
        self.collators = [ViewCollator(collator, view) for view in views]
        self.collator, self.num_workers = collator, num_workers

    def settle(self, pixels: Preprocessing | None, shard_rows: int | None) -> None:
        """Looks at some rows, and puts the settings into the folder, or compares them with those that are there."""
        count = min(self.reader.batch_size, len(self.dataset))
        rows = [self.dataset[i] for i in range(count)]
        looked_at = self.collators[0](rows)
        features = self.reader(looked_at)
        row_bytes = sum(value[0].numel() * value.element_size() for value in features.values()) + 40
        batch = self.reader.batch_size
        shard_rows = shard_rows or max(batch, _SHARD_BYTES // row_bytes // batch * batch)
        teacher, model = self.reader.teacher, self.reader.model
        logits = features.get("logits")
        self.settings = Settings(
            teacher=teacher_facts(teacher),
            weights=weights_hash(model),
            teacher_dtype=str(teacher.dtype).removeprefix("torch."),
            teacher_pixels=PixelFacts.of(teacher.preprocessing),
            teacher_size=list(teacher.size) if teacher.size is not None else None,
            teacher_channels=teacher.channels,
            pixels=PixelFacts.of(pixels),
            columns=self.reader.columns,
            layers=self.reader.facts,
            classes=logits.shape[1] if logits is not None else None,
            class_names=class_names(model) if logits is not None else None,
            dtype=self.reader.dtype,
            positions=self.reader.positions,
            tokens=self.reader.tokens,
            views=self.views,
            data=data_facts(self.dataset) or DataFacts(type(self.dataset).__name__, len(self.dataset)),
            rows=len(self.dataset),
            sample=self._sample(),
            batch_size=batch,
            shard_rows=min(shard_rows, len(self.dataset)),
            modules=paths_of(model),
            named=self.reader.named,
            base_model_prefix=base_prefix(model),
            problem_type=stated_problem(model) if logits is not None else None,
            bitwise=self.reader.is_order_free(looked_at, features),
            device=next((p.device.type for p in model.parameters()), "cpu"),
            versions=_versions(),
            teacher_image_size=list(teacher.image_size) if teacher.image_size is not None else None,
            teacher_patches=[teacher.patches.side, teacher.patches.count] if teacher.patches is not None else None,
        ).published()
        with claim(self.folder / ".settings.lock", wait=True):
            path = self.folder / SETTINGS
            if path.is_file():
                differences = read_json(path, Settings).differences(self.settings)
                if differences:
                    raise CacheError(
                        f"{self.folder} holds a build with other settings: {'; '.join(differences[:4])}"
                        f"{f' (and {len(differences) - 4} more)' if len(differences) > 4 else ''}. Choose another "
                        "folder, or delete this one"
                    )
                self.settings = read_json(path, Settings)
            else:
                self._check_space(row_bytes * len(self.dataset) * len(self.views))
                write_json(path, self.settings)

    def _sample(self) -> str:
        """A hash over examples spread over the data set, so that a build does not go on with other data."""
        count = min(_SAMPLED_ROWS, len(self.dataset))
        rows = [self.dataset[round(i * (len(self.dataset) - 1) / max(count - 1, 1))] for i in range(count)]
        hashes = []
        for row in rows:
            batch = self.collators[0]([row])
            hashes += source_hashes([row], batch, self.collator, row_keys(batch, self.reader.columns))
        return content_hash(*hashes).hex()

    def _check_space(self, needed: int) -> None:
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            sizes = f"about {needed / 1e9:.2f} GB, and {free / 1e9:.2f} GB are left"
            raise OSError(f"the disk of {self.folder} is too small: the cache needs {sizes}")

    def run(self, progress: bool) -> None:
        """Computes every shard that is not there, and writes the manifest when all are."""
        shards = [(v, s) for v in range(len(self.views)) for s in range(0, len(self.dataset), self.settings.shard_rows)]
        known = self._known()
        first = int(os.environ.get("RANK", "0")) * len(shards) // max(int(os.environ.get("WORLD_SIZE", "1")), 1)
        waiting = shards[first:] + shards[:first]
        columns = (TextColumn("caching the teacher"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        done = sum(self._is_whole(shard, known) for shard in shards) * self.settings.shard_rows
        with Progress(*columns, transient=True, disable=not (progress and get_console().is_terminal)) as bar:
            task = bar.add_task("rows", total=len(self.dataset) * len(self.views), completed=done)
            while waiting:
                others = []
                for shard in waiting:
                    if self._is_whole(shard, known):
                        continue
                    with claim(self.folder / f".{shard_name(*shard)}.lock") as mine:
                        if not mine:
                            others.append(shard)
                        elif not self._is_whole(shard, known):
                            self._compute(*shard, lambda n: bar.advance(task, n))
                waiting = others  # whoever works on these may die: then they are ours
                if waiting:
                    time.sleep(_POLL_SECONDS)
                bar.update(task, completed=sum(self._is_whole(s, known) for s in shards) * self.settings.shard_rows)
        self._finish(shards, known)

    def _known(self) -> dict[str, ShardFacts]:
        """Shards of a finished build that are as its manifest says; damaged ones are taken away."""
        if not (self.folder / MANIFEST).is_file():
            return {}
        known = {}
        for facts in Manifest.read(self.folder / MANIFEST).shards:
            try:
                Shard(self.folder / facts.file, facts, self.settings).verify()
                known[facts.file] = facts
            except CacheError:
                (self.folder / facts.file).unlink(missing_ok=True)
        return known

    def _is_whole(self, shard: tuple[int, int], known: dict[str, ShardFacts]) -> bool:
        """A shard and its checksum are renamed into the folder when they are whole: that they are there is enough.

        The process that finishes first puts the checksums into the manifest.
        """
        name = shard_name(*shard)
        listed = (self.folder / f"{name}.json").is_file() or (self.folder / MANIFEST).is_file()
        return name in known or (listed and (self.folder / name).is_file())

    def _compute(self, view: int, start: int, advance: Callable[[int], None]) -> None:
        numbers = range(start, min(start + self.settings.shard_rows, len(self.dataset)))
        keys: list[bytes] = []
        sources: list[bytes] = []
        parts: list[dict[str, torch.Tensor]] = []
        for batch, its_keys, its_sources in self._batches(view, numbers):
            keys += its_keys
            sources += its_sources
            parts.append(self.reader(batch))
            advance(len(its_keys))
        features = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        try:
            write_shard(self.folder, view, start, keys, sources, features)
        except OSError as error:
            total = len(self.views) * -(-len(self.dataset) // self.settings.shard_rows)
            whole = len(list(self.folder.glob("view*.safetensors")))
            raise OSError(
                f"a shard could not be written to {self.folder} ({error.strerror or error}): {whole} of {total} shards "
                "are whole and stay. Make room and run the same build again, which goes on from there"
            ) from error

    def _batches(self, view: int, numbers: range) -> Iterator[tuple[dict[str, Any], list[bytes], list[bytes]]]:
        addressing = Addressing(self.collators[view], self.collator, self.settings.columns)
        yield from DataLoader(
            Subset(self.dataset, list(numbers)),
            batch_size=self.reader.batch_size,
            collate_fn=addressing,
            num_workers=self.num_workers,
        )

    def _finish(self, shards: Sequence[tuple[int, int]], known: dict[str, ShardFacts]) -> None:
        with claim(self.folder / ".settings.lock", wait=True):
            path, names = self.folder / MANIFEST, [shard_name(*shard) for shard in shards]
            beside = [self.folder / f"{name}.json" for name in names]
            if not path.is_file() or any(file.is_file() for file in beside):
                facts = [known.get(n) or read_json(file, ShardFacts) for n, file in zip(names, beside, strict=True)]
                manifest = Manifest(self.settings, facts)
                manifest.digest = manifest.computed_digest()
                write_json(path, manifest)
            for file in [*beside, *self.folder.glob(".view*.lock"), *self.folder.glob(".*.part")]:
                file.unlink(missing_ok=True)


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _SOFTWARE:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@contextlib.contextmanager
def claim(path: Path, wait: bool = False) -> Iterator[bool]:
    """Takes hold of a lock file for the block inside.

    The operating system lets go of it when the process dies, so that a killed build leaves nothing locked.

    Args:
        path: The lock file.
        wait: Wait for whoever holds it.

    Yields:
        Whether it is ours; False (only without `wait`) where another process holds it.
    """
    lock = FileLock(str(path), timeout=-1 if wait else 0)
    try:
        lock.acquire()
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


class Addressing:
    """Collates rows of one view and hashes them, in a worker."""

    def __init__(self, collate: ViewCollator, collator: Any, columns: Sequence[str]):
        self.collate, self.collator, self.columns = collate, collator, list(columns)

    def __call__(self, rows: Sequence[Any]) -> tuple[dict[str, Any], list[bytes], list[bytes]]:
        batch = self.collate(rows)
        keys = row_keys(batch, self.columns)
        return batch, keys, source_hashes(rows, batch, self.collator, keys)


def rows_and_collator(dataset: Any, collator: Any, processor: Any) -> tuple[Any, Any]:
    """The rows as the collator takes them, and the collator.

    Raises:
        ValueError: raw images, and nothing that says how they become `pixel_values`.
    """
    if collator is None:
        columns = image_columns(dataset)
        if isinstance(processor, BaseImageProcessor) and columns is not None:
            collator = ImageCollator(processor, image_column=columns[0], label_column=columns[1])
        elif columns is not None:
            raise ValueError("the data set holds raw images: give the student's image processor, or its collator")
        else:
            collator = default_data_collator
    column = getattr(collator, "image_column", None)
    if column is not None and not is_transformed(dataset):
        dataset = leave_encoded(dataset, column)
    return dataset, collator
