"""Losses on a soft top-k: known values, limits, gradients, and features that neighbours can be told by."""

import pytest
import torch
from torch.nn import functional as F

from hf_reprot.experimental.topk.losses import SoftKNNHead, soft_topk_loss
from hf_reprot.experimental.topk.selection import NeuronSelection
from hf_reprot.experimental.topk.soft_topk import soft_topk


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_topk_loss_is_minus_the_log_of_being_inside():
    logits, labels = normal(5, 9), torch.arange(5)
    inside = soft_topk(logits, 3, 0.5)[torch.arange(5), labels]
    assert soft_topk_loss(logits, labels, 3, 0.5).item() == pytest.approx(-inside.log().mean().item(), rel=1e-9)


def test_topk_loss_is_a_hinge_in_the_limit():
    logits = torch.tensor([[3.0, 2.0, 1.0, -50.0], [3.0, 2.0, 1.0, -50.0]], dtype=torch.float64, requires_grad=True)
    epsilon = 1e-4
    loss = epsilon / 2 * soft_topk_loss(logits, torch.tensor([3, 1]), 2, epsilon)
    assert loss.item() == pytest.approx((1.5 + 50 + 0) / 2, abs=1e-3)  # not inf, where the indicator is 0
    loss.backward()
    assert torch.isfinite(logits.grad).all()
    assert logits.grad[0, 3] < 0
    assert logits.grad[1].abs().max() < 1e-9


@pytest.mark.parametrize("k", [1, 4])
def test_topk_loss_gradient(k):
    labels = torch.tensor([0, 3, 5])
    assert torch.autograd.gradcheck(lambda x: soft_topk_loss(x, labels, k, 0.5), normal(3, 6).requires_grad_())


