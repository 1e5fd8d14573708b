"""Weights are safetensors, or they are not read: one answer for folders, repositories, checkpoints, caches and pushes.

Libraries choose how to read a file by its name, take names from an index or a config, and unpickle what is no
safetensors file. So names and headers are looked at before anything of a source is loaded.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from .strict_json import load_json

SUFFIX = ".safetensors"
ADAPTER, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

Shapes = dict[str, tuple[int, ...]]

_INDEX = re.compile(r".*\.safetensors\.index(\.[\w-]+)?\.json", re.IGNORECASE)
_LONGEST_HEADER = 100_000_000  # bytes; safetensors' own limit
_LONGEST_INDEX = 100_000_000
_BITS = {"BOOL": 8, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "E8M0": 8, "F8_E8M0": 8, "F8_E4M3": 8, "F8_E5M2": 8}
_BITS |= {"BF16": 16, **{f"{kind}{bits}": bits for kind in "IU" for bits in (8, 16, 32, 64)}}
_BITS |= {f"F{bits}": bits for bits in (16, 32, 64)}
# Loading options that lead to weights in another format.
_OTHER_FORMATS = ("gguf_file", "from_tf", "from_flax", "state_dict")
_HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")


def check_file(path: str | Path) -> Shapes:
    """Refuses a file that is no whole safetensors file, by its length, its header and the places of its tensors.

    The tensors are not read.

    Returns:
        Name and shape of each tensor.

    Raises:
        ValueError: the file is none; the message names it and what is wrong.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if not 2 <= length <= min(_LONGEST_HEADER, size - 8):
                raise ValueError(f"its header would have {length:,} bytes, the file has {size:,}")
            header = load_json(file.read(length).decode("utf-8"))
        return _shapes(header, size - 8 - length)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from error
    except RecursionError:
        raise ValueError(f"{path} is no safetensors file: its header is nested without end") from None
    except struct.error:
        raise ValueError(f"{path} is damaged or no safetensors file: it has {size:,} bytes") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged or no safetensors file: {error}") from None


def check_index(path: str | Path) -> list[str]:
    """The files that a shard index names, once each of them is a plain name ending in ".safetensors".

    Raises:
        ValueError: it is no index, or names anything else: another folder, another format.
    """
    path = Path(path)
    try:
        if path.stat().st_size > _LONGEST_INDEX:
            raise ValueError(f"more than {_LONGEST_INDEX:,} bytes")
        content = json.loads(path.read_text(encoding="utf-8"))
        places = content["weight_map"]
        names = list(dict.fromkeys(places.values()))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged or no index of weights: {type(error).__name__} {error}") from None
    if not names:
        raise ValueError(f"{path} is no index of weights: it names no file")
    for name in names:
        _check_name(name, f"the index {path}")
    return sorted(names)


def check_folder(folder: str | Path, *, deep: bool = False, only: Iterable[Path] | None = None) -> Shapes:
    """Refuses a folder in which anything that a library would take for weights is no safetensors.

    Looked at are every file that ends in ".safetensors", every shard index with the files that it names, and adapters,
    which must have safetensors weights. Other files (pickles beside them, too) are left alone: nothing reads them.

    Args:
        folder: The folder.
        deep: Also the folders in it.
        only: Look at these files of it.

    Returns:
        Name and shape of each tensor in the folder itself; empty where there are no weights.

    Raises:
        ValueError: the first file or name that is not as it must be.
    """
    folder = Path(folder)
    shapes: Shapes = {}
    for path in _files(folder, deep) if only is None else only:
        if _INDEX.fullmatch(path.name):
            names = check_index(path)
            missing = [name for name in names if not path.with_name(name).is_file()]
            if missing:
                raise ValueError(
                    f"{folder} lacks pieces of the weights: {', '.join(missing[:3])} (named by {path.name})"
                )
        elif path.name.lower().endswith(SUFFIX):
            check_inside(path, folder)
            found = check_file(path)
            shapes |= found if path.parent == folder else {}
        elif path.name == ADAPTER and not path.with_name(ADAPTER_WEIGHTS).is_file():
            raise ValueError(
                f"{path.parent} holds an adapter ({ADAPTER}) without {ADAPTER_WEIGHTS}: only safetensors are read"
            )
    return shapes


