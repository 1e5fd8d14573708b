"""Topic models for the examples on documents: scikit-learn's, brought into one form."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.decomposition import NMF, LatentDirichletAllocation
from sklearn.feature_extraction.text import TfidfTransformer
from torch import Tensor


def topic_model(kind: str, count: int, counts: np.ndarray, new: np.ndarray) -> tuple[Tensor, Tensor]:
    """Topics (K, V) from counts (N, V), and the weights (n, K) that they have in new documents (n, V).

    Args:
        kind: "NMF" on tf-idf, or "LDA".
        count: K.
        counts: Of the words in the documents to learn from.
        new: The same of other documents.
    """
    if kind == "LDA":
        model = LatentDirichletAllocation(count, max_iter=40, random_state=0).fit(counts)
        theta = model.transform(new)
    else:
        tfidf = TfidfTransformer().fit(counts)
        model = NMF(count, init="nndsvd", max_iter=300, random_state=0).fit(tfidf.transform(counts).toarray())
        # NMF leaves the scale of a topic open: its weight in a document is the mass that it explains.
        theta = model.transform(tfidf.transform(new).toarray()) * model.components_.sum(1)
    theta[theta.sum(1) == 0] = 1.0  # a document that no topic describes
    return torch.from_numpy(model.components_), torch.from_numpy(theta)
