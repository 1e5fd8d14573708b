"""The paper whose method this package implements: the one place that cards, docs and README take it from."""

from __future__ import annotations

from ..losses.transport import RepresentationTransport

_paper = {
    "title": "Representation Transfer by Optimal Transport",
    "authors": "Xuhong Li, Yves Grandvalet, Rémi Flamary, Nicolas Courty, Dejing Dou",
    "year": "2020",
    "id": "2007.06737",
    "url": "https://huggingface.co/papers/2007.06737",
    "citation": RepresentationTransport.citation,
}