def check_inside(path: Path, folder: Path) -> None:
    """Refuses a link that leads out of a folder; the Hub's cache is made of links to its own store.

    Raises:
        ValueError: it leads elsewhere.
    """
    real, home = path.resolve(), folder.resolve()
    stores = [commit.parents[1] / "blobs" for commit in (home, *home.parents) if commit.parent.name == "snapshots"]
    if not any(place in real.parents for place in (home, *stores)):
        raise ValueError(
            f"{path} is a link to {real}, out of the folder: put the file itself there, or give the folder it lies in"
        )


def check_source(source: str, config: Mapping[str, Any], options: Mapping[str, Any], *, what: str = "model") -> Shapes:
    """Refuses a folder or repository that a library would load anything but whole safetensors from.

    Of a repository, the weights are fetched into the cache, where the library finds them afterwards.

    Args:
        source: A folder or a hub id.
        config: The content of its config.json.
        options: What `from_pretrained` gets; of these, the ones that say which files it reads.
        what: What a message calls it.

    Returns:
        Name and shape of each tensor.

    Raises:
        ValueError: no safetensors, another format asked for, names that lead elsewhere, damaged files.
    """
    check_options(options)
    check_config(config, source=source)
    named = config.get("transformers_weights")
    variant = options.get("variant")
    names = (
        [str(named)] if named else [_variant(f"model{SUFFIX}", variant), _variant(f"model{SUFFIX}.index.json", variant)]
    )
    folder = Path(source)
    if folder.is_dir():
        folder = folder / (options.get("subfolder") or "")
        if (folder / ADAPTER).is_file():
            raise ValueError(f"{folder} holds an adapter: load the whole model with PEFT and pass the module")
        if not any((folder / name).is_file() for name in names):
            raise ValueError(
                f"{folder} holds no safetensors weights, and others are not read: save them with save_pretrained first"
            )
        return check_folder(folder)
    hub = {name: options[name] for name in _HUB_OPTIONS if options.get(name) is not None}
    if _fetched(source, ADAPTER, hub) is not None:
        raise ValueError(f"{source} holds an adapter: load the whole model with PEFT and pass the module")
    path = next((found for found in (_fetched(source, name, hub) for name in names) if found is not None), None)
    if path is None:
        raise ValueError(
            f"the {what} {source!r} has no safetensors weights ({' or '.join(names)}), and others are not read"
        )
    if not _INDEX.fullmatch(path.name):
        return check_file(path)
    shapes: Shapes = {}
    for name in check_index(path):
        shard = _fetched(source, name, hub)
        if shard is None:
            raise ValueError(f"the {what} {source!r} lacks a piece of its weights: {name}")
        shapes |= check_file(shard)
    return shapes


def check_options(options: Mapping[str, Any]) -> None:
    """Refuses options of `from_pretrained` that lead to weights in another format.

    Raises:
        ValueError: the option is named.
    """
    for name in _OTHER_FORMATS:
        if options.get(name):
            raise ValueError(f"{name}={options[name]!r} is not possible: only safetensors weights are read")
    if options.get("use_safetensors") is False:
        raise ValueError("use_safetensors=False is not possible: pickled weights can run code when read")


