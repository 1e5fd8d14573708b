"""A teacher's features on disk, addressed by content: `FeatureCache`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..utils.lazy import lazy_names

if TYPE_CHECKING:
    from .build import build_features
    from .collator import CachedCollator
    from .manifest import CacheError
    from .store import FeatureCache

_HOMES = {
    "CacheError": "manifest",
    "CachedCollator": "collator",
    "FeatureCache": "store",
    "build_features": "build",
}

__all__ = ["CacheError", "CachedCollator", "FeatureCache", "build_features"]

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
