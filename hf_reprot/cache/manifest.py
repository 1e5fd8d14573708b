"""What a cache says of itself: which teacher, layers, data, views and settings, and which shards are whole."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..data.preprocessing import Preprocessing
from ..features.activations import Activation
from ..features.layout import Tokens
from ..hub.facts import DataFacts, ModelFacts
from ..hub.privacy import public
from ..utils.files import write_whole
from ..utils.strict_json import from_mapping
from .views import View

MANIFEST, SETTINGS = "manifest.json", "settings.json"
FORMAT = 1
if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")
# What may differ between two builds that share a folder: it says nothing of what the rows are.
_NOT_COMPARED = ("versions", "bitwise", "device", "teacher.license", "data.license", "teacher.speed", "teacher.metrics")


class CacheError(ValueError):
    """A cache that is damaged, or does not belong to this run; the message says which and why."""


@dataclass
class LayerFacts:
    """One cached layer: `shape` of one row, and what its axes mean, as in `Activation` and `Tokens`."""

    name: str
    shape: list[int]
    layout: str
    prefix: int = 0
    grid: list[int] | None = None
    reads_class: bool = False
    modality: str = "image"
    tokens_prefix: int = 0
    class_token: str | None = None
    tokens_grid: list[int] | None = None
    in_rows: bool = True
    embedding: str | None = None

    @classmethod
    def of(cls, layer: Activation, shape: list[int], layout: str) -> LayerFacts:
        """The facts of a recorded layer, of which rows of `shape` with the axes `layout` are kept."""
        tokens = layer.tokens
        grids = [list(grid) if grid is not None else None for grid in (layer.grid, tokens.grid)]
        return cls(
            layer.name,
            shape,
            layout,
            layer.prefix,
            grids[0],
            layer.reads_class,
            tokens.modality,
            tokens.prefix,
            tokens.class_token,
            grids[1],
            tokens.in_rows,
            tokens.embedding,
        )

    def activation(self, tensor: Any) -> Activation:
        """What the live teacher's tap would have given, around a tensor (n, *shape)."""
        grid, whole = _size(self.grid), _size(self.tokens_grid)
        tokens = Tokens(self.modality, self.tokens_prefix, self.class_token, whole, self.in_rows, self.embedding)
        return Activation(tensor, self.layout, self.name, tokens, self.prefix, grid, self.reads_class)


@dataclass
class PixelFacts:
    """A `Preprocessing`, as JSON keeps it."""

    mean: list[float] | None = None
    std: list[float] | None = None
    size: list[int] | None = None
    bgr: bool = False

    @classmethod
    def of(cls, preprocessing: Preprocessing | None) -> PixelFacts | None:
        """The facts of a preprocessing; None for None."""
        if preprocessing is None:
            return None
        mean, std, size = preprocessing.mean, preprocessing.std, preprocessing.size
        return cls(
            list(mean) if mean is not None else None,
            list(std) if std is not None else None,
            list(size) if size is not None else None,
            preprocessing.bgr,
        )

    def preprocessing(self) -> Preprocessing:
        """The `Preprocessing` that these are the facts of."""
        mean = tuple(self.mean) if self.mean is not None else None
        std = tuple(self.std) if self.std is not None else None
        return Preprocessing(mean, std, _size(self.size), self.bgr)


