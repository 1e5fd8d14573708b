"""Rows of a data set as a build reads them: collated at one view, with their addresses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import BaseImageProcessor, default_data_collator

from ..data import ImageCollator, image_columns, is_transformed, leave_encoded
from .keys import row_keys, source_hashes
from .views import ViewCollator


class Addressing:
    """Collates rows of one view and hashes them, in a worker."""

    def __init__(self, collate: ViewCollator, collator: Any, columns: Sequence[str]):
        self.collate, self.collator, self.columns = collate, collator, list(columns)

    def __call__(self, rows: Sequence[Any]) -> tuple[dict[str, Any], list[bytes], list[bytes]]:
        batch = self.collate(rows)
        keys = row_keys(batch, self.columns)
        return batch, keys, source_hashes(rows, batch, self.collator, keys)


def rows_and_collator(dataset: Any, collator: Any, processor: Any) -> tuple[Any, Any]:
    """The rows as the collator takes them, and the collator.

    Raises:
        ValueError: raw images, and nothing that says how they become `pixel_values`.
    """
    if collator is None:
        columns = image_columns(dataset)
        if isinstance(processor, BaseImageProcessor) and columns is not None:
            collator = ImageCollator(processor, image_column=columns[0], label_column=columns[1])
        elif columns is not None:
            raise ValueError("the data set holds raw images: give the student's image processor, or its collator")
        else:
            collator = default_data_collator
    column = getattr(collator, "image_column", None)
    if column is not None and not is_transformed(dataset):
        dataset = leave_encoded(dataset, column)
    return dataset, collator
