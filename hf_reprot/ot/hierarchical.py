"""Distances between distributions over distributions: documents over topics, topics over words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from .solve import solve

# Numbers in the cost matrices of one call of the solver (16 MB in float64).
_NUMBERS = 1 << 21
# Words whose distances are all computed at once (200 MB).
_LARGEST_TABLE = 5000


class HierarchicalTransport:
    """Distance between documents by transport over their topics, where topics are apart by transport over their words.

        D_uv    = |x_u - x_v|^power                  between words (Euclidean)
        C_kl    = W(topic_k, topic_l; D)             between topics, computed once
        d(i, j) = W(theta_i, theta_j; C)             between documents

    W is the exact transport cost. Few topics carry most of a document, so that a pair costs a problem of a few rows,
    where the word mover's distance (`word_mover_distances`) has one row for each word. With every word as a topic of
    its own the two are the same.

    Args:
        topics: (K, V), nonnegative, row = weights of the words in a topic, from any topic model (scikit-learn's
            `NMF().components_`, say).
        word_vectors: (V, d) Vectors of the words, such as the input embeddings of a language model.
        top_words: Words that are kept of each topic, the heaviest ones; None: all.
        power: Of the distance between words. With 1 the result is a metric between distributions over topics.
        truncate: Leave out topics that hold less than 1 / (K + 1) of a document (HOTT); False keeps all (HOFTT).

    Attributes:
        topic_cost: C (K, K), float64.

    Raises:
        ValueError: shapes that do not fit, a negative or infinite weight, or a topic without words.

    Example:
        >>> import torch
        >>> from hf_reprot.ot.hierarchical import HierarchicalTransport
        >>> words = torch.tensor([[0.0], [1.0], [10.0]])
        >>> topics = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]])
        >>> distance = HierarchicalTransport(topics, words)
        >>> distance.topic_cost[0, 1].item()
        9.5
        >>> distance.pairwise(torch.tensor([[1.0, 0.0], [0.5, 0.5]]))
        tensor([[0.0000, 4.7500],
                [4.7500, 0.0000]], dtype=torch.float64)

    References: Yurochkin, Claici, Chien, Mirzazadeh, Solomon, "Hierarchical Optimal Transport for Document
    Representation", NeurIPS 2019 (arXiv 1906.10827). The topics there are LDA's; nothing here hangs on it.
    """

    def __init__(
        self,
        topics: Tensor,
        word_vectors: Tensor,
        *,
        top_words: int | None = 20,
        power: float = 1.0,
        truncate: bool = True,
    ):
        if top_words is not None and top_words < 1:
            raise ValueError(f"top_words must be at least 1 or None, got {top_words}")
        topics, word_vectors = _checked("topics", topics, word_vectors, power)
        if top_words is not None:
            topics = _heaviest(topics, top_words)
        self.truncate = truncate
        self.topic_cost = _pairwise(topics, None, _word_costs(word_vectors, power))

    def proportions(self, theta: Tensor) -> Tensor:
        """(n, K) in float64: topic weights of documents as they are compared, truncated and summing to 1.

        A document whose every topic lies under the threshold keeps its heaviest one.

        Raises:
            ValueError: not (n, K), a negative or infinite weight, or a document without topics.
        """
        theta = _distributions("theta", theta, len(self.topic_cost))
        if not self.truncate:
            return theta
        kept = torch.where(theta >= 1 / (theta.shape[1] + 1), theta, 0.0)
        kept = torch.where(kept.sum(1, keepdim=True) > 0, kept, _heaviest(theta, 1))
        return kept / kept.sum(1, keepdim=True)

    def pairwise(self, theta: Tensor, other: Tensor | None = None) -> Tensor:
        """Distances (n, m), float64, between documents given by their topic weights; exact.

        Args:
            theta: (n, K), nonnegative; rows are brought to sum 1.
            other: (m, K); None: `theta` itself, each pair once.

        Raises:
            ValueError: see `proportions`.
        """
        other = None if other is None else self.proportions(other)
        return _pairwise(self.proportions(theta), other, lambda u, v: self.topic_cost[u[..., :, None], v[..., None, :]])


def word_mover_distances(
    words: Tensor, word_vectors: Tensor, other: Tensor | None = None, *, power: float = 1.0
) -> Tensor:
    """Exact word mover's distances (n, m), float64: transport between the words of documents.

    Args:
        words: (n, V) Counts (or weights) of the words in each document, nonnegative; rows are brought to sum 1.
        word_vectors: (V, d).
        other: (m, V); None: `words` itself, each pair once.
        power: Of the Euclidean distance between words.

    Raises:
        ValueError: shapes that do not fit, a negative or infinite weight, or a document without words.

    References: Kusner, Sun, Kolkin, Weinberger, "From Word Embeddings To Document Distances", ICML 2015.
    """
    words, word_vectors = _checked("words", words, word_vectors, power)
    other = None if other is None else _distributions("other", other, len(word_vectors))
    return _pairwise(words, other, _word_costs(word_vectors, power))


def nearest_labels(distances: Tensor, labels: Tensor, k: int) -> Tensor:
    """(n,) Labels by the majority of the k nearest neighbours; of labels with equal votes, that of the nearest one.

    Args:
        distances: (n, m) From what is to be labelled to what has labels; +inf where a neighbour must not vote, as on
            the diagonal when every document is labelled by the others.
        labels: (m,) Whole numbers from 0.
        k: Neighbours that vote.

    Raises:
        ValueError: shapes that do not fit, or k out of range.

    Example:
        >>> import torch
        >>> from hf_reprot.ot.hierarchical import nearest_labels
        >>> nearest_labels(torch.tensor([[0.1, 0.2, 0.3], [0.9, 0.2, 0.1]]), torch.tensor([0, 1, 1]), k=1)
        tensor([0, 1])
    """
    if distances.ndim != 2 or labels.shape != distances.shape[1:]:
        raise ValueError(
            f"distances must be (n, m) and labels (m,), got {tuple(distances.shape)} and {tuple(labels.shape)}"
        )
    if not 1 <= k <= distances.shape[1]:
        raise ValueError(f"k must be from 1 to the number of neighbours, {distances.shape[1]}, got {k}")
    nearest = labels[distances.argsort(dim=1, stable=True)[:, :k]]  # (n, k)
    votes = (nearest[:, :, None] == nearest[:, None, :]).sum(2)
    return nearest.gather(1, votes.argmax(1, keepdim=True)).squeeze(1)  # argmax: the first, so the nearest, of equals


def _pairwise(rows: Tensor, other: Tensor | None, costs: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Exact transport (n, m) between sparse distributions; `costs(u, v)` gives (B, s, t) between points (B, s), (B, t).

    Problems are solved side by side on the supports only, in the order of their sizes, so that little is filled up
    with points of weight 0.
    """
    n = len(rows)
    whole = rows if other is None else torch.cat([rows, other])
    size = (whole > 0).sum(1)
    weights, points = whole.sort(1, descending=True)  # the support first
    if other is None:
        i, j = torch.triu_indices(n, n, offset=1)
    else:
        i, j = torch.cartesian_prod(torch.arange(n), torch.arange(n, len(whole))).t()
    larger = size[i] >= size[j]
    u, v = torch.where(larger, i, j), torch.where(larger, j, i)
    order = (size[u] * (int(size.max()) + 1) + size[v]).argsort()
    found = torch.zeros(len(i), dtype=torch.float64)
    for part in _batches(size[u[order]].tolist(), size[v[order]].tolist()):
        chosen = order[part]
        left, right = u[chosen], v[chosen]
        s, t = int(size[left].max()), int(size[right].max())
        matrix = costs(points[left, :s], points[right, :t])
        found[chosen] = solve(matrix, weights[left, :s], weights[right, :t], method="exact").cost
    if other is not None:
        return found.view(n, -1)
    distances = found.new_zeros(n, n)
    distances[i, j] = found
    return distances + distances.t()


