"""Which settings of the terms do not go together, and why."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from .names import AUTO, COSTS, DIFFERENTIABLE_WEIGHTS, OT_METHODS, SOLVED

_GAUSSIAN_MOMENTUM = 0.9  # what the study was made with
# What a learned cost does not go with: the legal values, and why.
WITH_LEARNED_COST = {
    "ot_method": (("sinkhorn", "proximal", "exact"), "a control has a plan without any cost"),
    "ot_debiased": ((False,), "its plan is frozen, and so would the self terms' be"),
    "ot_standardize": ((True,), "it compares neurons on one scale"),
    "ot_dead_neurons": (("keep",), "its plan is solved before a neuron can die"),
    "plan_momentum": ((0,), "its plan is frozen and follows no moments"),
}
# What transport between Gaussians does not go with: the legal values, and why.
WITH_GAUSSIAN = {
    "ot_cost": (COSTS, "it has no cost between two neurons"),
    "ot_standardize": ((True,), "it compares neurons on one scale"),
    "ot_epsilon": ((None,), "ot_relative_epsilon is its strength"),
    "ot_debiased": ((False,), "its coupling of a set with itself is the identity"),
    "ot_dead_neurons": (("keep",), "constant neurons take no part in it"),
    "select_k": ((None,), "a selection belongs to neurons that are matched one by one"),
}
# What changing layer pairs do not go with: the legal values, and why.
WITH_AUTO_LAYERS = {
    "ot_method": (tuple(m for m in OT_METHODS if m != "identity"), "layers of all widths may be paired"),
    "ot_cost": (COSTS, "a learned cost belongs to the pairs that it was learned for"),
    "select_k": ((None,), "a selection belongs to a teacher layer that stays"),
    "feature_loss": ((None,), "its projectors belong to pairs that stay"),
    "delta_weight": ((0,), "DELTA pairs each layer with its own copy"),
}


def settle_method(settings: Any) -> None:
    """Puts a method where `ot_method` is "auto", and a number where `plan_momentum` was left open.

    Args:
        settings: An `OTTransferConfig`; both are set.
    """
    if settings.ot_method == AUTO:
        fits = all(getattr(settings, name) in legal for name, (legal, _) in WITH_GAUSSIAN.items())
        without_labels = settings.task_weight == 0 and settings.ot_positions == "pooled"
        settings.ot_method = "gaussian" if without_labels and fits else "sinkhorn"
    if settings.plan_momentum is None:
        settings.plan_momentum = _GAUSSIAN_MOMENTUM if settings.ot_method == "gaussian" else 0.0


def selection_needs(by: str) -> dict[str, tuple]:
    """The legal values of other settings where teacher neurons are selected.

    Args:
        by: What the selection is learned from: "task" or "transport".
    """
    if by == "transport":
        return {"ot_method": DIFFERENTIABLE_WEIGHTS, "ot_cost": COSTS, "plan_momentum": (0,)}
    return {"ot_method": SOLVED, "ot_cost": COSTS, "ot_positions": ("pooled",)}


def check_together(settings: Any) -> None:
    """Refuses settings of the terms that do not go together.

    Args:
        settings: `TransferSettings`.

    Raises:
        ValueError: two that do not; the message names both and what is legal.
    """
    if settings.ot_cost == "learned":
        _check_company(settings, "ot_cost='learned'", WITH_LEARNED_COST, "ot_cost='sqeuclidean'")
    if settings.ot_method == "gaussian":
        _check_company(settings, "ot_method='gaussian'", WITH_GAUSSIAN, "ot_method='sinkhorn'")
    if settings.ot_debiased and settings.ot_method != "sinkhorn":
        raise ValueError(f"ot_debiased needs ot_method='sinkhorn', got ot_method={settings.ot_method!r}")
    if settings.ot_positions == "all" and settings.ot_tokens == "class":
        raise ValueError("ot_tokens='class' is one sample an image: it goes with ot_positions='pooled'")
    _check_selection(settings)
    if settings.finds_layers:
        if len(settings.layer_pairs) > 1:
            raise ValueError(f'layer_pairs="auto" finds all pairs and stands alone, got {settings.layer_pairs}')
        _check_company(settings, 'layer_pairs="auto"', WITH_AUTO_LAYERS, "name the layer pairs")


def _check_selection(settings: Any) -> None:
    if not 0 < settings.select_until <= 1:
        raise ValueError(f"select_until must lie in (0, 1], got {settings.select_until}")
    k = settings.select_k
    if k is None:
        return
    if not (k > 0 and math.isfinite(k)) or (k >= 1 and k != int(k)):
        raise ValueError(f"select_k must be a whole number of neurons or a share between 0 and 1, got {k}")
    refused = selection_needs(settings.select_by)
    refused |= {} if settings.uses_transport else {"ot_weight": ("a number above 0",)}
    for name, legal in refused.items():
        if getattr(settings, name) not in legal:
            raise ValueError(
                f"select_k with select_by={settings.select_by!r} does not go with {name}={getattr(settings, name)!r}: "
                f"it needs {' or '.join(map(repr, legal))}"
            )


def _check_company(settings: Any, choice: str, company: Mapping[str, tuple[tuple, str]], otherwise: str) -> None:
    for name, (legal, reason) in company.items():
        if getattr(settings, name) not in legal:
            raise ValueError(
                f"{choice} does not go with {name}={getattr(settings, name)!r} ({reason}): set {name} to "
                f"{' or '.join(map(repr, legal))}, or {otherwise}"
            )
