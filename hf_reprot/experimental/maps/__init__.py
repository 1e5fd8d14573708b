"""Transport maps: where each point goes, between sets that share no samples."""

from .divergence import sinkhorn_divergence
from .entropic import barycentric_map
from .gaussian import gaussian_map
from .transport_map import METHODS, MapReport, TransportMap

__all__ = [
    "METHODS",
    "MapReport",
    "TransportMap",
    "barycentric_map",
    "gaussian_map",
    "sinkhorn_divergence",
]
