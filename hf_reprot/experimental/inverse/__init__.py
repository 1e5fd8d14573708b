"""Inverse optimal transport: from an observed matching to the cost that it is optimal for."""

from .costs import BilinearCost, FreeCost, MahalanobisCost, fix_gauge
from .fit import FitReport, InverseTransport
from .loss import inverse_transport_loss
from .neurons import learn_neuron_cost, neuron_cost_of

__all__ = [
    "BilinearCost",
    "FitReport",
    "FreeCost",
    "InverseTransport",
    "MahalanobisCost",
    "fix_gauge",
    "inverse_transport_loss",
    "learn_neuron_cost",
    "neuron_cost_of",
]
