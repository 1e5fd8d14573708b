"""The settings of transport by name, and which of them do not go together."""

from __future__ import annotations

from ..ot.cost import COSTS
from ..ot.solve import DIFFERENTIABLE_WEIGHTS, METHODS, SOLVED

OT_COSTS = (*COSTS, "learned")
OT_METHODS = (*METHODS, "gaussian")
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


def selection_needs(by: str) -> dict[str, tuple]:
    """The legal values of other settings where teacher neurons are selected.

    Args:
        by: What the selection is learned from: "task" or "transport".
    """
    if by == "transport":
        return {"ot_method": DIFFERENTIABLE_WEIGHTS, "ot_cost": COSTS, "plan_momentum": (0,)}
    return {"ot_method": SOLVED, "ot_cost": COSTS, "ot_positions": ("pooled",)}
