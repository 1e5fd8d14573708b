"""What a live teacher gives for one batch, in the form that a cache keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..data.columns import TEACHER_PREFIX
from ..data.preprocessing import Preprocessing
from ..features.activations import Activation, pooled_neurons
from ..features.architecture import named_layers
from ..features.pairs import resolve_layer
from ..features.paths import core, modules_by_path, unwrap
from ..features.tables import TappedModel
from ..models.teacher import Teacher
from .manifest import LayerFacts
from .shards import DTYPES, LOGITS


class Reader:
    """Runs a teacher and takes pooled features (or whole layers) and logits.

    Every forward pass has the same number of rows: what a matrix product rounds to depends on it.

    Args:
        teacher: The teacher.
        layers: Its layers: paths, "last", "stages", "blocks", "stage:i" or "block:i".
        dtype: What features are kept in.
        positions: Keep layers whole instead of pooled.
        tokens: How layers with tokens are pooled.
        preprocessing: How the student's `pixel_values` are made.
        batch_size: Rows in a forward pass.
        logits: Whether to keep the logits of a teacher that has a head.

    Raises:
        ValueError: a layer that the teacher does not have.
    """

    def __init__(
        self,
        teacher: Teacher,
        layers: Sequence[str],
        *,
        dtype: str,
        positions: bool,
        tokens: str,
        preprocessing: Preprocessing | None,
        batch_size: int,
        logits: bool = True,
    ):
        self.teacher, self.dtype, self.positions, self.tokens = teacher, dtype, positions, tokens
        self.preprocessing, self.batch_size, self.logits = preprocessing, batch_size, logits
        self.model = unwrap(teacher.model)
        self.named = named_layers(self.model)
        self.layers = self._resolved(layers)
        self.tapped = TappedModel(self.model, self.layers)
        self.facts: list[LayerFacts] = []
        self.columns: list[str] = []

    def _resolved(self, layers: Sequence[str]) -> list[str]:
        found: list[str] = []
        for name in layers:
            if name in ("stages", "blocks"):
                if name not in self.named:
                    raise ValueError(f"{type(self.model).__name__} has no {name} that are known: name layers by path")
                found += self.named[name]
            else:
                where = "all" if self.positions else "pooled"
                found.append(resolve_layer(self.model, name, where, "teacher"))
        return list(dict.fromkeys(found))

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Features of a batch with `batch_size` rows or fewer, on the CPU: one tensor per layer, in order, and logits.

        Raises:
            ValueError: a layer whose shape changes from batch to batch, or values that the data type cannot hold.
        """
        count = len(next(value for value in batch.values() if isinstance(value, Tensor)))
        filled = torch.arange(self.batch_size) % count
        device = next((p.device for p in self.model.parameters()), torch.device("cpu"))
        inputs = {k: v[filled].to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}
        taken = self.teacher.inputs_for(inputs, self.preprocessing)
        if not self.columns:
            columns = (own if (own := TEACHER_PREFIX + name) in batch else name for name in taken)
            self.columns = [name for name in columns if name in batch]  # the others are made of these
        logits, caught = self.tapped.run(lambda: self.teacher(taken))
        mask = inputs.get("teacher_attention_mask", inputs.get("attention_mask"))
        kept = {f"layer{i}": self._kept(caught[name], mask) for i, name in enumerate(self.layers)}
        if not self.facts:
            layouts = [caught[name].layout if self.positions else "nc" for name in self.layers]
            shapes = [list(value.shape[1:]) for value in kept.values()]
            self.facts = [
                LayerFacts.of(caught[name], shape, layout)
                for name, shape, layout in zip(self.layers, shapes, layouts, strict=True)
            ]
        for fact, value in zip(self.facts, kept.values(), strict=True):
            if list(value.shape[1:]) != fact.shape:
                raise ValueError(
                    f"{fact.name} has rows of shape {tuple(value.shape[1:])} and had {tuple(fact.shape)} before: keep "
                    "pooled features (positions=False), or bring all images to one size"
                )
        if logits is not None and self.logits:
            kept[LOGITS] = logits
        return {name: self._cast(value[:count], name) for name, value in kept.items()}

    def _kept(self, layer: Activation, mask: Tensor | None) -> Tensor:
        if not self.positions:
            return pooled_neurons(layer, tokens=self.tokens, mask=mask)
        if layer.is_text:
            raise ValueError(
                f"{layer.name} holds the tokens of a text, whose number depends on the padding: cache pooled features "
                "(positions=False)"
            )
        return layer.tensor

    def _cast(self, value: Tensor, name: str) -> Tensor:
        cast = value.to(DTYPES[self.dtype]).cpu().contiguous()
        if bool((cast.isinf() & ~value.cpu().isinf()).any()):
            place = "the logits" if name == LOGITS else self.layers[int(name.removeprefix("layer"))]
            raise ValueError(
                f"{place} has values up to {float(value.abs().max()):.3g}, which {self.dtype} cannot hold: choose "
                "dtype='bfloat16' or 'float32'"
            )
        return cast

    def is_order_free(self, batch: Mapping[str, Any], base: Mapping[str, Tensor]) -> bool:
        """Whether a row's features are the same bits wherever in a batch it stands.

        They are for most shapes; a matrix product may round the rows at the end of a block in another way.

        Args:
            batch: A batch.
            base: What it gave.
        """
        count = len(next(value for value in batch.values() if isinstance(value, Tensor)))
        rows = torch.arange(count)
        for order in (rows.roll(1), rows.roll(count // 2), rows.flip(0)):
            moved = self({k: v[order] if isinstance(v, Tensor) else v for k, v in batch.items()})
            if any(not torch.equal(moved[name], value[order]) for name, value in base.items()):
                return False
        return True

    def close(self) -> None:
        """Takes the taps off the teacher."""
        self.tapped.close()


def paths_of(model: Any) -> list[str]:
    """Every module's path."""
    return list(modules_by_path(unwrap(model)))


def base_prefix(model: Any) -> str:
    """What transformers calls the backbone inside of a model with a head."""
    prefix = getattr(core(model)[0], "base_model_prefix", "")
    return prefix if isinstance(prefix, str) else ""
