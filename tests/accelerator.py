"""A CPU that plays an accelerator: what starts work on a device is counted, what makes the host wait is refused."""

from __future__ import annotations

import contextlib
import importlib
from collections import Counter
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

# What starts nothing on a device: views, memory, questions.
_NAMES = """
    view _unsafe_view t transpose expand unsqueeze squeeze slice select detach alias as_strided permute split unbind
    split_with_sizes empty empty_like empty_strided new_empty diagonal lift_fresh _reshape_alias is_same_size device
    promote_types is_contiguous size stride layout is_pinned
"""
_FREE = set(_NAMES.split())
_READS = {"_local_scalar_dense", "nonzero", "equal", "masked_select", "_assert_async"}


def _lists(args) -> bool:
    return len(args) > 1 and isinstance(args[1], list | tuple)


class Launches(TorchDispatchMode):
    """Counts what reaches the device by name, kernels of Triton's included; with `reads` off, refuses waits."""

    def __init__(self, reads: bool = True):
        super().__init__()
        self.counts, self.reads = Counter(), reads

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name().split("::")[1].split(".")[0]
        assert self.reads or name not in _READS, function
        if name.startswith(("index", "_index_put")) and not self.reads:  # a mask is counted first
            masks = (
                [x for x in args[1] if x is not None and x.dtype in (torch.bool, torch.uint8)] if _lists(args) else []
            )
            assert not masks or (len(args) > 2 and args[2].numel() == 1), "a mask as an index"
        if name == "_to_copy":  # and nothing goes back and forth
            assert self.reads or (kwargs or {}).get("device") in (None, args[0].device), "a copy between devices"
        if name not in _FREE:
            self.counts[name] += 1
        return function(*args, **(kwargs or {}))

    @property
    def total(self) -> int:
        return sum(self.counts.values())


# What the dispatcher does not show of a CPU: copies to and from the host, and checks of what a factorisation found.
_CHECKED = "cholesky cholesky_inverse eig eigh eigvals eigvalsh inv lstsq lu_factor solve svd svdvals"
_TO_HOST = {Tensor.cpu, Tensor.numpy, Tensor.tolist, Tensor.__array__}
_FROM_HOST = {torch.tensor, torch.as_tensor, torch.from_numpy, Tensor.new_tensor}
_ASKS = {getattr(torch.linalg, name) for name in _CHECKED.split() if hasattr(torch.linalg, name)}
_ASKS |= {torch.inverse, torch.cholesky, torch.svd, Tensor.inverse, Tensor.svd, Tensor.cholesky}


class Copies(TorchFunctionMode):
    """Refuses, while `refusing`, copies that the host waits for. One that is started without waiting may be read later:
    it has long since arrived."""

    def __init__(self) -> None:
        super().__init__()
        self.refusing = False
        self._arrived: list[Tensor] = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if self.refusing:
            self._look(function, args, kwargs)
        found = function(*args, **kwargs)
        if function is Tensor.to and kwargs.get("non_blocking"):
            self._arrived.append(found)
        return found

    def _look(self, function, args, kwargs) -> None:
        if function is Tensor.to and not kwargs.get("non_blocking"):
            places = (*args[1:], kwargs.get("device"))
            assert not any(str(place) == "cpu" for place in places if isinstance(place, str)), "to('cpu') waits"
        if function in _TO_HOST:
            assert any(args[0] is one for one in self._arrived), f"{function.__name__} waits"
        if function in _FROM_HOST:
            assert "device" not in kwargs or isinstance(args[0], Tensor), f"{function.__name__} copies to the device"
        assert function not in _ASKS, f"{function.__name__} asks the device whether it went well"


@contextlib.contextmanager
def without_waits(copies: Copies, known: bool) -> Iterator[None]:
    """Inside, nothing waits for the device; before shapes are `known`, anything may."""
    copies.refusing = known
    with copies, Launches(reads=not known):
        yield
    copies.refusing = False


@pytest.fixture(name="accelerator")
def playing_accelerator(monkeypatch):
    """A CPU that plays an accelerator: autograd runs nothing on tensors of a device that is not there."""
    for module in ("solve", "gaussian", "solvers.kernel", "solvers.proximal", "solvers.units", "solvers.padding"):
        monkeypatch.setattr(importlib.import_module(f"hf_reprot.ot.{module}"), "on_host", lambda tensor: False)