def check_config(config: Any, *, source: str) -> None:
    """Refuses a config that has a library read a file of its own while it makes the model.

    Args:
        config: The content of a config.json.
        source: What it belongs to, for the message.

    Raises:
        ValueError: it names such a file, wherever in it: timm's `checkpoint_path` (older versions unpickle it), weights
            in another format, or an architecture that timm would fetch from elsewhere.
    """
    left = [config]
    while left:
        value = left.pop()
        if isinstance(value, Mapping):
            if value.get("checkpoint_path"):
                raise ValueError(
                    f"the config of {source!r} asks for weights from {str(value['checkpoint_path'])!r}, which may run "
                    "code when they are read: only safetensors beside the config are. Take checkpoint_path out of it "
                    "if you trust the rest"
                )
            if value.get("transformers_weights"):
                named = value["transformers_weights"]
                if not (isinstance(named, str) and _INDEX.fullmatch(named) and _is_plain(named)):
                    _check_name(named, f"the config of {source!r} (transformers_weights)")
            architecture = value.get("architecture")
            if isinstance(architecture, str) and not re.fullmatch(r"[\w.-]+", architecture):
                raise ValueError(
                    f"the config of {source!r} names the architecture {architecture[:80]!r}, which lies elsewhere: it "
                    "must be the plain name of one of timm's, such as 'resnet18'"
                )
            left += value.values()
        elif isinstance(value, list | tuple):
            left += value


def _files(folder: Path, deep: bool) -> Iterator[Path]:
    for path in sorted(folder.rglob("*") if deep else folder.iterdir()):
        if path.is_file() or path.is_symlink():
            yield path


def _check_name(name: Any, where: str) -> None:
    # The ending as it stands: libraries compare it so, and unpickle a file that ends otherwise.
    if not (isinstance(name, str) and _is_plain(name) and name.endswith(SUFFIX) and name != SUFFIX):
        shown = repr(name) if len(repr(name)) <= 80 else f"{repr(name)[:80]}..."
        raise ValueError(
            f"{where} names {shown} as weights: only files in the same folder whose names end in {SUFFIX} are read"
        )


def _is_plain(name: str) -> bool:
    return re.fullmatch(r"[^/\\:\x00-\x1f]+", name) is not None and name not in (".", "..")


def _shapes(header: Any, data: int) -> Shapes:
    if not isinstance(header, dict):
        raise ValueError("its header is no mapping")
    said = header.pop("__metadata__", {})
    if not isinstance(said, dict) or not all(isinstance(value, str) for value in said.values()):
        raise ValueError("its __metadata__ is not text")
    shapes, places = {}, []
    for name, entry in header.items():
        shape, (start, end) = entry["shape"], entry["data_offsets"]
        numbers = [*shape, start, end]
        if not all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 2**63 for n in numbers):
            raise ValueError(f"shape or place of {name!r} is none")
        bits = _BITS.get(entry["dtype"])
        if end < start or (bits is not None and math.prod(shape) * bits != 8 * (end - start)):
            raise ValueError(f"{name!r} has another size than its shape")
        places.append((start, end))
        shapes[name] = tuple(shape)
    reached = 0
    for start, end in sorted(places):
        if start != reached:
            raise ValueError("its tensors overlap, or leave gaps")
        reached = end
    if reached != data:
        raise ValueError(f"its tensors take {reached:,} bytes, and {data:,} are there")
    return shapes


def _variant(name: str, variant: str | None) -> str:
    if not variant:
        return name
    stem, _, ending = name.rpartition(".")
    return f"{stem}.{variant}.{ending}"


def _fetched(repo: str, name: str, hub: Mapping[str, Any]) -> Path | None:
    """A file of a repository, from the cache or the Hub; None where the repository has none of that name."""
    inside = "/".join(filter(None, (hub.get("subfolder"), name)))
    if not hub.get("force_download"):
        known = try_to_load_from_cache(repo, inside, cache_dir=hub.get("cache_dir"), revision=hub.get("revision"))
        if known is not None:
            return Path(known) if isinstance(known, str) else None
    try:
        return Path(hf_hub_download(repo, name, **{k: v for k, v in hub.items() if k != "proxies"}))
    except LocalEntryNotFoundError:  # offline: what is not in the cache is not there
        return None
    except EntryNotFoundError:
        return None
