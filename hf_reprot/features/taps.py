"""Named layers of a model, recorded during a forward pass; timm and transformers alike."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..utils.moved import warn_moved
from .activations import Activation
from .architecture import last_layer
from .compiled import as_written
from .dropout import WithoutDropout
from .layout import class_layers, layout_of, prefix_and_grid, tokens_of
from .paths import LayerName, modules_by_path, resolve_path, unwrap


class LayerRecorder(Protocol):
    """What `Taps` offers: a teacher without a model to run has one, too (see `Teacher.taps`)."""

    def register(self) -> None:
        """See `Taps`."""

    def recording(self) -> contextlib.AbstractContextManager[None]:
        """See `Taps`."""

    def take(self) -> dict[str, Activation]:
        """See `Taps`."""

    def close(self) -> None:
        """See `Taps`."""


class _Store:
    """What the hooks of one `Taps` fill while it records."""

    def __init__(self) -> None:
        self.recording = False
        self.dropout = WithoutDropout()
        self.clear()

    def clear(self) -> None:
        self.dropout.clear()
        self.caught: dict[str, list[Tensor]] = {}
        self.versions: dict[str, int] = {}  # of each tensor's storage, which changes when it is overwritten in place
        self.grids: dict[str, tuple[int, int]] = {}
        self.shapes: Tensor | None = None  # (n, 2) grids of patches
        self.kept: Tensor | None = None  # (n, l) 1 for patches, 0 for padding


class _Hook:
    """Puts one layer's tensor into the store. A copy of the model, or a pickle of it, carries no taps."""

    def __init__(self, store: _Store, name: str):
        self.store, self.name = store, name

    def __reduce__(self):
        # Of the standard library, so that a pickle made in the middle of training is read without this package:
        # it takes whatever it is given and returns None.
        return getattr, (contextlib.nullcontext(), "__exit__")


class _OutputHook(_Hook):
    def __call__(self, module: nn.Module, args: tuple, output: Any) -> None:
        if self.store.recording:
            _record(self.store, self.name, first_tensor(output))


