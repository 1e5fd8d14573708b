"""A cached teacher is a teacher: the activations of its layers come with the batch."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from ..data.preprocessing import Preprocessing
from ..features.activations import Activation
from ..models.teacher import Teacher
from .collator import column_name
from .shards import LOGITS
from .store import FeatureCache


class CachedTeacher(Teacher):
    """A teacher without weights: the activations of its layers come with the batch, from a feature cache.

    Args:
        cache: The cache.
        index: Its number among the teachers.
    """

    def __init__(self, cache: FeatureCache, index: int = 0):
        settings = cache.settings
        pixels = settings.teacher_pixels
        super().__init__(
            CachedModel(cache),
            name=settings.teacher.name,
            revision=settings.teacher.revision,
            preprocessing=pixels.preprocessing() if pixels is not None else None,
        )
        self.cache, self.index = cache, index
        self._caught: dict[str, Activation] = {}

    @property
    def facts(self) -> Any:
        """What a card says of the teacher: as the cache recorded it."""
        settings = self.cache.settings
        kind = "every position" if settings.positions else "pooled"
        said = f"{len(self.cache):,} rows, {kind}, {settings.dtype}, SHA-256 {self.cache.digest[:16]}"
        return dataclasses.replace(settings.teacher, cache=said)

    def inputs_for(self, inputs: Mapping[str, Any], preprocessing: Preprocessing | None = None) -> dict[str, Any]:
        """The cached columns of a batch, by the names of the layers.

        Raises:
            ValueError: the batch comes from another data loader and lacks them.
        """
        names = [*self.cache.layers, *([LOGITS] if self.cache.settings.classes is not None else [])]
        columns = {name: inputs.get(column_name(self.index, name)) for name in names}
        missing = [name for name, value in columns.items() if value is None]
        if missing:
            raise ValueError(
                f"the batch lacks the cached features of {missing[0]}: training with teacher_features takes its "
                "batches from the trainer's own data loader"
            )
        return columns

    def __call__(self, inputs: Mapping[str, Any]) -> Tensor | None:
        """Keeps the layers for `CachedTaps`; the logits, or None."""
        values = {name: value.float() for name, value in inputs.items()}
        self._caught = {name: layer.activation(values[name]) for name, layer in self.cache.layers.items()}
        return values.get(LOGITS)

    def taps(self, layers: Sequence[str]) -> CachedTaps:
        """Gives the layers of the batch that the teacher was last called with."""
        return CachedTaps(self, layers)

    def check_input(self, inputs: Mapping[str, Any], preprocessing: Preprocessing | None = None) -> None:
        """Nothing runs, so nothing can refuse a batch."""

    def dummy(self, samples: int, device: torch.device) -> dict[str, Tensor]:
        """Columns with random features, for checks before there is a batch."""
        return {column_name(self.index, name): value for name, value in self.cache.empty(samples, device).items()}


class CachedModel(nn.Module):
    """The module paths of a teacher that is not there, so that layer pairs are resolved against it."""

    def __init__(self, cache: FeatureCache):
        super().__init__()
        settings = cache.settings
        self.named_layers = settings.named  # as `DeclaresLayers` asks
        self.base_model_prefix = settings.base_model_prefix
        names = dict(enumerate(settings.class_names or ()))
        self.config = SimpleNamespace(id2label=names, num_labels=settings.classes, problem_type=settings.problem_type)
        self.place = nn.Parameter(torch.empty(0), requires_grad=False)  # moves with `to`, and tells the device
        for path in settings.modules:
            parent: nn.Module = self
            for segment in path.split("."):
                child = parent._modules.get(segment)
                if child is None:
                    child = parent._modules[segment] = nn.Identity()
                parent = child

    def forward(self) -> None:
        """There is nothing to run."""
        raise RuntimeError("a cached teacher has no weights to run")


class CachedTaps:
    """In the place of `Taps` on a live teacher."""

    def __init__(self, teacher: CachedTeacher, names: Sequence[str]):
        self.teacher, self.names = teacher, list(names)

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Nothing has to be recorded."""
        yield

    def take(self) -> dict[str, Activation]:
        """The layers of the batch that the teacher was last called with."""
        caught, self.teacher._caught = self.teacher._caught, {}
        return {name: caught[name] for name in self.names}

    def register(self) -> None:
        """There are no hooks."""

    def close(self) -> None:
        """There are no hooks."""
