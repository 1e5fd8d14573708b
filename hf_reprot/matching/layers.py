"""`match_layers`: which layers of two models go together, found by transport between neurons and between layers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..layers.architecture import block_layers, last_layer, spread, stage_layers
from ..layers.paths import unwrap
from ..taps import Activation, Taps, pooled_neurons
from .ground import layer_costs
from .plan import LayerPlan, plan_layers


def candidate_layers(
    model: nn.Module, kind: str = "blocks", positions: str = "pooled", most: int | None = None
) -> list[str]:
    """Every block (or stage) of a model, in order of depth, then the representation before the head.

    Args:
        model: The unwrapped model.
        kind: "blocks" or "stages".
        positions: What the last one is: "pooled" or "all", as for "last" in `match_pairs`.
        most: Blocks at most; of more, those at even distances are taken.

    Raises:
        ValueError: no blocks or stages were found.
    """
    found = block_layers(model) if kind == "blocks" else stage_layers(model)
    if most is not None and len(found) > most:
        found = spread(found, most)
    last = last_layer(model, positions)
    return [*found, *([last] if last not in found else [])]


def match_layers(
    student: nn.Module,
    teacher: nn.Module,
    batches: Iterable[Any],
    *,
    student_layers: Sequence[str] | None = None,
    teacher_layers: Sequence[str] | None = None,
    tokens: str = "auto",
    order_prior: float = 0.0,
    keep: int | None = None,
    method: str = "exact",
    relative_epsilon: float | None = None,
) -> LayerPlan:
    """Matches the layers of two models of any depths and architectures.

    Two layers cost what it costs to transport one's neurons to the other's, in units of what shuffled samples give; a
    second transport over these costs matches the layers. Run in evaluation mode and without gradients; the models are
    left as they were.

    Args:
        student, teacher: The models, on one device.
        batches: What both models take: tensors, or dictionaries of keyword arguments; or tuples (the student's,
            the teacher's) of the same samples. A few hundred samples, more than the layers have neurons, are enough.
        student_layers, teacher_layers: Layers as `Taps` takes them, in order of depth; None: every block, then the
            representation before the head (`candidate_layers`).
        tokens: As in `pair_neurons`: which tokens of a transformer are pooled.
        order_prior, keep, method, relative_epsilon: As in `plan_layers`.

    Raises:
        ValueError: layers that do not exist or are not known, or fewer than two samples.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from hf_reprot.matching import match_layers
        >>> def mlp(seed):
        ...     torch.manual_seed(seed)
        ...     return nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(3)))
        >>> found = match_layers(mlp(0), mlp(0), [torch.randn(64, 8)], student_layers="012", teacher_layers="012")
        >>> found.plan
        tensor([[0.3333, 0.0000, 0.0000],
                [0.0000, 0.3333, 0.0000],
                [0.0000, 0.0000, 0.3333]])

    References: see `plan_layers`.
    """
    models = [unwrap(student), unwrap(teacher)]
    given = (student_layers, teacher_layers)
    names = [list(g) if g is not None else candidate_layers(m) for g, m in zip(given, models, strict=True)]
    parts: list[list[list[Tensor]]] = [[], []]
    taps = [Taps(model, layers) for model, layers in zip(models, names, strict=True)]
    modes = [{module: module.training for module in model.modules()} for model in models]
    try:
        for batch in batches:
            for side, inputs in enumerate(batch if isinstance(batch, tuple) else (batch, batch)):
                models[side].eval()
                with torch.no_grad(), taps[side].armed():
                    models[side](**inputs) if isinstance(inputs, Mapping) else models[side](inputs)
                mask = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
                parts[side].append(pooled_tables(taps[side].take(), names[side], tokens, mask))
    finally:
        for tap in taps:
            tap.close()
        for mode in modes:
            for module, training in mode.items():
                module.training = training
    ours, theirs = ([torch.cat(layer) for layer in zip(*batches, strict=True)] for batches in parts)
    if not ours or len(ours[0]) < 2:
        raise ValueError("matching layers needs at least two samples")
    costs = layer_costs(ours, theirs)
    return plan_layers(
        costs.relative(), *names, order_prior=order_prior, keep=keep, method=method, relative_epsilon=relative_epsilon
    )


def pooled_tables(
    caught: Mapping[str, Activation], names: Sequence[str], tokens: str = "auto", mask: Tensor | None = None
) -> list[Tensor]:
    """(n, d) of each named layer: one sample an image or text, whatever the layer's positions are."""
    return [pooled_neurons(caught[name], tokens=tokens, mask=mask).float() for name in names]