def test_topk_loss_trains_the_top_k():
    """Three classes that look alike: only a loss that asks for the best three can be content with them."""
    x = F.one_hot(torch.arange(9) // 3).double().repeat(20, 1)
    labels = torch.arange(9).repeat(20)
    weight = torch.zeros(3, 9, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=5.0)
    for _ in range(60):
        optimizer.zero_grad()
        loss = soft_topk_loss(x @ weight, labels, 3)
        loss.backward()
        optimizer.step()
    assert loss < 0.05
    assert ((x @ weight).topk(3).indices == labels[:, None]).any(1).all()


def test_knn_probabilities_are_those_of_the_definition():
    head = SoftKNNHead(3, k=2, epsilon=0.7, normalize=False)
    queries, candidates, labels = normal(4, 5), normal(7, 5, seed=1), torch.tensor([0, 1, 1, 0, 0, 1, 0])
    A = soft_topk(-torch.cdist(queries, candidates).square(), 2, 0.7)
    p = torch.stack([A[:, labels == c].sum(1) for c in range(3)], 1) / 2
    log_p = head.log_probabilities(queries, candidates, labels)
    assert torch.allclose(log_p.exp(), p, atol=1e-9)
    assert (log_p[:, 2] == -torch.inf).all()
    assert torch.allclose(log_p.exp().sum(1), torch.ones(4, dtype=torch.float64))


def test_knn_leaves_queries_without_their_class_out():
    head = SoftKNNHead(3, k=2, epsilon=0.5)
    queries, candidates, labels = normal(4, 5).requires_grad_(), normal(7, 5, seed=1), torch.arange(7) % 2
    out = head(queries, torch.tensor([0, 2, 1, 2]), candidates, labels)
    out.loss.backward()
    assert out.logs["without_class"] == 0.5
    assert torch.isfinite(queries.grad).all()
    assert (queries.grad.abs().amax(1) > 0).tolist() == [True, False, True, False]
    few = head(queries[[0, 2]], torch.tensor([0, 1]), candidates, labels)
    assert few.loss.item() == pytest.approx(out.loss.item())


def test_knn_gradient():
    head, labels = SoftKNNHead(2, k=3, epsilon=0.4), torch.arange(6) % 2

    def loss(queries, candidates):
        return head(queries, torch.tensor([0, 1, 1]), candidates, labels).loss

    assert torch.autograd.gradcheck(loss, (normal(3, 4).requires_grad_(), normal(6, 4, seed=1).requires_grad_()))


def test_knn_hard_limit_and_normalisation():
    queries, candidates, labels = normal(50, 4), normal(30, 4, seed=1), torch.arange(30) % 3
    head = SoftKNNHead(3, k=5, epsilon=1e-6)
    distances = torch.cdist(F.normalize(queries), F.normalize(candidates))
    votes = F.one_hot(labels[distances.topk(5, largest=False).indices], 3).sum(1) / 5
    assert torch.allclose(head.log_probabilities(queries, candidates, labels).exp(), votes.double(), atol=1e-4)
    scaled = head.log_probabilities(7 * queries, candidates, labels)
    assert torch.allclose(scaled.exp(), votes.double(), atol=1e-4)


def test_knn_learns_features():
    """Two directions tell the classes apart, twenty do not: raw neighbours know little."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(600) % 4
    x = torch.randn(600, 22, generator=draw) * torch.tensor([0.3] * 2 + [2.0] * 20)
    x[:, :2] += torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])[labels]
    head, weight = SoftKNNHead(4, k=5, epsilon=0.2), (0.1 * torch.randn(22, 8, generator=draw)).requires_grad_()
    optimizer = torch.optim.Adam([weight], lr=0.02)

    def accuracy(features):
        return head(features[:300], labels[:300], features[300:], labels[300:]).logs["knn_accuracy"]

    before = accuracy(x)
    for _ in range(80):
        rows = torch.randperm(300, generator=draw)[:200]
        f, y = x[300:][rows] @ weight, labels[300:][rows]
        optimizer.zero_grad()
        head(f[:100], y[:100], f[100:], y[100:]).loss.backward()
        optimizer.step()
    assert before < 0.7
    assert accuracy(x @ weight.detach()) > 0.9


def test_selection_reads_out_what_the_labels_need():
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(1000, 12, generator=draw)
    x[:, 4] = 3.0  # dead
    labels = (x[:, 1] + x[:, 7] > 0).long()
    select = NeuronSelection(12, 2, classes=2)
    optimizer = torch.optim.Adam(select.parameters(), lr=0.01)
    for step in range(60):
        weights = select.weights(step / 60)
        optimizer.zero_grad()
        select(x, labels, weights).loss.backward()
        optimizer.step()
    assert select.weights(1.0).tolist() == [0.5 if i in (1, 7) else 0 for i in range(12)]
    assert select.dead_weight(x, torch.full((12,), 1 / 12)).item() == pytest.approx(1 / 12)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: soft_topk_loss(torch.zeros(2, 4), torch.zeros(3).long(), 2), "labels"),
        (lambda: soft_topk_loss(torch.zeros(2, 4), torch.zeros(2).long(), 4), "below the number of classes"),
        (lambda: SoftKNNHead(1), "classes"),
        (lambda: SoftKNNHead(2, k=0), "k must"),
        (lambda: SoftKNNHead(2, epsilon=0.0), "epsilon"),
        (lambda: SoftKNNHead(2, k=4).log_probabilities(torch.zeros(2, 3), torch.zeros(4, 3), torch.arange(4)), "k=4"),
        (lambda: SoftKNNHead(2).log_probabilities(torch.zeros(2, 3), torch.zeros(4, 5), torch.arange(4)), "shapes"),
        (lambda: SoftKNNHead(2).log_probabilities(torch.zeros(2, 3), torch.zeros(9, 3), torch.arange(4)), "labels"),
        (lambda: NeuronSelection(5, 5), "from 1 to 4"),
        (lambda: NeuronSelection(5, 2)(torch.zeros(3, 5), torch.arange(3), torch.ones(5)), "read-out"),
        (lambda: NeuronSelection(5, 2, 3)(torch.zeros(3, 5), torch.zeros(3), torch.ones(5)), "labels"),
    ],
)
def test_bad_arguments(call, match):
    with pytest.raises(ValueError, match=match):
        call()
