"""Optimal transport between sets of neurons: tensors only, usable without the rest of the package."""

from ..settings.names import METHODS
from ..utils.moved import moved_name
from .cost import neuron_cost
from .result import OTResult
from .solve import solve

__all__ = ["METHODS", "OTResult", "neuron_cost", "solve"]


def __getattr__(name: str) -> object:
    return moved_name(__name__, name)
