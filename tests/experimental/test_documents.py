"""Documents over topics over words: known answers, POT as the judge, and what the triangle inequality promises."""

import ot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_reprot.experimental.documents.hierarchical import HierarchicalTransport, nearest_labels
from hf_reprot.experimental.documents.sparse import _batches
from hf_reprot.experimental.documents.word_mover import (
    nearest_word_movers,
    relaxed_word_mover_distances,
    word_mover_distances,
)


def corpus(seed: int, documents: int = 7, words: int = 12, topics: int = 4):
    """Counts, word vectors, topics and topic weights, with zeros among all of them."""
    draw = torch.Generator().manual_seed(seed)

    def sparse(n, m):
        rows = torch.rand(n, m, generator=draw) * (torch.rand(n, m, generator=draw) < 0.5)
        rows[torch.arange(n), torch.randint(m, (n,), generator=draw)] += 0.1
        return rows

    vectors = torch.randn(words, 3, generator=draw)
    return sparse(documents, words), vectors, sparse(topics, words), sparse(documents, topics)


def by_pot(rows: torch.Tensor, cost: torch.Tensor) -> torch.Tensor:
    rows = (rows.double() / rows.double().sum(1, keepdim=True)).numpy()
    values = [[float(ot.emd2(a, b, cost.double().numpy())) for b in rows] for a in rows]
    return torch.tensor(values, dtype=torch.float64)


@given(st.integers(0, 10_000), st.sampled_from([1.0, 2.0]))
@settings(max_examples=15, deadline=None)
def test_word_movers_is_what_pot_says(seed, power):
    counts, vectors, _, _ = corpus(seed)
    cost = torch.cdist(vectors.double(), vectors.double()) ** power
    found = word_mover_distances(counts, vectors, power=power)
    torch.testing.assert_close(found, by_pot(counts, cost), rtol=0, atol=1e-9)
    assert torch.equal(found, found.t())
    torch.testing.assert_close(word_mover_distances(counts[:3], vectors, counts[3:], power=power), found[:3, 3:])


def test_vocabularies_too_large_for_a_table(monkeypatch):
    counts, vectors, _, _ = corpus(0)
    table = word_mover_distances(counts, vectors)
    monkeypatch.setattr("hf_reprot.experimental.documents.sparse._LARGEST_TABLE", 5)
    torch.testing.assert_close(word_mover_distances(counts, vectors), table)


@given(st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_two_levels_of_pot(seed):
    _, vectors, topics, theta = corpus(seed)
    distance = HierarchicalTransport(topics, vectors, top_words=None, truncate=False)
    words = torch.cdist(vectors.double(), vectors.double())
    torch.testing.assert_close(distance.topic_cost, by_pot(topics, words), rtol=0, atol=1e-9)
    torch.testing.assert_close(distance.pairwise(theta), by_pot(theta, by_pot(topics, words)), rtol=0, atol=1e-9)


def test_every_word_a_topic_is_word_movers():
    counts, vectors, _, _ = corpus(3)
    hierarchical = HierarchicalTransport(torch.eye(12), vectors, truncate=False)
    torch.testing.assert_close(hierarchical.pairwise(counts), word_mover_distances(counts, vectors))


@given(st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_a_metric_that_is_never_below_the_mixtures(seed):
    """Mass that moves between topics could always move between their words instead (gluing the plans)."""
    _, vectors, topics, theta = corpus(seed)
    distances = HierarchicalTransport(topics, vectors, top_words=None, truncate=False).pairwise(theta)
    assert (distances[:, :, None] <= distances[:, None, :] + distances.t()[None, :, :] + 1e-9).all()
    topics, theta = (rows.double() / rows.double().sum(1, keepdim=True) for rows in (topics, theta))
    assert (distances >= word_mover_distances(theta @ topics, vectors) - 1e-9).all()


def test_truncation():
    topics = torch.tensor([[0.5, 0.3, 0.2], [0.0, 0.1, 0.9]])
    vectors = torch.tensor([[0.0], [1.0], [3.0]])
    two = HierarchicalTransport(topics, vectors, top_words=2)
    # (5/8, 3/8, 0) to (0, 1/10, 9/10) on a line: 5/8 of the mass moves to 1, 9/10 of it on to 3
    assert two.topic_cost[0, 1].item() == pytest.approx(5 / 8 + 2 * 9 / 10)
    theta = torch.tensor([[0.7, 0.3], [0.8, 0.2], [0.4, 0.6]])  # under 1/3 goes
    assert torch.equal(two.proportions(theta)[:2], torch.tensor([[1.0, 0.0], [1.0, 0.0]]).double())
    assert two.pairwise(theta)[0, 1] == 0
    many = HierarchicalTransport(torch.ones(5, 3), vectors)
    flat = torch.tensor([[0.3, 0.3, 0.2, 0.1, 0.1]])
    torch.testing.assert_close(many.proportions(flat), torch.tensor([[3, 3, 2, 0, 0]]).double() / 8)
    even = HierarchicalTransport(torch.ones(5, 3), vectors).proportions(torch.full((1, 5), 0.2))
    torch.testing.assert_close(even, torch.full((1, 5), 0.2).double())


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), max_size=60))
def test_batches_are_of_one_size_and_leave_nothing_out(sizes):
    sizes = sorted(sizes)
    rows, columns = [s for s, _ in sizes], [t for _, t in sizes]
    parts = list(_batches(rows, columns))
    assert [k for part in parts for k in range(part.start, part.stop)] == list(range(len(sizes)))
    for part in parts:
        assert len(set(rows[part])) == 1
        assert max(columns[part]) <= 1.2 * min(columns[part]) + 2


