"""A teacher's features on disk, addressed by content: `FeatureCache`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..utils.lazy import lazy_names
from ..utils.moved import warn_moved

if TYPE_CHECKING:
    from .collator import CachedCollator
    from .manifest import CacheError
    from .store import FeatureCache

_HOMES = {
    "CacheError": "manifest",
    "CachedCollator": "collator",
    "FeatureCache": "store",
}

__all__ = ["CacheError", "CachedCollator", "FeatureCache"]

_get, __dir__ = lazy_names(__name__, _HOMES)


def __getattr__(name: str) -> Any:
    if name == "build_features":  # of version 0.1
        warn_moved(f"{__name__}.build_features", f"{__name__}.FeatureCache.build")
        return _get("FeatureCache").build
    return _get(name)
