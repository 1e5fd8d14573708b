"""Optimal transport between sets of neurons: tensors only, usable without the rest of the package."""

from .cost import neuron_cost
from .inverse import InverseTransport, fix_gauge, inverse_transport_loss
from .result import OTResult
from .solve import METHODS, solve
from .topk import soft_topk

__all__ = [
    "METHODS",
    "InverseTransport",
    "OTResult",
    "fix_gauge",
    "inverse_transport_loss",
    "neuron_cost",
    "soft_topk",
    "solve",
]
