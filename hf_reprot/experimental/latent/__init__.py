"""Features without data: a generator that maps Gaussian noise to a teacher's cached features."""

from .points import nearest_distances
from .transport import LatentTransport

__all__ = ["LatentTransport", "nearest_distances"]
