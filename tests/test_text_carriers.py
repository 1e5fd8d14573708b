"""The carriers of texts, without a network: reading their formats, and counting words."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from examples.carriers import bbc_news, fetch, lee_news, word_vectors
from studies.experimental.topics import topic_model


def test_articles_that_come_twice_are_taken_once(tmp_path, monkeypatch):
    for name in bbc_news.CLASSES:
        (tmp_path / name).mkdir()
        for i in range(450):
            (tmp_path / name / f"{i}.txt").write_text(
                f"{name}  says\n {i // 2 if i < 10 else i} £".replace("\n", "\r\n")
            )
    monkeypatch.setattr(bbc_news, "from_pypi", lambda *_: tmp_path)
    texts, labels = bbc_news.load_articles()
    assert len(texts) == len(set(texts)) == 5 * 445
    assert labels == sorted(labels)
    assert texts[0] == "business says 0 £"
    assert texts[-1].startswith(bbc_news.CLASSES[labels[-1]])
    (tmp_path / "tech").rename(tmp_path / "technology")
    with pytest.raises(fetch.CarrierError, match="1780 articles"):
        bbc_news.load_articles()


def test_ratings_are_symmetric(tmp_path, monkeypatch):
    for name, count in (("lee_background.cor", 300), ("lee.cor", 50)):
        (tmp_path / name).write_bytes(b"\n".join(b"caf\xe9 %d" % i for i in range(count)) + b"\n\n")
    ratings = np.triu(np.random.default_rng(0).uniform(0.2, 1, (50, 50)))
    np.savetxt(tmp_path / "similarities0-1.txt", ratings)
    monkeypatch.setattr(lee_news, "from_pypi", lambda *_: tmp_path)
    background, texts, people = lee_news.load_news()
    assert (background[299], texts[49]) == ("café 299", "café 49")
    assert (people == people.T).all()
    np.testing.assert_allclose(np.triu(people), ratings)
    (tmp_path / "lee.cor").write_bytes(b"one\n")
    with pytest.raises(fetch.CarrierError, match="300 and 1 texts"):
        lee_news.load_news()


@pytest.fixture
def vectors(tmp_path, monkeypatch):
    (tmp_path / "vocab.txt").write_text("[PAD]\n##ing\nmoon\ncheese\nthe\nrocket\n")
    rows = torch.arange(12.0).view(6, 2)
    save_file({"embeddings.word_embeddings.weight": rows}, tmp_path / "model.safetensors")
    monkeypatch.setattr(word_vectors, "from_pypi", lambda *_: tmp_path)
    return rows


def test_words_without_vectors_and_stop_words_are_not_counted(vectors):
    texts = ["The moon, the moon: cheese!", "A rocket", "rocket cheese moon zzz"]
    counts, found = word_vectors.count_words(texts, known=2)
    assert counts.tolist() == [[1, 2, 0], [0, 0, 1], [1, 1, 1]]  # cheese, moon, rocket
    assert torch.equal(found, vectors[[3, 2, 5]])
    counts, found = word_vectors.count_words(texts, known=1)  # the rocket is not known yet
    assert counts.tolist() == [[1, 2], [0, 0], [1, 1]]
    counts, found = word_vectors.count_words(texts, known=1, most=1)
    assert counts.tolist() == [[2], [0], [1]]
    assert torch.equal(found, vectors[[2]])


@pytest.mark.parametrize("kind", ["NMF", "LDA"])
def test_topics_are_found_in_new_documents(kind):
    draw = np.random.default_rng(0)
    planted = np.kron(np.eye(3), np.ones(4)) / 4
    counts = np.stack([draw.multinomial(60, draw.dirichlet([0.3] * 3) @ planted) for _ in range(90)])
    new = np.concatenate([np.stack([draw.multinomial(60, topic) for topic in planted]), np.zeros((1, 12), dtype=int)])
    topics, theta = topic_model(kind, 3, counts, new)
    weights = topics / topics.sum(1, keepdim=True)
    share = weights.view(3, 3, 4).sum(2)  # of each block of words in each topic
    assert (share.amax(1) > 0.9).all()
    assert theta[:3].argmax(1).tolist() == [int(share[:, i].argmax()) for i in range(3)]
    assert (theta.sum(1) > 0).all()