def test_neighbours_vote_and_the_nearest_decides():
    distances = torch.tensor([[0.0, 1.0, 2.0, 3.0], [5.0, 1.0, 9.0, 2.0]])
    labels = torch.tensor([2, 0, 0, 1])
    assert nearest_labels(distances, labels, 1).tolist() == [2, 0]
    assert nearest_labels(distances, labels, 3).tolist() == [0, 0]
    assert nearest_labels(distances[:, [0, 1, 3]], labels[[0, 1, 3]], 3).tolist() == [2, 0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: word_mover_distances(torch.ones(2, 3), torch.ones(4, 2)), r"words must have shape \(n, 4\)"),
        (lambda: word_mover_distances(-torch.ones(2, 4), torch.ones(4, 2)), "no negative entry"),
        (lambda: word_mover_distances(torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.ones(2, 2)), "row 1 has no mass"),
        (lambda: word_mover_distances(torch.ones(2, 4), torch.ones(4)), "word_vectors must be finite and of shape"),
        (lambda: word_mover_distances(torch.ones(2, 4), torch.ones(4, 2), power=0), "power must be"),
        (lambda: HierarchicalTransport(torch.ones(2, 4), torch.ones(4, 2), top_words=0), "top_words must be"),
        (lambda: nearest_labels(torch.ones(2, 3), torch.ones(2), 1), r"labels \(m,\)"),
        (lambda: nearest_labels(torch.ones(2, 3), torch.ones(3), 4), "from 1 to the number of neighbours, 3"),
    ],
)
def test_what_does_not_fit_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@given(st.integers(0, 10_000), st.sampled_from([1.0, 2.0]))
@settings(max_examples=15, deadline=None)
def test_the_relaxed_distance_is_the_larger_of_two_sums_and_a_lower_bound(seed, power):
    counts, vectors, _, _ = corpus(seed)
    weights = counts / counts.sum(1, keepdim=True)
    found = relaxed_word_mover_distances(counts[:3], vectors, counts[3:], power=power)
    for i, one in enumerate(weights[:3]):
        for j, two in enumerate(weights[3:]):
            between = torch.stack([(vectors[u] - vectors).norm(dim=1) for u in range(len(vectors))]) ** power
            there = sum(one[u] * min(between[u, v] for v in two.nonzero()[:, 0]) for u in one.nonzero()[:, 0])
            back = sum(two[v] * min(between[u, v] for u in one.nonzero()[:, 0]) for v in two.nonzero()[:, 0])
            assert found[i, j].item() == pytest.approx(max(there, back).item(), rel=1e-5)
    assert (found <= word_mover_distances(counts[:3], vectors, counts[3:], power=power) + 1e-9).all()
    itself = relaxed_word_mover_distances(counts, vectors, power=power)
    assert torch.equal(itself, itself.t())
    assert (itself.diagonal() == 0).all()


@given(st.integers(0, 10_000), st.integers(1, 5))
@settings(max_examples=15, deadline=None)
def test_pruned_neighbours_are_those_of_all_distances(seed, k):
    counts, vectors, _, _ = corpus(seed, documents=40)
    every = word_mover_distances(counts[:10], vectors, counts[10:])
    found = nearest_word_movers(counts[:10], vectors, counts[10:], k)
    finite = torch.isfinite(found)
    torch.testing.assert_close(found[finite], every[finite], rtol=0, atol=1e-9)
    torch.testing.assert_close(found.sort(1).values[:, :k], every.sort(1).values[:, :k], rtol=0, atol=1e-9)
    labels = torch.arange(30) % 3
    assert torch.equal(nearest_labels(found, labels, k), nearest_labels(every, labels, k))
    assert finite.sum() < finite.numel()  # something was spared


def test_neighbours_out_of_range():
    counts, vectors, _, _ = corpus(0)
    with pytest.raises(ValueError, match="number of the others, 4, got 5"):
        nearest_word_movers(counts[:3], vectors, counts[3:], 5)


def test_one_document_is_at_no_distance_from_itself():
    counts, vectors, _, _ = corpus(0)
    assert word_mover_distances(counts[:1], vectors).tolist() == [[0.0]]
