"""The labels of a batch, for a term that cannot do without."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def labels_of(inputs: Mapping[str, Any], needing: str, instead: str) -> Tensor:
    """The batch's labels.

    Args:
        inputs: The batch.
        needing: The setting whose term needs them, as a user writes it.
        instead: What to set where there are none.

    Raises:
        ValueError: it has none.
    """
    if inputs.get("labels") is None:
        raise ValueError(
            f"{needing} needs labels, and the batch has none under 'labels' (columns: {', '.join(inputs)}): "
            f"give labels, or set {instead}"
        )
    return inputs["labels"]
