"""Which student layer goes with which teacher layer: named by the user, by depth, or found by transport."""

from __future__ import annotations

from ..layers.architecture import block_layers, head_paths, last_layer, stage_layers
from .layers import candidate_layers, match_layers, pooled_tables
from .pairs import LayerPair, match_pairs, resolve_layer
from .plan import LayerPlan, plan_layers

__all__ = [
    "LayerPair",
    "LayerPlan",
    "block_layers",
    "candidate_layers",
    "head_paths",
    "last_layer",
    "match_layers",
    "match_pairs",
    "plan_layers",
    "pooled_tables",
    "resolve_layer",
    "stage_layers",
]
