"""`CachedCollator`: adds the cached features of its rows to every training batch, or says why it cannot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .keys import row_keys, source_hashes
from .manifest import CacheError
from .store import FeatureCache
from .views import PLAIN, View

COLUMN = "teacher_features_{}_{}"


def column_name(teacher: int, name: str) -> str:
    """The batch's column with a cached layer, or "logits", of a teacher."""
    return COLUMN.format(teacher, name)


class CachedCollator:
    """Makes the batches of another collator, with cached features in columns of their own.

    It runs where the collator runs, in the data loader's workers, on the CPU.

    Args:
        collator: What makes the student's batches.
        caches: One for each teacher.

    Raises:
        CacheError: (when called) a row whose exact view is not in a cache: the data set changed, or the view did.
    """

    def __init__(self, collator: Any, caches: Sequence[FeatureCache]):
        self.collator, self.caches = collator, list(caches)

    def __getattr__(self, name: str) -> Any:
        # `processor`, `input_columns`, ...; not what copying and pickling look for on a bare object
        if name.startswith("__") or name in ("collator", "caches"):
            raise AttributeError(name)
        return getattr(self.collator, name)

    def for_evaluation(self) -> Any:
        """The other collator, in evaluation: no teacher takes part there."""
        return self.collator.for_evaluation() if hasattr(self.collator, "for_evaluation") else self.collator

    def set_epoch(self, epoch: int, seed: int = 0) -> None:
        """Passed on to a collator whose augmentation follows from it."""
        if hasattr(self.collator, "set_epoch"):
            self.collator.set_epoch(epoch, seed=seed)

    def __call__(self, rows: Sequence[Any]) -> dict[str, Any]:
        batch = dict(self.collator(rows))
        for i, cache in enumerate(self.caches):
            keys = row_keys(batch, cache.settings.columns)
            found = cache.find(keys)
            if (found < 0).any():
                place = int((found < 0).argmax())
                sources = source_hashes(rows, batch, self.collator, keys)
                raise CacheError(refusal(cache, self.collator, place, sources[place], sources[place] == keys[place]))
            batch |= {column_name(i, name): value for name, value in cache.take(found).items()}
        return batch


def refusal(cache: FeatureCache, collator: Any, place: int, source: bytes, same: bool) -> str:
    """Why a row is not in a cache.

    Args:
        cache: The cache.
        collator: What made the row.
        place: Number of the row in its batch.
        source: Hash of the example before augmentation.
        same: Whether nothing is known of the example but what the teacher would see.
    """
    held = "; ".join(str(view) for view in cache.settings.views[:3]) + (
        "; ..." if len(cache.settings.views) > 3 else ""
    )
    start = f"row {place} of the batch is not in the feature cache {cache.title}"
    if cache.knows_source(source) and not same:
        if "input_ids" in cache.settings.columns:
            return f"{start}: its text is, with another padding. Pad to a fixed length (padding='max_length'), in both"
        return f"{start}: the example is, in another view. Cached: {held}. This run: {view_of(collator)}"
    data = cache.settings.data
    kind = "text" if "input_ids" in cache.settings.columns else "example"
    reason = f"{start}: the {kind} is not among the {cache.settings.rows:,} of {data.name} that were cached"
    if same:
        return f"{reason} (as: {held}). The data set has changed, or something makes another view of it before batching"
    return f"{reason}. The data set has changed: build the cache for this one"


def view_of(collator: Any) -> View | str:
    """The view that a collator makes at present."""
    augmentation = getattr(collator, "augmentation", PLAIN)
    state = getattr(collator, "epoch_and_seed", None)
    if augmentation == PLAIN:
        return f"{View()}, but other preprocessing" if hasattr(collator, "processor") else str(View())
    if state is None:
        return f"{augmentation}, drawn anew each time"
    return View(augmentation, *state)
