"""Do distances between documents follow what people say? `python -m studies.experimental.compare_with_people`

50 short news texts; people rated how alike every two are (Lee, Pincombe, Welsh, 2005). Spearman's correlation of their
ratings with each distance, over 1,225 pairs; topics from 300 other news texts; 20 words a topic.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

import numpy as np
import torch
from scipy.stats import spearmanr
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.metrics.pairwise import cosine_distances
from torch import Tensor

from examples.carriers.lee_news import load_news
from examples.carriers.word_vectors import count_words
from hf_reprot.experimental.documents.hierarchical import HierarchicalTransport
from hf_reprot.experimental.documents.word_mover import relaxed_word_mover_distances, word_mover_distances
from studies.experimental.topics import topic_model


def main() -> None:
    torch.set_num_threads(1)
    background, texts, people = load_news()
    counts, vectors = count_words(background + texts, known=350)
    known, new = counts[: len(background)], counts[len(background) :]
    tfidf = TfidfTransformer().fit(known)
    upper = np.triu_indices(len(texts), 1)

    def show(name: str, way: Callable[[], Tensor | np.ndarray]) -> None:
        start = time.process_time()
        distances = way()
        seconds = time.process_time() - start
        correlation = spearmanr(-np.asarray(distances)[upper], people[upper])[0]
        print(f"{name:21s} {correlation:.3f}  {seconds:.2f} s", flush=True)

    show("cosine of tf-idf", lambda: cosine_distances(tfidf.transform(new)))
    show("word mover's", lambda: word_mover_distances(torch.from_numpy(new), vectors))
    show("relaxed word mover's", lambda: relaxed_word_mover_distances(torch.from_numpy(new), vectors))
    for kind, count in itertools.product(("NMF", "LDA"), (10, 20, 40, 70)):
        topics, theta = topic_model(kind, count, known, new)
        show(f"{kind} {count}, cosine", lambda theta=theta: cosine_distances(theta))
        for name, truncate in (("HOTT", True), ("HOFTT", False)):
            distance = HierarchicalTransport(topics, vectors, truncate=truncate)
            show(f"{kind} {count}, {name}", lambda distance=distance, theta=theta: distance.pairwise(theta))


if __name__ == "__main__":
    main()
