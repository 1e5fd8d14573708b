"""Labels of a batch, of any kind that a data set has, as the tensor that a student's loss takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..utils.messages import check_choice, did_you_mean

# One class per sample; one number (regression); a number for each output; the classes that hold.
FORMS = ("class", "value", "vector", "set")


@dataclass(frozen=True)
class LabelReader:
    """Makes the tensor of labels out of what the rows of a data set have.

    Attributes:
        form: "class" (integers, booleans, or texts in `names`): (batch,) int64. "value" (numbers): (batch,) float32.
            "vector" (lists of one number for each output, as multi-hot labels): (batch, width) float32.
            "set" (lists of the classes that hold): the same, as 0 and 1.
        names: What the classes are called where labels are texts, in the order of their numbers.
        width: Number of outputs, where it is known; "set" needs it.

    Raises:
        ValueError: an unknown form; when read, labels of another form.
    """

    form: str
    names: tuple[str, ...] | None = None
    width: int | None = None

    def __post_init__(self) -> None:
        check_choice("form", self.form, FORMS)

    @classmethod
    def for_values(cls, values: Sequence[Any]) -> LabelReader:
        """The reader for labels of which nothing is known but their values.

        Raises:
            ValueError: texts: nothing says their order.
        """
        first = plain(values[0])
        if isinstance(first, list):
            return cls("vector", width=len(first))
        if isinstance(first, float):
            return cls("value")
        if isinstance(first, int):
            return cls("class")
        raise ValueError(f"are no numbers ({first!r}, ...): cast the column to datasets.ClassLabel")

    def __call__(self, values: Sequence[Any]) -> Tensor:
        """The labels of a batch, none of them missing."""
        values = [plain(value) for value in values]
        if self.form == "class":
            return torch.tensor([self._number(value) for value in values], dtype=torch.int64)
        if self.form == "value":
            return torch.tensor([_float(value) for value in values], dtype=torch.float32)
        if any(not isinstance(value, list) for value in values):
            odd = next(value for value in values if not isinstance(value, list))
            raise ValueError(f"are no lists ({odd!r}, ...)")
        if self.form == "set":
            found = torch.zeros(len(values), self.width or 0)
            for row, members in zip(found, values, strict=True):
                row[[self._number(member) for member in members]] = 1.0
            return found
        width = self.width or len(values[0])
        odd = next((value for value in values if len(value) != width), None)
        if odd is not None:
            raise ValueError(f"must be lists of {width} numbers, one for each output, and one has {len(odd)}: {odd!r}")
        return torch.tensor([[_float(number) for number in value] for value in values], dtype=torch.float32)

    def _number(self, value: Any) -> int:
        if isinstance(value, str) and self.names is not None:
            if value in self.names:
                return self.names.index(value)
            hint = did_you_mean(value, self.names)
            raise ValueError(f"hold {value!r}, which is none of the classes {', '.join(self.names)}.{hint}")
        if not isinstance(value, int):
            raise ValueError(f"are no class numbers ({value!r}, ...)")
        if self.width is not None and not 0 <= value < self.width:
            raise ValueError(f"hold class {value}, and the classes are 0 to {self.width - 1}")
        return int(value)


def plain(value: Any) -> Any:
    """A label without arrays and tensors: a number, a text, or a list of these."""
    if isinstance(value, Tensor | np.ndarray | np.generic):
        return value.tolist()
    return list(value) if isinstance(value, tuple) else value


def is_missing(value: Any) -> bool:
    """Whether a row has no label: None, NaN, or -1, which stands for a label that `datasets` does not know."""
    value = plain(value)
    return value is None or (isinstance(value, float) and math.isnan(value)) or (isinstance(value, int) and value == -1)


def _float(value: Any) -> float:
    if not isinstance(value, int | float):
        raise ValueError(f"are no numbers ({value!r}, ...)")
    return float(value)