class _InputHook(_Hook):
    def __call__(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if self.store.recording:
            tensor = first_tensor(args if args else kwargs)
            _record(self.store, self.name, self.store.dropout.clean(tensor))


class _HeadHook(_Hook):
    """Says that what follows is the head."""

    def __call__(self, *_: Any) -> None:
        self.store.dropout.in_head = self.store.recording


class _PatchesHook(_Hook):
    """Keeps the grids and the padding of a model that takes patches (SigLIP2 NaFlex)."""

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if self.store.recording:
            self.store.shapes = kwargs.get("spatial_shapes")
            self.store.kept = kwargs.get("pixel_attention_mask")


class _GridHook(_Hook):
    def __call__(self, module: nn.Module, args: tuple, output: Any) -> None:
        if not self.store.recording:
            return
        grid = output[1] if isinstance(output, tuple) else output.shape[-2:]  # timm's NaFlex gives it beside the tokens
        if grid is not None:
            self.store.grids[self.name] = (int(grid[0]), int(grid[1]))


def _record(store: _Store, name: str, tensor: Tensor | None) -> None:
    if tensor is None:
        return
    store.caught.setdefault(name, []).append(tensor)
    if not torch.compiler.is_compiling() and not tensor.is_inference():
        store.versions[name] = tensor._version


class Taps:
    """Records the outputs (or inputs) of named layers during the forward passes made inside `recording()`.

    Register the taps on the bare model, before it is wrapped in DDP or FSDP or compiled: the wrapped model fires the
    hooks. They do not change the model's outputs, and nothing is recorded outside `recording()`: evaluation, and the
    second forward pass of activation checkpointing, which runs in the backward pass, leave no trace.

    Args:
        model: The model; a DDP or compiled one is unwrapped.
        names: Layers: paths of modules as in `model.named_modules()`, without the prefixes of PEFT, of timm's wrapper
            or of the base model if one likes. `path:input` is the first tensor that goes into the module; in training,
            without the noise of a dropout right in front of it or anywhere between the last layer with positions and
            it; of a list of modules, what goes into each, side by side. `path:nchw`, `path:nhwc`, `path:prefixN` say
            what the axes mean where the model does not show it.

    Raises:
        ValueError: a name that the model does not have; the nearest ones are named.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from hf_reprot.features.taps import Taps
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> taps = Taps(model, ["1"])
        >>> with taps.recording():
        ...     _ = model(torch.randn(5, 4))
        >>> taps.take()["1"].tensor.shape
        torch.Size([5, 3])
    """

    def __init__(self, model: nn.Module, names: Sequence[str]):
        self.model = unwrap(model)
        self._store = _Store()
        self._grad = False
        self._layouts: dict[tuple[str, int], str] = {}
        self._names: dict[str, LayerName] = {}
        self._parts: dict[str, list[str]] = {}  # what is recorded apart and stands side by side in one layer
        self._handles: list[Any] = []
        for name in names:
            parsed = LayerName.parse(name)
            path = resolve_path(self.model, parsed.path)
            self._names[name] = LayerName(path, parsed.at_input, parsed.layout, parsed.prefix)
        self._tokens = {name: tokens_of(self.model, layer.path) for name, layer in self._names.items()}
        reading = class_layers(self.model)
        self._reads_class = {
            name: (layer.path, layer.at_input) in reading and self._tokens[name].class_token is not None
            for name, layer in self._names.items()
        }
        self.register()

    def register(self) -> None:
        """Registers the hooks on the model unless they are; done at construction, and needed again after `close`."""
        if self._handles:
            return
        modules = modules_by_path(self.model)
        for name, layer in self._names.items():
            self._register(name, layer, modules)
        self._drops = any(layer.at_input for layer in self._names.values())
        if self._drops:
            self._register_at_head(modules)
        if "spatial_shapes" in inspect.signature(self.model.forward).parameters:
            hook = _PatchesHook(self._store, "")
            self._handles.append(self.model.register_forward_pre_hook(hook, with_kwargs=True))
        for path in sorted({tokens.embedding for tokens in self._tokens.values() if tokens.embedding}):
            self._handles.append(modules[path].register_forward_hook(_GridHook(self._store, path)))

    def _register(self, name: str, layer: LayerName, modules: dict[str, nn.Module]) -> None:
        module = modules[layer.path]
        if not layer.at_input:
            hook = _OutputHook(self._store, name)
            self._handles.append(_called_part(module, first=False).register_forward_hook(hook))
            return
        # CrossViT: a head for each of its branches
        branches = list(module) if isinstance(module, nn.ModuleList) and len(module) > 1 else [module]
        self._parts[name] = [f"{name}[{i}]" for i in range(len(branches))] if len(branches) > 1 else [name]
        for key, branch in zip(self._parts[name], branches, strict=True):
            part = _called_part(branch, first=True)
            self._handles.append(part.register_forward_pre_hook(_InputHook(self._store, key), with_kwargs=True))

    def _register_at_head(self, modules: dict[str, nn.Module]) -> None:
        try:
            path = LayerName.parse(last_layer(self.model, "all")).path
        except ValueError:
            return
        module = _called_part(modules[path], first=False)
        self._handles.append(module.register_forward_hook(_HeadHook(self._store, path)))

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Context manager that records the forward pass made inside; an earlier recording is discarded.

        After `close`, the hooks are registered for this pass alone, and a compiled model runs eagerly: it was compiled
        without them.
        """
        store = self._store
        store.clear()
        with contextlib.ExitStack() as stack:
            if not self._handles:
                self.register()
                stack.callback(self._remove)
                stack.enter_context(as_written())
            yield from self._one_pass()

    def armed(self) -> contextlib.AbstractContextManager[None]:
        """What `recording` was called in version 0.1."""
        warn_moved("Taps.armed", "Taps.recording")
        return self.recording()

    def _one_pass(self) -> Iterator[None]:
        store = self._store
        self._grad = torch.is_grad_enabled()
        store.recording = True
        try:
            with store.dropout if self._drops and self.model.training else contextlib.nullcontext():
                yield
        except BaseException:
            store.clear()
            raise
        finally:
            store.recording = False

    def reached(self) -> list[str]:
        """The recorded layers that a gradient can reach; to be asked before `take`, which refuses the others."""
        caught = self._store.caught
        keys = {name: self._parts.get(name, [name]) for name in self._names}
        return [name for name in keys if any(t.requires_grad for key in keys[name] for t in caught.get(key, []))]

    def take(self) -> dict[str, Activation]:
        """The recorded layers by the names that were given; the taps are empty afterwards.

        Raises:
            RuntimeError: a layer that was not called, was called more than once, was overwritten in place by a later
                one, gave no tensor, or gave one that no gradient can flow through although the pass was for training.
            ValueError: a layer whose axes cannot be told apart.
        """
        store = self._store
        trains = self._grad and any(p.requires_grad for p in self.model.parameters())
        try:
            return {
                name: self._activation(name, layer, self._whole(name, store, trains), store)
                for name, layer in self._names.items()
            }
        finally:
            store.clear()

    def _whole(self, name: str, store: _Store, trains: bool) -> Tensor:
        parts = [self._checked(key, store, trains) for key in self._parts.get(name, [name])]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    def _checked(self, name: str, store: _Store, trains: bool) -> Tensor:
        """The one tensor that a layer gave."""
        tensors = store.caught.get(name, [])
        if len(tensors) > 1:
            raise RuntimeError(
                f"{name} was called {len(tensors)} times in one forward pass, so that it is not one layer: "
                "choose a module that is called once"
            )
        if not tensors:
            raise RuntimeError(
                f"{name} recorded nothing: {type(self.model).__name__} did not call it in this forward pass, or it "
                "gave no tensor. timm's set_grad_checkpointing passes over whole stages (choose a block, as in "
                "layer1.0); a list of layers is never called (choose an element of it); a head is passed over where "
                "features are asked for"
            )
        tensor = tensors[0]
        if name in store.versions and tensor._version != store.versions[name]:
            raise RuntimeError(
                f"{name} was overwritten in place by a layer after it, so that its own values are lost: choose the "
                "layer that overwrites it (often the activation or the block around), or build it with inplace=False"
            )
        if trains and not tensor.requires_grad:
            raise RuntimeError(
                f"no gradient can reach {name}, so that a loss on it trains nothing. Either everything up to this "
                "layer is frozen (choose a later layer or unfreeze an earlier one), or reentrant activation "
                "checkpointing cuts it off (use use_reentrant=False)"
            )
        return tensor

    def _activation(self, name: str, layer: LayerName, tensor: Tensor, store: _Store) -> Activation:
        key = (name, tensor.ndim)
        if key not in self._layouts:
            self._layouts[key] = layout_of(self.model, layer, tensor.shape)
        layout, tokens = self._layouts[key], self._tokens[name]
        found = Activation(tensor, layout, name, tokens, reads_class=self._reads_class[name])
        if layout in ("nlc", "ncl") and tokens.modality == "image":
            length = tensor.shape[layout.index("l")]
            seen = store.grids.get(tokens.embedding) if tokens.embedding is not None else None
            found.prefix, found.grid = prefix_and_grid(tokens, length, seen, layer.prefix)
            if store.shapes is not None and store.kept is not None and store.kept.shape[1] == length:
                found.kept, found.grid = store.kept, _common_grid(store.shapes, length)
        return found

    def close(self) -> None:
        """Removes the hooks from the model."""
        self._remove()
        self._store.clear()

    def _remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


def _common_grid(shapes: Tensor, length: int) -> tuple[int, int] | None:
    """The grid of all images of a batch, where they have one and nothing else stands in the sequence."""
    height, width = shapes[0].tolist()
    return (height, width) if height * width == length and bool((shapes == shapes[0]).all()) else None


def first_tensor(value: Any) -> Tensor | None:
    """The tensor that a module's output stands for: itself, `last_hidden_state`, or the first of a collection."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, Mapping):
        state = value.get("last_hidden_state")
        values = [state] if state is not None else list(value.values())
    elif isinstance(value, tuple | list):
        values = list(value)
    else:
        return None
    tensors = (first_tensor(item) for item in values)
    return next((tensor for tensor in tensors if tensor is not None), None)


def _called_part(module: nn.Module, first: bool) -> nn.Module:
    """The module that has a layer's output (or, with `first`, input) and that is called in every case.

    timm's checkpointing calls the children of a stage and never the stage: the last child gives the same output.
    """
    while type(module) is nn.Sequential and len(module) > 0:
        module = module[0 if first else -1]
    return module