@dataclass
class Settings:
    """Everything that the rows of a cache follow from.

    Attributes:
        teacher: The teacher's facts, and `weights`, the hash of its weights.
        teacher_pixels, teacher_size, teacher_channels: How the teacher wants its images. `teacher_image_size`: the
            size that it was told to see; `teacher_patches`: [side, greatest number] of the patches that it takes.
        pixels: How the student's `pixel_values` were made.
        columns: The student's columns that the teacher's input is made of: a row's address is their hash.
        layers: The cached layers, in order. `modules` and `named` say which layers the teacher has, so that "last" or
            "stages" can be resolved without it.
        classes: Number of the teacher's classes where its logits are cached; `class_names` where it names them, and
            `problem_type` where it says what its outputs are.
        dtype: "float16", "bfloat16" or "float32". `positions`: whether layers are kept whole instead of pooled;
            `tokens` says how they were pooled.
        views: The views of each example. `data`: the examples; `sample`: a hash over some of them.
        batch_size: Rows in each of the teacher's forward passes; `shard_rows`: rows in a shard.
        bitwise: Whether rows of the first batch gave the same bits in every order.
    """

    teacher: ModelFacts
    weights: str
    teacher_dtype: str
    teacher_pixels: PixelFacts | None
    teacher_size: list[int] | None
    teacher_channels: int | None
    pixels: PixelFacts | None
    columns: list[str]
    layers: list[LayerFacts]
    classes: int | None
    class_names: list[str] | None
    dtype: str
    positions: bool
    tokens: str
    views: list[View]
    data: DataFacts
    rows: int
    sample: str
    batch_size: int
    shard_rows: int
    modules: list[str]
    named: dict[str, list[str]]
    base_model_prefix: str = ""
    problem_type: str | None = None
    bitwise: bool = False
    device: str = "cpu"
    versions: dict[str, str] = field(default_factory=dict)
    format: int = FORMAT
    teacher_image_size: list[int] | None = None
    teacher_patches: list[int] | None = None

    @property
    def title(self) -> str:
        """The teacher, as a message calls it."""
        return self.teacher.name + (f"@{self.teacher.revision[:12]}" if self.teacher.revision else "")

    def published(self) -> Settings:
        """The same without tokens and places on this machine."""
        return from_mapping(Settings, public(asdict(self)))

    def differences(self, other: Settings) -> list[str]:
        """What differs from other settings, in words: "dtype is float16 there and float32 here"."""
        theirs, ours = _flat(asdict(self)), _flat(asdict(other))
        names = [n for n in dict.fromkeys([*theirs, *ours]) if not n.startswith(_NOT_COMPARED)]
        names.sort(
            key=lambda name: name.startswith(("layers", "named", "modules"))
        )  # what these follow from comes first
        return [
            f"{n} is {_short(theirs.get(n))} there and {_short(ours.get(n))} here"
            for n in names
            # A build of an earlier version did not write the problem type down.
            if theirs.get(n) != ours.get(n) and not (n == "problem_type" and theirs.get(n) is None)
        ]


@dataclass
class ShardFacts:
    """A whole shard: `start` is the first row of the data set in it, `view` the number of the view."""

    file: str
    view: int
    start: int
    rows: int
    bytes: int
    sha256: str


@dataclass
class Manifest:
    """The settings, every shard, and `digest`, the SHA-256 over both: the cache's own name."""

    settings: Settings
    shards: list[ShardFacts]
    digest: str = ""

    @property
    def rows(self) -> int:
        """Number of rows, over all views."""
        return sum(facts.rows for facts in self.shards)

    @property
    def bytes(self) -> int:
        """Size of the shards on the disk."""
        return sum(facts.bytes for facts in self.shards)

    def computed_digest(self) -> str:
        """What `digest` must be."""
        return digest_of(asdict(self))

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """A manifest from a file.

        Raises:
            CacheError: the file is damaged, was changed, or is of a later version of this package.
        """
        manifest = read_json(path, cls)
        # Of the text as it stands: a later version may have fields that this file has not.
        if manifest.digest != digest_of(json.loads(path.read_text(encoding="utf-8"))):
            raise CacheError(f"{path} was changed: its digest does not fit its content")
        return manifest


def digest_of(content: Mapping[str, Any]) -> str:
    """SHA-256 of a manifest's JSON, its own digest left out."""
    plain = {name: value for name, value in content.items() if name != "digest"}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def read_json(path: Path, kind: type[T]) -> T:
    """A dataclass from a file.

    Raises:
        CacheError: the file is damaged, or of a later version of this package.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        settings = content.get("settings", content) if isinstance(content, dict) else {}
        version = settings.get("format") if isinstance(settings, dict) else None
        if isinstance(version, int) and version > FORMAT:
            raise CacheError(f"{path} was written by a later hf_reprot (layout {version}; this one reads {FORMAT})")
        return from_mapping(kind, content)
    except CacheError:
        raise
    except ValueError as error:
        raise CacheError(f"{path} is damaged: {error}") from error


def write_json(path: Path, value: Any) -> None:
    """A dataclass into a file, whole or not at all."""
    write_whole(path, json.dumps(asdict(value), indent=1) + "\n", durable=True)


def _size(numbers: Sequence[int] | None) -> tuple[int, int] | None:
    """(height, width), which JSON keeps as a list."""
    if numbers is None:
        return None
    height, width = numbers
    return height, width


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted names; lists of mappings by number."""
    if isinstance(value, dict) and value:
        return {k: v for key, item in value.items() for k, v in _flat(item, f"{name}.{key}" if name else key).items()}
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return {k: v for i, item in enumerate(value) for k, v in _flat(item, f"{name}[{i}]").items()}
    return {name: value}


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else text[:77] + "..."
