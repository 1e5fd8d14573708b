"""Layer names: the syntax that users write, and the module that a name refers to."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..utils.messages import nearest

LAYOUTS = ("nchw", "nhwc", "nlc", "ncl")

# What wrapping a model puts into the paths of its modules; a user who copied a path from a wrapped model has them.
_WRAPPER_SEGMENTS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


@dataclass(frozen=True)
class LayerName:
    """A parsed layer name: `path[:input][:layout][:prefixN]`.

    Attributes:
        path: Path of a module.
        at_input: Whether the first tensor that goes into the module is meant, not what comes out.
        layout: The meaning of the tensor's axes where the user says it: "nchw", "nhwc", "nlc" or "ncl".
        prefix: Tokens before the patches where the user says it.
    """

    path: str
    at_input: bool = False
    layout: str | None = None
    prefix: int | None = None

    @classmethod
    def parse(cls, name: str) -> LayerName:
        """Reads a name.

        Raises:
            ValueError: an option after the colon that does not exist.
        """
        path, *options = name.split(":")
        at_input, layout, prefix = False, None, None
        for option in options:
            if option == "input":
                at_input = True
            elif option in LAYOUTS:
                layout = option
            elif re.fullmatch(r"prefix\d+", option):
                prefix = int(option.removeprefix("prefix"))
            else:
                raise ValueError(
                    f"{name!r}: {option!r} cannot stand behind a layer's path. Legal: input (what goes into the "
                    f"module), {', '.join(LAYOUTS)} (the meaning of its axes), prefixN (N tokens before the patches)"
                )
        return cls(path, at_input, layout, prefix)

    def __str__(self) -> str:
        options = ["input"] if self.at_input else []
        options += [self.layout] if self.layout else []
        options += [f"prefix{self.prefix}"] if self.prefix is not None else []
        return ":".join([self.path, *options])


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside `DistributedDataParallel` and `torch.compile`."""
    while True:
        if isinstance(model, DistributedDataParallel):
            model = model.module
            continue
        compiled = getattr(model, "_orig_mod", None)
        if not isinstance(compiled, nn.Module):
            return model
        model = compiled


def modules_by_path(model: nn.Module) -> dict[str, nn.Module]:
    """Every module below a model by its path; a module that stands in two places has both paths."""
    return {path: module for path, module in model.named_modules(remove_duplicate=False) if path}


def path_of(module: nn.Module, model: nn.Module) -> str | None:
    """Path of a module in a model: "" for the model itself, None where it is no part of it."""
    return next((path for path, other in model.named_modules(remove_duplicate=False) if other is module), None)


def core(model: nn.Module) -> tuple[nn.Module, str]:
    """The model inside PEFT's adapters and transformers' wrapper of timm models, and its path in what was given.

    The path is "" or ends with a dot, so that a path inside the core can be put behind it.
    """
    inner: Any = model
    if hasattr(inner, "peft_config") and callable(getattr(inner, "get_base_model", None)):
        inner = inner.get_base_model()
    if isinstance(getattr(inner, "timm_model", None), nn.Module):
        inner = inner.timm_model
    path = path_of(inner, model) or ""
    return inner, path and path + "."


def ancestors(model: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    """The module at a path and everything around it, from the inside to the model itself (path "")."""
    segments = path.split(".") if path else []
    for end in range(len(segments), -1, -1):
        prefix = ".".join(segments[:end])
        yield prefix, model.get_submodule(prefix)


def resolve_path(model: nn.Module, path: str, side: str = "model") -> str:
    """The full path of the module that a user's path means.

    Accepted: paths as `named_modules` gives them; the same without the prefixes of PEFT, of transformers' wrapper of
    timm models or of a transformers model's own base model; with what wrapping in DDP, FSDP or `torch.compile` adds;
    and with negative numbers, counted from the end of a list ("layers.-1").

    Args:
        model: The unwrapped model.
        path: What the user wrote, without the options behind a colon.
        side: What the model is called in an error.

    Raises:
        ValueError: no such module; the message names the nearest paths.
    """
    modules = modules_by_path(model)
    wanted = [segment for segment in path.split(".") if segment not in _WRAPPER_SEGMENTS]
    bare = ".".join(wanted[1:] if wanted[:1] == ["module"] and "module" not in modules else wanted)
    inner, inner_path = core(model)
    starts = ["", inner_path]
    outer = inner_path.removesuffix("timm_model.")
    starts.append(outer)
    base = getattr(inner, "base_model_prefix", "")
    if base and isinstance(getattr(inner, base, None), nn.Module):
        starts.append(f"{inner_path}{base}.")
    for start in dict.fromkeys(starts):
        found = _from_the_end(model, start + bare)
        if found in modules:
            return found
    raise ValueError(_unknown(path, bare, list(modules), side, model))


def _from_the_end(model: nn.Module, path: str) -> str:
    """A path with its negative numbers replaced by those that count from the start."""
    done: list[str] = []
    for segment in path.split("."):
        if re.fullmatch(r"-\d+", segment):
            try:
                parent = model.get_submodule(".".join(done))
            except AttributeError:
                return path
            numbers = [int(name) for name, _ in parent.named_children() if name.isdigit()]
            index = max(numbers, default=-1) + 1 + int(segment)
            segment = str(index) if index >= 0 else segment
        done.append(segment)
    return ".".join(done)


def _unknown(path: str, bare: str, known: list[str], side: str, model: nn.Module) -> str:
    last = bare.rsplit(".", 1)[-1]
    by_suffix = [name for name in known if name.endswith("." + bare)]
    by_look = nearest(bare, known, 5, cutoff=0.5)
    # A name that exists, deeper or with another index, is nearer than one that only looks alike.
    by_last = [name for name in known if last and not last.isdigit() and name.rsplit(".", 1)[-1] == last]
    near = list(dict.fromkeys(by_suffix[:3] + by_look + by_last[:3]))[:5]
    near = near or [name for name, _ in model.named_children()][:8]
    return f"{path!r} is no layer of the {side} ({type(model).__name__}). Nearest: {', '.join(near) or 'none'}"
