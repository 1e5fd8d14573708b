"""Sentences that people rated from very negative to very positive, out of the source archive of `vaderSentiment`.

Four domains: film reviews, tweets, reviews of goods, newspaper editorials. By Hutto and Gilbert (ICWSM 2014), MIT
licence; the film snippets go back to Pang and Lee (2004), the reviews of goods to Hu and Liu (2004).
"""

from __future__ import annotations

import csv
import io
import tarfile
from pathlib import Path

from datasets import ClassLabel, Dataset, DatasetDict, DatasetInfo, Features, Value

from .fetch import from_pypi_source

CLASSES = ("negative", "positive")
_ARCHIVE = ("vaderSentiment", "3.3.2", "additional_resources/hutto_ICWSM_2014.tar.gz")
_FILES = {
    "movies": "movieReviewSnippets_GroundTruth.txt",
    "amazon": "amazonReviewSnippets_GroundTruth.txt",
    "tweets": "tweets_GroundTruth.txt",
    "news": "nytEditorialSnippets_GroundTruth.txt",
}


def load(*, test: int = 2000, valence: float = 1.0, seed: int = 0) -> DatasetDict:
    """The sentences with a clear sentiment.

    Args:
        test: Film snippets that are held out; the other ones are the training split.
        valence: Sentences whose mean rating (from -4 to 4) is nearer to 0 than this are left out.
        seed: Which film snippets are held out.

    Returns:
        Splits "train" and "test" (films), "amazon", "tweets", "news", with columns "text", "label" and "valence".
    """
    archive = from_pypi_source(*_ARCHIVE)
    splits = {name: _split(archive, file, name, valence) for name, file in _FILES.items()}
    films = splits.pop("movies").train_test_split(test_size=test, seed=seed, stratify_by_column="label")
    return DatasetDict({"train": films["train"], "test": films["test"], **splits})


def _split(archive: Path, file: str, name: str, valence: float) -> Dataset:
    with tarfile.open(archive) as opened:
        content = opened.extractfile(f"hutto_ICWSM_2014/{file}").read().decode("utf-8")
    # no quoting: the sentences hold quotation marks of their own
    lines = list(csv.reader(io.StringIO(content), delimiter="\t", quoting=csv.QUOTE_NONE))
    kept = [(float(rating), text.strip()) for _, rating, text in lines if abs(float(rating)) >= valence]
    features = Features({"text": Value("string"), "label": ClassLabel(names=list(CLASSES)), "valence": Value("float")})
    info = DatasetInfo(
        description=f"Rated sentences: {name}",
        homepage="https://github.com/cjhutto/vaderSentiment",
        license="mit",
        features=features,
        dataset_name="sentiment-snippets",
    )
    columns = {
        "text": [text for _, text in kept],
        "label": [int(rating > 0) for rating, _ in kept],
        "valence": [rating for rating, _ in kept],
    }
    return Dataset.from_dict(columns, features=features, info=info)
