"""What tensors would be without the dropout in front of a head, beside what the model goes on with.

A student's dropout would put noise into every neuron that its head sees. It may be an `nn.Dropout` or a call of
`F.dropout` inside a forward pass, with a flatten, an activation or a projection between it and the head: each is a
function of torch, and those are watched here while a pass runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

# Every module and function of torch that drops passes through one of these.
_DROPOUTS = (
    F.dropout,
    F.dropout1d,
    F.dropout2d,
    F.dropout3d,
    F.alpha_dropout,
    F.feature_alpha_dropout,
    torch.dropout,
    torch.dropout_,
    torch.feature_dropout,
    torch.feature_dropout_,
)
# Functions that move values and change none.
_MOVES = (
    torch.flatten,
    torch.permute,
    torch.reshape,
    torch.squeeze,
    torch.transpose,
    torch.unsqueeze,
    Tensor.__getitem__,
    Tensor.contiguous,
    Tensor.flatten,
    Tensor.permute,
    Tensor.reshape,
    Tensor.squeeze,
    Tensor.to,
    Tensor.transpose,
    Tensor.unsqueeze,
    Tensor.view,
)
# Tensors in the likeness of another take no value from it, and random numbers must not be drawn twice.
_NO_VALUES = (
    torch.bernoulli,
    torch.empty_like,
    torch.full_like,
    torch.multinomial,
    torch.ones_like,
    torch.rand_like,
    torch.randn_like,
    torch.zeros_like,
    Tensor.bernoulli,
    Tensor.bernoulli_,
    Tensor.new_empty,
    Tensor.new_full,
    Tensor.new_ones,
    Tensor.new_tensor,
    Tensor.new_zeros,
)


class WithoutDropout(TorchFunctionMode):
    """While it is entered, remembers what comes after a dropout as it would be without the noise.

    Behind the last layer with positions (once `in_head` is set) everything that is computed from a dropout's output is
    computed a second time without it: the work of a head, small beside a model's. Before that, only a dropout itself
    and what moves its values are followed. The model's outputs, and the random numbers that it draws, stay as they are.
    """

    def __init__(self) -> None:
        super().__init__()
        self.clear()

    def clear(self) -> None:
        """Forgets the pass."""
        self.in_head = False
        self.pairs: list[tuple[Tensor, Tensor]] = []  # (with noise, without)

    def clean(self, value: Any) -> Any:
        """A tensor, or the tensors of a list or tuple, without the noise; anything else as it is."""
        if isinstance(value, Tensor):
            for noisy, clean in reversed(self.pairs):  # the latest first: an operation in place gives an old tensor
                if value is noisy:
                    return clean
        elif type(value) in (list, tuple):
            return type(value)([self.clean(item) for item in value])
        return value

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if func in _DROPOUTS:
            return self._drop(func, args, given)
        if not self.pairs or not (self.in_head or func in _MOVES) or func in _NO_VALUES:
            return func(*args, **given)
        clean_args = self.clean(args)
        clean_given = {name: self.clean(value) for name, value in given.items()}
        if not _differ(args, clean_args) and not _differ(list(given.values()), list(clean_given.values())):
            return func(*args, **given)
        output = func(*args, **given)
        found = list(output) if type(output) in (list, tuple) else [output]
        if any(isinstance(item, Tensor) for item in found):
            if output is args[0]:  # in place: what is without the noise may be kept elsewhere
                clean_args = (clean_args[0].clone(), *clean_args[1:])
            again = _second(func, clean_args, clean_given)
            others = list(again) if type(output) in (list, tuple) else [again]
            self.pairs += [pair for pair in zip(found, others, strict=True) if isinstance(pair[0], Tensor)]
        return output

    def _drop(self, func: Callable, args: tuple, given: dict[str, Any]) -> Any:
        if given.get("training") is False or given.get("p") == 0:
            return func(*args, **given)
        if "inplace" in given:
            given["inplace"] = False  # the tensor without the noise is kept
        before = args[0] if args else given["input"]
        clean, after = self.clean(before), func(*args, **given)
        if not self.in_head and clean is before:
            self.pairs = []  # of an earlier dropout in the model's body, whose tensors are let go
        self.pairs.append((after, clean))
        return after


def _second(func: Callable, args: tuple, given: Mapping[str, Any]) -> Any:
    """The call without the noise, which must draw no random number and leave running statistics alone."""
    calm = {"inplace": False, "dropout_p": 0.0, "training": False}
    if func is F.batch_norm and given.get("training"):
        args = (args[0], None, None, *args[3:])
        del calm["training"]
    return func(*args, **{name: calm.get(name, value) for name, value in given.items()})


def _differ(given: Any, clean: Any) -> bool:
    if type(given) in (list, tuple):
        return any(_differ(one, other) for one, other in zip(given, clean, strict=True))
    return isinstance(given, Tensor) and given is not clean
