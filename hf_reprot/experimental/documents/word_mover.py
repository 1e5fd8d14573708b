"""The word mover's distance between documents: exact, its cheap lower bound, and nearest neighbours by both."""

from __future__ import annotations

import torch
from torch import Tensor

from .sparse import Costs, distributions, pairwise, transport_costs, with_vectors, word_costs


def word_mover_distances(
    words: Tensor, word_vectors: Tensor, other: Tensor | None = None, *, power: float = 1.0
) -> Tensor:
    """Exact word mover's distances (n, m), float64: transport between the words of documents.

    Args:
        words: (n, V) Counts (or weights) of the words in each document, nonnegative; rows are brought to sum 1.
        word_vectors: (V, d).
        other: (m, V); None: `words` itself, each pair once: the result is symmetric to the last digit.
        power: Of the Euclidean distance between words.

    Raises:
        ValueError: shapes that do not fit, a negative or infinite weight, or a document without words.

    References: Kusner, Sun, Kolkin, Weinberger, "From Word Embeddings To Document Distances", ICML 2015.
    """
    words, rest, costs = _compared(words, word_vectors, other, power)
    return pairwise(words, None if other is None else rest, costs)


def relaxed_word_mover_distances(
    words: Tensor, word_vectors: Tensor, other: Tensor | None = None, *, power: float = 1.0
) -> Tensor:
    """Lower bounds (n, m), float64, of the word mover's distances, without any transport problem.

        bound(i, j) = max( sum_u p_iu min_{v in j} D_uv,  sum_v p_jv min_{u in i} D_uv )

    Every word goes to the nearest word of the other document, whatever else goes there; all pairs are one matrix
    product. Where only the ranking counts it is often as good as the exact distance: the control to beat.

    Args and errors: those of `word_mover_distances`.

    Example:
        >>> import torch
        >>> from hf_reprot.experimental.documents.word_mover import relaxed_word_mover_distances, word_mover_distances
        >>> documents, words = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]]), torch.tensor([[0.0], [1.0], [3.0]])
        >>> word_mover_distances(documents, words)[0, 1].item()
        1.5
        >>> relaxed_word_mover_distances(documents, words)[0, 1].item()
        1.0

    References: Kusner et al. 2015 (there RWMD); as one matrix product: Atasu et al., "Linear-Complexity Relaxed Word
    Mover's Distance with GPU Acceleration", 2017 (arXiv 1711.07227).
    """
    words, rest, costs = _compared(words, word_vectors, other, power)
    if other is None:
        # One product and its transpose, to the last digit: two products would differ by their rounding.
        there = words @ _to_documents(words, costs).t()
        return torch.maximum(there, there.t())
    return _bounds(words, rest, costs)


def nearest_word_movers(words: Tensor, word_vectors: Tensor, other: Tensor, k: int, *, power: float = 1.0) -> Tensor:
    """Word mover's distances (n, m), float64, of the k nearest others of every document; +inf where one is further.

    Exact: an `other` is left out only if its lower bound is above the distance of k that are nearer. The problems
    that are solved are a few percent of all, so this is how to find neighbours by the word mover's distance.

    Args:
        words: (n, V), as in `word_mover_distances`.
        word_vectors: (V, d).
        other: (m, V).
        k: Neighbours of each document.
        power: Of the Euclidean distance between words.

    Returns:
        Some entries beyond the k nearest are finite too, and exact: those that had to be solved. With `nearest_labels`
        of `hf_reprot.experimental.documents.hierarchical` and the same k, the labels are those of all distances.

    Raises:
        ValueError: as `word_mover_distances`, or k out of range.

    References: "prefetch and prune" of Kusner et al. 2015.
    """
    words, rest, costs = _compared(words, word_vectors, other, power)
    if not 1 <= k <= len(rest):
        raise ValueError(f"k must be from 1 to the number of the others, {len(rest)}, got {k}")
    bounds = _bounds(words, rest, costs) * (1 - 1e-12)  # not above the distance by rounding
    bounds, candidates = bounds.sort(1)
    found = torch.full_like(bounds, torch.inf)
    for start in range(0, bounds.shape[1], k):
        furthest = found.kthvalue(k, dim=1).values  # inf at first
        i, place = (bounds[:, start : start + k] <= furthest[:, None]).nonzero().t()
        if not len(i):
            break
        j = candidates[i, start + place]
        found[i, j] = transport_costs(words, rest, i, j, costs)
    return found


def _compared(words: Tensor, vectors: Tensor, other: Tensor | None, power: float) -> tuple[Tensor, Tensor, Costs]:
    """Both sides as distributions over the words that any of them has, and the costs between those words."""
    words, vectors = with_vectors("words", words, vectors, power)
    other = words if other is None else distributions("other", other, len(vectors))
    used = (words.sum(0) + other.sum(0)) > 0
    return words[:, used], other[:, used], word_costs(vectors[used], power)


def _bounds(words: Tensor, other: Tensor, costs: Costs) -> Tensor:
    return torch.maximum(words @ _to_documents(other, costs).t(), _to_documents(words, costs) @ other.t())


def _to_documents(documents: Tensor, costs: Costs) -> Tensor:
    """(n, V): the distance of every word of the vocabulary to the nearest word of each document."""
    every = torch.arange(documents.shape[1])[None]
    return torch.stack([costs(every, row.nonzero().t())[0].amin(1) for row in documents])
