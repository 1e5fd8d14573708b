"""50 news texts whose likeness people rated, and 300 more of the same kind, out of PyPI's package `gensim`.

Lee, Pincombe, Welsh, "An Empirical Evaluation of Models of Text Document Similarity", 2005.
"""

from __future__ import annotations

import numpy as np

from .fetch import CarrierError, from_pypi

_FOLDER = ("gensim", "4.4.0", "gensim/test/test_data")


def load_news() -> tuple[list[str], list[str], np.ndarray]:
    """The 300 texts of the background, the 50 rated ones, and the ratings (50, 50), symmetric, from 0.2 to 1.

    Raises:
        CarrierError: the package cannot be had, or is not the known one.
    """
    folder = from_pypi(*_FOLDER)
    background, texts = (
        [line for line in (folder / name).read_text(encoding="latin-1").splitlines() if line.strip()]
        for name in ("lee_background.cor", "lee.cor")
    )
    ratings = np.loadtxt(folder / "similarities0-1.txt")
    if (len(background), len(texts), ratings.shape) != (300, 50, (50, 50)):
        raise CarrierError(f"gensim holds {len(background)} and {len(texts)} texts of Lee: it is not the known version")
    return background, texts, np.maximum(ratings, ratings.T)  # the file has the upper half