def _batches(rows: Sequence[int], columns: Sequence[int]) -> Iterator[slice]:
    """Runs of problems, sorted by rows, then columns, that are solved in one call: of about the same size."""
    start = 0
    for k in range(len(rows) + 1):
        if k < len(rows):
            same = rows[k] == rows[start] and columns[k] <= 1.2 * columns[start] + 2
            if (same and rows[k] * columns[k] * (k + 1 - start) <= _NUMBERS) or k == start:
                continue
        if k > start:
            yield slice(start, k)
        start = k


def _word_costs(vectors: Tensor, power: float) -> Callable[[Tensor, Tensor], Tensor]:
    """The function that gives the distances (B, s, t) between words (B, s) and (B, t)."""

    def distances(x: Tensor, y: Tensor) -> Tensor:
        # Differences, not |x|^2 + |y|^2 - 2xy: a word is at 0 from itself, to the last digit.
        distance = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
        return distance if power == 1 else distance.pow(power)

    if len(vectors) > _LARGEST_TABLE:
        return lambda u, v: distances(vectors[u], vectors[v])
    table = distances(vectors, vectors)
    return lambda u, v: table[u[..., :, None], v[..., None, :]]


def _heaviest(rows: Tensor, count: int) -> Tensor:
    """The `count` largest weights of each row, brought to sum 1; the others 0."""
    top = rows.topk(min(count, rows.shape[1]), dim=1)
    kept = torch.zeros_like(rows).scatter(1, top.indices, top.values)
    return kept / kept.sum(1, keepdim=True)


def _checked(name: str, rows: Tensor, vectors: Tensor, power: float) -> tuple[Tensor, Tensor]:
    vectors = torch.as_tensor(vectors).double().cpu()
    if vectors.ndim != 2 or not bool(torch.isfinite(vectors).all()):
        raise ValueError(f"word_vectors must be finite and of shape (words, dimensions), got {tuple(vectors.shape)}")
    if not 0 < power < float("inf"):
        raise ValueError(f"power must be a finite number above 0, got {power}")
    return _distributions(name, rows, len(vectors)), vectors


def _distributions(name: str, rows: Tensor, columns: int) -> Tensor:
    """The rows in float64, each brought to sum 1."""
    rows = torch.as_tensor(rows).double().cpu()
    if rows.ndim != 2 or rows.shape[1] != columns:
        raise ValueError(f"{name} must have shape (n, {columns}), got {tuple(rows.shape)}")
    if not bool(torch.isfinite(rows).all()) or bool((rows < 0).any()):
        raise ValueError(f"{name} must be finite and have no negative entry")
    total = rows.sum(1, keepdim=True)
    if bool((total <= 0).any()):
        raise ValueError(f"{name}: row {int((total <= 0).nonzero()[0, 0])} has no mass")
    return rows / total
