"""Batches of texts of which teachers read tokens of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..features.architecture import config_of
from .columns import TEACHER_PREFIX, columns_of_student

__all__ = ["TeacherTokenCollator", "pad_token_of"]

_IDS, _MASK = TEACHER_PREFIX + "input_ids", TEACHER_PREFIX + "attention_mask"


class TeacherTokenCollator:
    """Makes the batches of another collator, and pads the columns `teacher_...` by themselves.

    A tokenizer pads its own columns only: `DataCollatorWithPadding` stops at teacher_input_ids of several lengths.
    `OTTransferTrainer` uses this collator where its `processing_class` is a tokenizer and no `data_collator` is given.

    Args:
        collator: What makes the student's batches.
        pad: Number of the teacher's token that fills the end of teacher_input_ids. It is masked.

    Example:
        >>> from transformers import default_data_collator
        >>> rows = [{"label": 1, "teacher_input_ids": [5, 6, 7]}, {"label": 0, "teacher_input_ids": [8]}]
        >>> batch = TeacherTokenCollator(default_data_collator)(rows)
        >>> batch["teacher_input_ids"].tolist(), batch["teacher_attention_mask"].tolist()
        ([[5, 6, 7], [8, 0, 0]], [[1, 1, 1], [1, 0, 0]])
    """

    def __init__(self, collator: Callable[[list[Mapping[str, Any]]], Mapping[str, Any]], pad: int = 0):
        self.collator, self.pad = collator, pad

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in ("collator", "pad"):
            raise AttributeError(name)
        return getattr(self.collator, name)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
        theirs = [{name: value for name, value in row.items() if name.startswith(TEACHER_PREFIX)} for row in rows]
        if not theirs[0]:
            return self.collator(list(rows))
        batch: Any = self.collator([columns_of_student(row) for row in rows])  # a mapping that takes more columns
        if _IDS in theirs[0] and _MASK not in theirs[0]:
            for row in theirs:
                row[_MASK] = torch.ones(len(row[_IDS]), dtype=torch.long)
        for name in theirs[0]:
            batch[name] = _padded([torch.as_tensor(row[name]) for row in theirs], self.pad if name == _IDS else 0)
        return batch


def pad_token_of(model: nn.Module | None) -> int:
    """Number of the token that a text model of transformers takes for padding; 0 where it has none."""
    config: Any = config_of(model)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    token = getattr(config, "pad_token_id", None)
    return token if isinstance(token, int) and token >= 0 else 0


def _padded(values: list[Tensor], pad: int) -> Tensor:
    if values[0].dim() != 1:
        return torch.stack(values)
    return nn.utils.rnn.pad_sequence(values, batch_first=True, padding_value=pad)
