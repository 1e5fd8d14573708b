"""Documents by hierarchical transport against the exact word mover's distance: k-NN error and time.

    python -m studies.experimental.compare_documents
    python -m studies.experimental.compare_documents --choose       # how the topic model was chosen

2,125 articles of BBC News in 5 classes. One half, without its labels, gives the vocabulary (the 5,000 most frequent
words that have a vector, stop words out) and the topic model, which stay as they are. `--choose` compares topic models
by the labels of that half alone: nothing was chosen by the other half, of which each fifth is labelled by its nearest
neighbours in the rest. k = 7 and 20 words a topic are those of the paper.
"""

from __future__ import annotations

import sys
import time

import numpy as np
import torch
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.metrics.pairwise import cosine_distances
from torch import Tensor

from examples.carriers.bbc_news import load_articles
from examples.carriers.word_vectors import count_words
from hf_reprot.experimental.documents.hierarchical import HierarchicalTransport, nearest_labels
from hf_reprot.experimental.documents.sparse import distributions, pairwise, word_costs
from hf_reprot.experimental.documents.word_mover import nearest_word_movers, relaxed_word_mover_distances
from studies.experimental.topics import topic_model

K = 7
CANDIDATES = [("NMF", 25), ("NMF", 40), ("NMF", 60), ("LDA", 25), ("LDA", 40), ("LDA", 70), ("LDA", 120)]
CHOSEN = ("NMF", 25)


def choose(counts: np.ndarray, labels: Tensor, vectors: Tensor) -> None:
    """Leave-one-out errors on a third of what there is to learn from; topics from the other two thirds."""
    third = len(labels) // 3
    for kind, count in CANDIDATES:
        topics, theta = topic_model(kind, count, counts[third:], counts[:third])
        distances = HierarchicalTransport(topics, vectors).pairwise(theta).fill_diagonal_(torch.inf)
        error = (nearest_labels(distances, labels[:third], K) != labels[:third]).double().mean()
        print(f"{kind} {count}: {error:.4f}", flush=True)


def speeds(words: Tensor, vectors: Tensor, theta: Tensor, hott: HierarchicalTransport) -> str:
    """CPU time of a pair; costs of words and of topics stand before the clock starts."""
    words, costs, seconds = distributions("words", words, words.shape[1]), word_costs(vectors.double(), 1.0), []
    for way in (lambda: pairwise(words, None, costs), lambda: hott.pairwise(theta)):
        start = time.process_time()
        way()
        seconds.append((time.process_time() - start) / (len(words) * (len(words) - 1) // 2))
    wmd, ours = seconds
    return f"a pair: word mover's {1e6 * wmd:.0f} µs, HOTT {1e6 * ours:.0f} µs, {wmd / ours:.1f} times the speed"


def main() -> None:
    torch.set_num_threads(1)
    texts, labels = load_articles()
    order, half = np.random.RandomState(0).permutation(len(texts)), (len(texts) + 1) // 2
    labels = torch.tensor(labels)[torch.from_numpy(order)]
    counts, vectors = count_words([texts[i] for i in order], half, most=5000)
    if "--choose" in sys.argv:
        return choose(counts[:half], labels[:half], vectors)
    topics, theta = topic_model(*CHOSEN, counts[:half], counts[half:])
    hott = HierarchicalTransport(topics, vectors)
    tfidf = TfidfTransformer().fit(counts[:half]).transform(counts[half:]).toarray()
    words, labels = torch.from_numpy(counts[half:]), labels[half:]
    print(speeds(words[:60], vectors, theta[:60], hott), flush=True)
    found = {"HOTT": hott.pairwise(theta), "relaxed word mover's": relaxed_word_mover_distances(words, vectors)}
    for name, rows in (("tf-idf", tfidf), ("topics", theta)):
        found[f"cosine of {name}"] = torch.from_numpy(cosine_distances(rows))
    wrong, solved, start = {name: [] for name in ("word mover's", *found)}, [], time.process_time()
    for test in torch.arange(len(labels)).tensor_split(5):
        train = np.setdiff1d(np.arange(len(labels)), test)
        exact = nearest_word_movers(words[test], vectors, words[train], K)
        solved.append(torch.isfinite(exact).double().mean())
        for name in wrong:
            distances = exact if name == "word mover's" else found[name][test][:, train]
            wrong[name].append(nearest_labels(distances, labels[train], K) != labels[test])
        print("errors", {name: f"{fold[-1].double().mean():.4f}" for name, fold in wrong.items()}, flush=True)
    spent = 1e3 * (time.process_time() - start) / len(labels)
    print(f"pruned: {np.mean(solved):.1%} of the word mover's problems, {spent:.0f} ms an article")
    gold = torch.cat(wrong["word mover's"]).double()
    for name, folds in wrong.items():
        errors = torch.cat(folds).double()
        half_width = 1.96 * (errors - gold).std() / len(gold) ** 0.5  # 95 %, over articles
        spread = np.std([fold.double().mean() for fold in folds])
        gap = f"less word mover's {(errors - gold).mean():+.4f} ± {half_width:.4f}"
        print(f"{name:21s} error {errors.mean():.4f} ± {spread:.4f} over fifths; {gap}")


if __name__ == "__main__":
    main()
