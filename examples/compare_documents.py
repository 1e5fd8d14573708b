"""Documents by hierarchical transport against the exact word mover's distance: k-NN error and time.

    python examples/compare_documents.py

193 or so posts of two newsgroups, each labelled by its nearest neighbours among all the others. Everything was fixed
before the first run: stop words out, words that are seen at least 3 times and have a vector (input embeddings of
MiniLM), NMF with 50 topics on tf-idf, 20 words a topic, k = 7. `--topics` and `--k` show how much hangs on it.
"""

from __future__ import annotations

import argparse
import time
import warnings

import numpy as np
import torch
from sklearn.decomposition import NMF
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer
from torch import Tensor

from examples.carriers.mini_newsgroup import load_posts, load_word_vectors
from hf_reprot.ot.hierarchical import HierarchicalTransport, nearest_labels, word_mover_distances


def corpus() -> tuple[np.ndarray, Tensor, list[str], Tensor]:
    """Counts (documents, words), labels, the words, and their vectors."""
    texts, groups = load_posts()
    rows, vectors = load_word_vectors()
    counter = CountVectorizer(stop_words="english", token_pattern=r"[a-z]{3,}")
    counts = counter.fit_transform(texts).toarray()
    words = counter.get_feature_names_out()
    kept = np.flatnonzero([counts[:, i].sum() >= 3 and word in rows for i, word in enumerate(words)])
    counts, words = counts[:, kept], words[kept].tolist()
    filled = counts.sum(1) >= 5
    return counts[filled], torch.tensor(groups)[torch.from_numpy(filled)], words, vectors[[rows[w] for w in words]]


def leave_one_out(distances: Tensor, labels: Tensor, k: int) -> float:
    """Share of wrong labels."""
    others = distances.clone().fill_diagonal_(torch.inf)
    return (nearest_labels(others, labels, k) != labels).double().mean().item()


def cosine_distances(rows: np.ndarray) -> Tensor:
    rows = torch.nn.functional.normalize(torch.from_numpy(rows).double())
    return 1 - rows @ rows.t()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topics", type=int, default=50)
    parser.add_argument("--k", type=int, default=7)
    given = parser.parse_args()
    warnings.filterwarnings("ignore", category=ConvergenceWarning)
    torch.set_num_threads(1)
    counts, labels, words, vectors = corpus()
    pairs = len(labels) * (len(labels) - 1) // 2
    size = (counts > 0).sum(1)
    print(f"{len(labels)} documents, {len(words)} words, {size.mean():.0f} different ones in a document")
    weighted = TfidfTransformer().fit_transform(counts).toarray()

    found, seconds = {}, {}
    found["cosine of tf-idf"] = cosine_distances(weighted)
    start = time.perf_counter()
    found["word mover's"] = word_mover_distances(torch.from_numpy(counts), vectors)
    seconds["word mover's"] = time.perf_counter() - start

    start = time.perf_counter()
    model = NMF(given.topics, init="nndsvda", random_state=0, max_iter=400)
    theta = model.fit_transform(weighted)
    fitted = time.perf_counter() - start
    theta[theta.sum(1) == 0] = 1.0  # a document that no topic describes
    found["cosine of topics"] = cosine_distances(theta)
    for name, truncate in (("HOTT", True), ("HOFTT", False)):
        start = time.perf_counter()
        distance = HierarchicalTransport(torch.from_numpy(model.components_), vectors, truncate=truncate)
        prepared = time.perf_counter() - start
        start = time.perf_counter()
        found[name] = distance.pairwise(torch.from_numpy(theta))
        seconds[name] = time.perf_counter() - start
    print(f"topic model {fitted:.1f} s and topic costs {prepared:.1f} s, once; {pairs} pairs in one thread")
    for name, distances in found.items():
        error = leave_one_out(distances, labels, given.k)
        speed = ""
        if name in seconds:
            ratio = seconds["word mover's"] / seconds[name]
            speed = f"{1e6 * seconds[name] / pairs:6.0f} µs a pair, {ratio:.1f} times the speed of word mover's"
        print(f"{name:18s} {given.k}-NN error {error:.3f}  {speed}")


if __name__ == "__main__":
    main()
