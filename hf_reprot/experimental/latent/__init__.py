"""Features without data: a generator that maps Gaussian noise to a teacher's cached features."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...utils.lazy import lazy_names

if TYPE_CHECKING:
    from .points import nearest_distances
    from .transport import LatentTransport

__all__ = ["LatentTransport", "nearest_distances"]

__getattr__, __dir__ = lazy_names(__name__, {"LatentTransport": "transport", "nearest_distances": "points"})
