"""`FeatureCache`: a teacher's features on disk, addressed by the exact tensors that the teacher saw."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..utils.hub_ids import split_revision
from .keys import KEY_BYTES
from .manifest import MANIFEST, SETTINGS, CacheError, LayerFacts, Manifest, Settings, read_json
from .shards import DTYPES, KEYS, LOGITS, SOURCES, Shard, feature_names, shard_name, tensor_of

RowKey = bytes  # the hash that a row is found by
_KEY = np.dtype(f"S{KEY_BYTES}")


class FeatureCache:
    """Features of named layers, and logits, of a teacher, computed once and read while a student trains.

    A row is found by the hash of exactly what the teacher's input is made of: the student's `pixel_values` of that
    image and view, or its tokens. So the order of the data does not matter, an image or an augmentation that was not
    cached is refused when it comes, and nothing is ever approximated. Every row carries a checksum that is looked at
    when it is read. Files are safetensors, read through the memory map; they hold numbers only.

    Args:
        folder: What `FeatureCache.build` wrote, or `from_hub` fetched.
        verify: Compare every file with its SHA-256 now, and not only every row with its checksum when it is read.
        name, revision: Repository and commit that it was fetched from.

    Raises:
        CacheError: an unfinished build, or a file that is missing, truncated or changed (named).

    Example:
        >>> import tempfile
        >>> import torch
        >>> from torch import nn
        >>> from hf_reprot.cache import FeatureCache
        >>> teacher = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 2))
        >>> rows = [{"pixel_values": torch.randn(3, 2, 2)} for _ in range(6)]
        >>> folder = tempfile.mkdtemp()
        >>> cache = FeatureCache.build(teacher, rows, folder, layers=["2"], batch_size=4, dtype="float32")
        >>> batch = {"pixel_values": torch.stack([row["pixel_values"] for row in rows[4:]])}
        >>> features = cache.read(cache.keys_of(batch))
        >>> torch.allclose(features["2"], teacher[:3](batch["pixel_values"]))
        True
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        *,
        verify: bool = True,
        name: str | None = None,
        revision: str | None = None,
    ):
        self._open(folder, verify, name, revision)

    def _open(self, folder: str | os.PathLike, verify: bool, name: str | None, revision: str | None) -> None:
        self.folder = Path(folder)
        self.name, self.revision = name, revision
        self.manifest = _read_manifest(self.folder)
        settings = self.manifest.settings
        self._shards = [Shard(self.folder / facts.file, facts, settings) for facts in self.manifest.shards]
        if verify:
            from rich import get_console
            from rich.progress import track

            quiet = not get_console().is_terminal
            for shard in track(self._shards, description="checking the cache", transient=True, disable=quiet):
                shard.verify()
        self._index()

    def _index(self) -> None:
        shards = self._shards
        keys = np.concatenate([shard.arrays[KEYS] for shard in shards]).reshape(-1).view(_KEY)
        self._order = np.argsort(keys, kind="stable")
        self._keys = keys[self._order]
        self._sources: np.ndarray | None = None  # only a refusal asks for them
        self._starts = np.cumsum([0, *(shard.facts.rows for shard in shards)])

    @classmethod
    def build(cls, teacher: Any, dataset: Any, folder: str | os.PathLike, **options: Any) -> FeatureCache:
        """Runs a teacher over a data set and writes what its layers give: see
        `hf_reprot.cache.build.write_features`."""
        from .build import write_features

        return cls(write_features(teacher, dataset, folder, **options), verify=False)

    @classmethod
    def open(cls, source: FeatureCache | str | os.PathLike, *, verify: bool = True) -> FeatureCache:
        """A cache from a folder or a data set repository on the Hub ("name/features", "name/features@revision")."""
        if isinstance(source, FeatureCache):
            return source
        folder = Path(source).expanduser()
        if isinstance(source, str) and source.count("/") == 1 and source[0] not in ".~/" and not folder.exists():
            return cls.from_hub(source, verify=verify)
        return cls(folder, verify=verify)

    @classmethod
    def from_hub(cls, source: str, *, verify: bool = True, cache_dir: str | os.PathLike | None = None) -> FeatureCache:
        """Fetches a cache: see `hf_reprot.cache.hub.fetch`."""
        from .hub import fetch

        folder, commit = fetch(source, cache_dir=cache_dir)
        return cls(folder, verify=verify, name=split_revision(source)[0], revision=commit)

    def push_to_hub(self, repo_id: str, *, private: bool = True, revision: str | None = None) -> str:
        """Pushes the cache as a data set repository, in one commit: see `hf_reprot.cache.hub.push`."""
        from .hub import push

        return push(self.folder, self.manifest, repo_id, private=private, revision=revision)

    # ---- what it is ----

    @property
    def settings(self) -> Settings:
        """What the rows follow from."""
        return self.manifest.settings

    @property
    def digest(self) -> str:
        """SHA-256 over the settings and all checksums."""
        return self.manifest.digest

    @property
    def title(self) -> str:
        """Its name in messages: the repository or the folder."""
        return self.name or str(self.folder)

    @property
    def layers(self) -> dict[str, LayerFacts]:
        """The cached layers by their full names."""
        return {layer.name: layer for layer in self.settings.layers}

    @property
    def bytes(self) -> int:
        """Size of the shards on disk, in bytes."""
        return self.manifest.bytes

    def facts(self) -> dict[str, str]:
        """A summary of the cache, for a table."""
        settings = self.settings
        layers = [f"{layer.name} ({' x '.join(map(str, layer.shape))})" for layer in settings.layers]
        layers += [f"logits ({settings.classes})"] if settings.classes is not None else []
        return {
            "teacher": settings.title,
            "data": f"{settings.data.name}, {settings.rows:,} examples",
            "views of each": "; ".join(map(str, settings.views[:3])) + ("; ..." if len(settings.views) > 3 else ""),
            "layers": ", ".join(layers),
            "kept": f"{'every position' if settings.positions else 'pooled'}, {settings.dtype}",
            "size": f"{len(self):,} rows, {self.bytes / 1e6:,.2f} MB in {len(self._shards)} shard(s)",
            "rows the same bits in every order": "yes" if settings.bitwise else "no",
            "SHA-256": self.digest,
        }

    def __len__(self) -> int:
        return len(self._keys)

    def __repr__(self) -> str:
        return f"FeatureCache({self.title}: {self.settings.title}, {len(self):,} rows, {self.settings.dtype})"

    def __getstate__(self) -> dict[str, Any]:  # a worker that is spawned maps the files itself
        return {"folder": self.folder, "name": self.name, "revision": self.revision, "digest": self.digest}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._open(state["folder"], verify=False, name=state["name"], revision=state["revision"])
        if self.digest != state["digest"]:
            raise CacheError(f"the cache {self.title} has changed since it was opened")

    # ---- rows ----

    def keys_of(self, batch: Mapping[str, Any]) -> list[RowKey]:
        """The address of each row of a batch, as a collator made it for the student."""
        from .keys import row_keys

        return row_keys(batch, self.settings.columns)

    def find(self, keys: Sequence[RowKey]) -> np.ndarray:
        """The number of the row that each key leads to; -1 for a key that is not in the cache."""
        wanted = np.frombuffer(b"".join(keys), dtype=_KEY)
        place = np.minimum(np.searchsorted(self._keys, wanted), len(self._keys) - 1)
        return np.where(self._keys[place] == wanted, self._order[place], -1)

    def knows_source(self, source: RowKey) -> bool:
        """Whether some view of an example is in the cache."""
        if self._sources is None:
            sources = np.concatenate([shard.arrays[SOURCES] for shard in self._shards]).reshape(-1).view(_KEY)
            self._sources = np.sort(sources)
        wanted = np.frombuffer(source, dtype=_KEY)
        place = min(int(np.searchsorted(self._sources, wanted)[0]), len(self._sources) - 1)
        return bool(self._sources[place] == wanted[0])

    def read(self, keys: Sequence[RowKey]) -> dict[str, Tensor]:
        """The features of some rows: (n, *shape) of each layer by its name, and "logits" where they are cached.

        Raises:
            KeyError: a key that is not in the cache.
            CacheError: a row that is damaged.
        """
        rows = self.find(keys)
        if (rows < 0).any():
            raise KeyError(f"key {int((rows < 0).argmax())} is not in the cache {self.title}")
        return self.take(rows)

    def take(self, rows: np.ndarray) -> dict[str, Tensor]:
        """The features of rows by their numbers, as `find` gives them; in the cache's data type."""
        which = np.searchsorted(self._starts, rows, side="right") - 1
        raw: dict[str, np.ndarray] = {}
        for i, (shard, row) in enumerate(zip(which, rows - self._starts[which], strict=True)):
            for name, value in self._shards[shard].row(int(row)).items():
                raw.setdefault(name, np.empty((len(rows), *value.shape), value.dtype))[i] = value
        tensors = {name: tensor_of(value, self.settings.dtype) for name, value in raw.items()}
        named = {f"layer{i}": layer.name for i, layer in enumerate(self.settings.layers)}
        return {named.get(name, LOGITS): value for name, value in tensors.items()}

    def empty(self, samples: int, device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """Random tensors of the shapes that `read` gives: to check a run before its data come."""
        generator = torch.Generator().manual_seed(0)
        named = {f"layer{i}": layer.name for i, layer in enumerate(self.settings.layers)}
        return {
            named.get(name, LOGITS): torch.randn(samples, *shape, generator=generator).to(device)
            for name, shape in feature_names(self.settings).items()
        }


def _read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST
    if not path.is_file():
        if (folder / SETTINGS).is_file():
            settings = read_json(folder / SETTINGS, Settings)
            views, steps = len(settings.views), range(0, settings.rows, settings.shard_rows)
            whole = sum((folder / shard_name(v, start)).is_file() for v in range(views) for start in steps)
            raise CacheError(
                f"{folder} is an unfinished build ({whole} of {views * len(steps)} shards are whole): run the same "
                "build again, which goes on where it stopped"
            )
        raise CacheError(f"{folder} holds no {MANIFEST}: it is no feature cache")
    manifest = Manifest.read(path)
    settings = manifest.settings
    if settings.dtype not in DTYPES or settings.shard_rows < 1 or settings.rows < 1 or not settings.views:
        raise CacheError(f"{path} is damaged: dtype, shard_rows, rows or views are none that a build writes")
    steps = range(0, settings.rows, settings.shard_rows)
    expected = [shard_name(view, start) for view in range(len(settings.views)) for start in steps]
    if [facts.file for facts in manifest.shards] != expected:
        raise CacheError(f"{path} is damaged: it does not list the {len(expected)} shards that its settings make")
    return manifest
