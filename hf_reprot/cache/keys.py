"""What a cache is addressed by: hashes of exact tensors, of examples before any augmentation, and of weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..data.images import open_image

KEY_BYTES = 16


def content_hash(*parts: bytes | str | Tensor) -> bytes:
    """16 bytes that follow from the values, types and shapes of everything given (BLAKE2b, RFC 7693)."""
    digest = hashlib.blake2b(digest_size=KEY_BYTES)
    for part in parts:
        if isinstance(part, Tensor):
            digest.update(f"{part.dtype} {tuple(part.shape)};".encode())
            digest.update(_bytes(part))
        else:
            raw = part.encode() if isinstance(part, str) else part
            digest.update(f"{len(raw)};".encode())
            digest.update(raw)
    return digest.digest()


def row_keys(batch: Mapping[str, Any], columns: Sequence[str]) -> list[bytes]:
    """One key for each row of a batch: the hash of exactly what the teacher's input is made of.

    Args:
        batch: What a collator made.
        columns: The columns that the teacher's input is made of.

    Raises:
        ValueError: the batch lacks one of them.
    """
    missing = [name for name in columns if not isinstance(batch.get(name), Tensor)]
    if missing:
        raise ValueError(
            f"the cache is addressed by the column(s) {', '.join(columns)}, and the batch has no tensor "
            f"{missing[0]!r}: it has {', '.join(batch) or 'nothing'}"
        )
    tensors = {name: batch[name].detach().cpu() for name in sorted(columns)}
    count = len(next(iter(tensors.values())))
    return [content_hash(*(x for name, rows in tensors.items() for x in (name, rows[i]))) for i in range(count)]


def source_hashes(rows: Sequence[Any], batch: Mapping[str, Any], collator: Any, keys: Sequence[bytes]) -> list[bytes]:
    """One hash for each example as it is before augmentation and padding, to tell a changed example from another view.

    Args:
        rows: What the collator was given.
        batch: What it made of them.
        collator: The collator; one that opens images (`image_column`) has them hashed as opened.
        keys: The keys of the batch's rows, which stand in where nothing more basic is known.
    """
    column = getattr(collator, "image_column", None)
    if column is not None and all(isinstance(row, Mapping) and column in row for row in rows):
        images = [open_image(row[column], getattr(collator, "mode", "RGB")) for row in rows]
        return [content_hash(f"{image.mode} {image.size}", image.tobytes()) for image in images]
    tokens, mask = batch.get("input_ids"), batch.get("attention_mask")
    if isinstance(tokens, Tensor) and isinstance(mask, Tensor) and tokens.shape == mask.shape:
        return [content_hash(row[keep.ne(0)]) for row, keep in zip(tokens.cpu(), mask.cpu(), strict=True)]
    return list(keys)


def weights_hash(model: nn.Module) -> str:
    """A hexadecimal hash of every parameter and buffer that the model's state holds: names, types, shapes, values."""
    parts: list[str | Tensor] = []
    for name, value in sorted(model.state_dict().items()):
        if isinstance(value, Tensor):
            parts += [name, value.detach().cpu()]
    return content_hash(*parts).hex()


def _bytes(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")
