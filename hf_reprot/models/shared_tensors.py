"""Tensors of a model that lie in one memory, which safetensors does not write."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn


def shared_undeclared(model: nn.Module, weights: Mapping[str, Tensor]) -> set[str]:
    """Names of tensors in the memory of another one, besides those that the model's class declares as tied."""
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    declared = {*tied, *tied.values()} if isinstance(tied, Mapping) else set(tied)
    names: dict[int, list[str]] = {}
    for name, tensor in weights.items():
        if type(tensor) in (Tensor, nn.Parameter) and tensor.device.type != "meta" and tensor.numel() > 0:
            names.setdefault(tensor.untyped_storage().data_ptr(), []).append(name)
    return {name for group in names.values() if len(group) > 1 for name in group if name not in declared}
