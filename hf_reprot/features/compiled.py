"""`torch.compile` and hooks: compiled code is shared by all instances of a class, whatever hooks each of them has."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn


def in_place(model: nn.Module) -> nn.Module:
    """The module inside `torch.compile(module)`, compiled in place (as `module.compile()` does) in the same way.

    So it keeps its class, its paths and its names of weights: it is found, saved and read as if it were not compiled.
    A module that is not compiled comes back as it is.
    """
    while isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
        context = getattr(model, "dynamo_ctx", None)
        if context is not None and inner._compiled_call_impl is None:
            inner._compiled_call_impl = context(inner._call_impl)
        model = inner
    return model


def is_compiled(model: nn.Module) -> bool:
    """Whether calling a model runs compiled code, of it or of a part of it."""
    return any(
        module._compiled_call_impl is not None or isinstance(getattr(module, "_orig_mod", None), nn.Module)
        for module in model.modules()
    )


@contextlib.contextmanager
def as_written() -> Iterator[None]:
    """Compiled models run uncompiled inside: hooks that were registered since they were compiled fire."""
    if "torch._dynamo" not in sys.modules:  # nothing has been compiled, and loading it takes seconds
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


@contextlib.contextmanager
def own_hooks(active: bool) -> Iterator[None]:
    """What is compiled inside fires the hooks of the instance that is called.

    torch does not look at hooks when it looks for code that it has compiled already, so that an instance without them
    would lend its code to one with them. What was compiled before is forgotten (all of it: it is compiled again when it
    is called), and hooks are looked at inside.

    Args:
        active: Whether anything is compiled inside.
    """
    if not active:
        yield
        return
    import torch._dynamo

    torch.compiler.reset()
    name = "skip_nnmodule_hook_guards"
    known: dict[str, Any] = {name: False} if hasattr(torch._dynamo.config, name) else {}
    with torch._dynamo.config.patch(known):
        yield
