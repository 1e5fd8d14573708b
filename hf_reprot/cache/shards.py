"""A shard: a safetensors file with the rows of one view, written whole, read through the memory map."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from ..utils.files import write_whole
from ..utils.safetensors_only import check_file
from .keys import KEY_BYTES
from .manifest import CacheError, Settings, ShardFacts, write_json

KEYS, SOURCES, CHECKS, LOGITS = "keys", "sources", "checks", "logits"
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
_RAW: dict[str, np.dtype] = {"float16": np.dtype("<u2"), "bfloat16": np.dtype("<u2"), "float32": np.dtype("<u4")}
_SAFETENSORS = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}
_HEADER_LIMIT = 1 << 24


def shard_name(view: int, start: int) -> str:
    """The file that holds the rows of a view from number `start` on."""
    return f"view{view:04d}-row{start:010d}.safetensors"


def feature_names(settings: Settings) -> dict[str, tuple[int, ...]]:
    """The tensors of a shard that hold features, in order, with the shape of one row."""
    names = {f"layer{i}": tuple(layer.shape) for i, layer in enumerate(settings.layers)}
    return names | ({LOGITS: (settings.classes,)} if settings.classes is not None else {})


def write_shard(
    folder: Path,
    view: int,
    start: int,
    keys: Sequence[bytes],
    sources: Sequence[bytes],
    features: Mapping[str, Tensor],
) -> ShardFacts:
    """Writes one shard; it appears in the folder whole, beside a file with its checksum, or not at all.

    Args:
        folder: The cache's folder.
        view, start: Which rows these are.
        keys, sources: Address and source of each row.
        features: (rows, ...) of each layer, and the logits.
    """
    tensors = {
        KEYS: torch.frombuffer(bytearray(b"".join(keys)), dtype=torch.uint8).view(-1, KEY_BYTES),
        SOURCES: torch.frombuffer(bytearray(b"".join(sources)), dtype=torch.uint8).view(-1, KEY_BYTES),
        **{name: value.contiguous() for name, value in features.items()},
    }
    raw = [value.reshape(len(keys), -1).view(torch.uint8).numpy() for value in tensors.values()]
    sums = [row_check(key, [rows[i] for rows in raw[2:]]) for i, key in enumerate(keys)]
    tensors[CHECKS] = torch.tensor(sums, dtype=torch.int64)
    content = save(tensors)
    facts = ShardFacts(
        shard_name(view, start), view, start, len(keys), len(content), hashlib.sha256(content).hexdigest()
    )
    # The checksum first: a shard counts once both are there.
    write_json(folder / f"{facts.file}.json", facts)
    write_whole(folder / facts.file, content, durable=True)
    return facts


def row_check(key: bytes, values: Sequence[np.ndarray]) -> int:
    """CRC-32 over a row's address and all of its features."""
    check = zlib.crc32(key)
    for value in values:
        check = zlib.crc32(np.ascontiguousarray(value).data.cast("B"), check)
    return check


class Shard:
    """An open shard.

    Args:
        path: The file.
        facts: What the manifest says of it.
        settings: The cache's settings.

    Raises:
        CacheError: the file is missing, has another size, or its header does not say what the settings say.
    """

    def __init__(self, path: Path, facts: ShardFacts, settings: Settings):
        self.path, self.facts = path, facts
        if not path.is_file():
            raise CacheError(f"the shard {facts.file} is missing from {path.parent}")
        size = path.stat().st_size
        if size != facts.bytes:
            word = "truncated" if size < facts.bytes else "too long"
            raise CacheError(f"the shard {facts.file} is {word}: {size:,} bytes, and the manifest says {facts.bytes:,}")
        try:
            check_file(path)
        except ValueError as error:
            raise CacheError(f"the shard {facts.file} is damaged: {error}") from None
        self._map = np.memmap(path, dtype=np.uint8, mode="r")
        dtype, raw = _SAFETENSORS[settings.dtype], _RAW[settings.dtype]
        wanted: dict[str, tuple[str, tuple[int, ...]]]
        wanted = {KEYS: ("U8", (KEY_BYTES,)), SOURCES: ("U8", (KEY_BYTES,)), CHECKS: ("I64", ())}
        wanted |= {name: (dtype, shape) for name, shape in feature_names(settings).items()}
        start, header = self._header()
        kinds: dict[str, np.dtype] = {"U8": np.dtype("u1"), "I64": np.dtype("<i8"), dtype: raw}
        self.arrays: dict[str, np.ndarray] = {}
        for name, (kind, shape) in wanted.items():
            entry = header.get(name, {})
            if entry.get("dtype") != kind or tuple(entry.get("shape", ())) != (facts.rows, *shape):
                raise CacheError(f"the shard {facts.file} does not hold {name} as the manifest says: {entry or 'none'}")
            try:
                low, high = entry["data_offsets"]
                values = self._map[start + low : start + high].view(kinds[kind])
                self.arrays[name] = values.reshape(facts.rows, *shape)
            except (KeyError, TypeError, ValueError) as error:
                raise CacheError(f"the shard {facts.file} is damaged: {name} is not where its header says") from error
        self.features = {name: self.arrays[name] for name in feature_names(settings)}

    def _header(self) -> tuple[int, dict[str, Any]]:
        """Where the data begins, and safetensors' header."""
        try:
            length = int.from_bytes(self._map[:8].tobytes(), "little")
            if not 0 < length <= min(_HEADER_LIMIT, len(self._map) - 8):
                raise ValueError(f"a header of {length} bytes")
            return 8 + length, json.loads(self._map[8 : 8 + length].tobytes())
        except ValueError as error:
            raise CacheError(f"the shard {self.facts.file} is damaged: {error}") from error

    def verify(self) -> None:
        """Compares the whole file with the manifest's checksum.

        Raises:
            CacheError: a bit is another one.
        """
        found = hashlib.sha256(self._map.data).hexdigest()
        if found != self.facts.sha256:
            raise CacheError(
                f"the shard {self.facts.file} is damaged: its SHA-256 is {found[:12]}..., and the manifest says "
                f"{self.facts.sha256[:12]}...: get it again, or run the same build again, which mends it"
            )

    def row(self, index: int) -> dict[str, np.ndarray]:
        """The features of one row, as raw numbers, checked against the row's own checksum.

        Raises:
            CacheError: they are not what was written.
        """
        values = {name: array[index] for name, array in self.features.items()}
        key = self.arrays[KEYS][index].tobytes()
        if row_check(key, list(values.values())) != int(self.arrays[CHECKS][index]):
            raise CacheError(f"row {index} of the shard {self.facts.file} is damaged: its checksum does not fit")
        return values


def tensor_of(raw: np.ndarray, dtype: str) -> Tensor:
    """A tensor around raw numbers (a copy of a row, or of many)."""
    return torch.from_numpy(raw.view(np.int16 if raw.dtype.itemsize == 2 else np.int32)).view(DTYPES[dtype])
