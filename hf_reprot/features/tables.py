"""Runs a model on a batch and gives its layers as tables of neurons, one row per sample."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from .activations import Activation, pooled_neurons
from .paths import unwrap
from .taps import Taps

T = TypeVar("T")


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Context manager: evaluation mode; every module's own mode is restored on exit."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


class TappedModel:
    """A model and some of its layers, recorded in evaluation mode and without gradients.

    Use it as a context manager: the taps are taken off the model at the end.

    Args:
        model: The model; a DDP or compiled one is unwrapped.
        layers: Layers as `Taps` takes them.

    Raises:
        ValueError: a layer that the model does not have.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from hf_reprot.features.tables import TappedModel
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> with TappedModel(model, ["1"]) as tapped:
        ...     outputs, layers = tapped.run(lambda: model(torch.randn(5, 4)))
        >>> outputs.shape, layers["1"].width
        (torch.Size([5, 2]), 3)
    """

    def __init__(self, model: nn.Module, layers: Sequence[str]):
        self.model, self.layers = unwrap(model), list(layers)
        self.taps = Taps(self.model, self.layers)

    def run(self, forward: Callable[[], T]) -> tuple[T, dict[str, Activation]]:
        """What `forward`, which calls the model once, returns, and the layers of that call by their names."""
        with evaluating(self.model), torch.no_grad(), self.taps.recording():
            outputs = forward()
        return outputs, self.taps.take()

    def close(self) -> None:
        """Takes the taps off the model."""
        self.taps.close()

    def __enter__(self) -> TappedModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def pooled_tables(
    caught: Mapping[str, Activation], names: Sequence[str], tokens: str = "auto", mask: Tensor | None = None
) -> list[Tensor]:
    """(n, d) of each named layer: one sample per image or text, whatever the layer's positions are."""
    return [pooled_neurons(caught[name], tokens=tokens, mask=mask).float() for name in names]
