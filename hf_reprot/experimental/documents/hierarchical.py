"""Distances between distributions over distributions: documents over topics, topics over words."""

from __future__ import annotations

import torch
from torch import Tensor

from .sparse import distributions, pairwise, with_vectors, word_costs


class HierarchicalTransport:
    """Distance between documents by transport over their topics, where topics are apart by transport over their words.

        D_uv    = |x_u - x_v|^power                  between words (Euclidean)
        C_kl    = W(topic_k, topic_l; D)             between topics, computed once
        d(i, j) = W(theta_i, theta_j; C)             between documents

    W is the exact transport cost. Few topics carry most of a document, so that a pair costs a problem of a few rows,
    where the word mover's distance (`word_mover.py`) has one row for each word. With every word as a topic of its own
    the two are the same.

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
        >>> from hf_reprot.experimental.documents.hierarchical import HierarchicalTransport
        >>> words = torch.tensor([[0.0], [1.0], [10.0]])
        >>> topics = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]])
        >>> distance = HierarchicalTransport(topics, words)
        >>> distance.topic_cost[0, 1].item()
        9.5
        >>> distance.pairwise(torch.tensor([[1.0, 0.0], [0.5, 0.5]]))
        tensor([[0.0000, 4.7500],
                [4.7500, 0.0000]], dtype=torch.float64)

    References: Yurochkin, Claici, Chien, Mirzazadeh, Solomon, "Hierarchical Optimal Transport for Document
    Representation", NeurIPS 2019 (arXiv 1906.10827). The topics there are LDA's; nothing here depends on it.
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
        topics, word_vectors = with_vectors("topics", topics, word_vectors, power)
        if top_words is not None:
            topics = _heaviest(topics, top_words)
        used = topics.sum(0) > 0  # few of the words: the distances of the others are not needed
        topics, word_vectors = topics[:, used], word_vectors[used]
        self.truncate = truncate
        self.topic_cost = pairwise(topics, None, word_costs(word_vectors, power))

    def proportions(self, theta: Tensor) -> Tensor:
        """(n, K) in float64: topic weights of documents as they are compared, truncated and summing to 1.

        A document whose every topic lies under the threshold keeps its heaviest one.

        Raises:
            ValueError: not (n, K), a negative or infinite weight, or a document without topics.
        """
        theta = distributions("theta", theta, len(self.topic_cost))
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
        return pairwise(self.proportions(theta), other, lambda u, v: self.topic_cost[u[..., :, None], v[..., None, :]])


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
        >>> from hf_reprot.experimental.documents.hierarchical import nearest_labels
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


def _heaviest(rows: Tensor, count: int) -> Tensor:
    """The `count` largest weights of each row, brought to sum 1; the others 0."""
    top = rows.topk(min(count, rows.shape[1]), dim=1)
    kept = torch.zeros_like(rows).scatter(1, top.indices, top.values)
    return kept / kept.sum(1, keepdim=True)
