"""The soft top-k operator against its definition, and a plan with a gradient against finite differences."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_reprot.experimental.topk.soft_topk import soft_topk
from hf_reprot.ot import solve
from hf_reprot.ot.gradients import differentiable_plan
from tests.ot.problems import cost_matrix, weights


def scores(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("n", "k"), [(2, 1), (7, 3), (12, 11)])
@pytest.mark.parametrize("epsilon", [0.2, 1.0])
def test_is_the_transport_to_the_marks(n, k, epsilon):
    s = scores(3, n)
    cost = torch.stack([(s - 1).square(), s.square()], -1)
    b = torch.tensor([k / n, 1 - k / n], dtype=torch.float64)
    oracle = n * solve(cost, None, b, epsilon=epsilon, tolerance=1e-13, max_iterations=100_000).plan[..., 0]
    assert torch.allclose(soft_topk(s, k, epsilon), oracle, atol=1e-10)


@settings(max_examples=150, deadline=None)
@given(
    n=st.integers(1, 60),
    share=st.floats(0, 1),
    epsilon=st.floats(-6, 3),
    scale=st.floats(-6, 6),
    offset=st.floats(-100, 100),
    ties=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_properties(n, share, epsilon, scale, offset, ties, seed):
    k, epsilon = max(1, round(share * n)), 10**epsilon
    s = scores(2, n, seed=seed, scale=10**scale)
    s = s.round(decimals=1) if ties else s
    A = soft_topk(s, k, epsilon)
    assert (A.sum(-1) - k).abs().max() <= 1e-10
    assert (A >= 0).all()
    assert (A <= 1).all()
    best = s.argsort(-1, descending=True)
    assert (A.gather(-1, best).diff(dim=-1) <= 1e-12).all()
    s[1] *= 1e3
    assert torch.allclose(soft_topk(s, k, epsilon)[:1], A[:1], atol=1e-13)  # of the other row it knows nothing
    s[1] /= 1e3
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    assert torch.allclose(soft_topk(s[:, order], k, epsilon), A[:, order], atol=1e-12)
    slack = (n + 1) * 1e-15 * (abs(offset) + 10**scale) / epsilon  # what rounding of the shifted scores may do
    assert torch.allclose(soft_topk(s + offset, k, epsilon), A, atol=1e-9 + slack)


def test_the_scale_of_scores_is_that_of_epsilon():
    s = scores(4, 9)
    assert torch.allclose(soft_topk(5 * s, 3, 0.5), soft_topk(s, 3, 0.1), atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("sort", [False, True])
def test_hard_limit(dtype, sort):
    s = torch.tensor([[0.3, 0.9, 0.1, 0.6, 0.0]], dtype=dtype)
    A = soft_topk(s, 2, 0.3 / 30, sorted=sort)  # the gap between the second and the third is 0.3
    hard = torch.zeros(1, 5, 2, dtype=dtype)
    hard[0, 1, 0] = hard[0, 3, 1] = 1
    assert (A - (hard if sort else hard.sum(-1))).abs().max() <= 1e-6


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_float32_at_a_tiny_epsilon(scale):
    s = scores(5, 1000, scale=scale).float().requires_grad_()
    A = soft_topk(s, 10, 1e-6)
    (A * torch.arange(1000)).sum().backward()
    assert torch.isfinite(s.grad).all()
    assert (A.detach().double().sum(-1) - 10).abs().max() <= 1e-4
    assert torch.equal(A.detach().topk(10).indices.sort().values, s.detach().topk(10).indices.sort().values)


def test_half_precision_is_computed_in_float32():
    s = scores(30).bfloat16()
    assert torch.equal(soft_topk(s, 4, 0.1), soft_topk(s.float(), 4, 0.1))


def test_what_is_minus_infinity_is_not_chosen():
    s = torch.tensor([1.0, -torch.inf, 0.5, -torch.inf])
    assert soft_topk(s, 2, 0.1).tolist() == [1, 0, 1, 0]
    A = soft_topk(s, 1, 1.0)
    assert A[[1, 3]].tolist() == [0, 0]
    assert A.sum().item() == pytest.approx(1)


@pytest.mark.parametrize("k", [1, 3, 6, 7])
@pytest.mark.parametrize("epsilon", [0.3, 2.0])
def test_gradient(k, epsilon):
    s = scores(2, 7).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: soft_topk(x, k, epsilon), s)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_gradient_sorted(k):
    s = scores(1, 5).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: soft_topk(x, k, 2.0, sorted=True), s, atol=1e-6)


def test_gradient_is_no_number_lost_where_all_is_hard():
    s = scores(1, 6).requires_grad_()
    for sort in (False, True):
        (soft_topk(s, 2, 1e-3, sorted=sort).sum(-1) * torch.arange(6 if sort else 1)).sum().backward()
        assert torch.isfinite(s.grad).all()
        assert s.grad.abs().max() < 1e-6


def test_sorted():
    s = scores(3, 8)
    A = soft_topk(s, 3, 0.05, sorted=True)
    assert A.shape == (3, 8, 3)
    assert (A.sum(-2) - 1).abs().max() <= 1e-12
    assert (A.sum(-1) <= 1 + 1e-10).all()
    assert torch.equal(A.argmax(-2), s.argsort(-1, descending=True)[:, :3])
    assert torch.allclose(soft_topk(s, 1, 0.4, sorted=True)[..., 0], soft_topk(s, 1, 0.4), atol=1e-10)
    assert torch.allclose(soft_topk(s, 8, 0.2, sorted=True).sum(-1), torch.ones(3, 8, dtype=torch.float64), atol=1e-8)


@pytest.mark.parametrize(("m", "n"), [(2, 6), (4, 5), (6, 3)])
def test_gradient_of_a_plan(m, n):
    a, b = weights(m), weights(n, 3)

    def plan(M):
        return differentiable_plan(
            M, solve(M.detach(), a, b, epsilon=0.3, tolerance=1e-14, max_iterations=50_000).plan, 0.3
        )

    assert torch.autograd.gradcheck(plan, cost_matrix(m, n, batch=2).requires_grad_(), atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ((torch.arange(4), 2, 0.1), TypeError, "floating"),
        ((torch.zeros(4), 0, 0.1), ValueError, "from 1 to the number of scores, 4, got 0"),
        ((torch.zeros(4), 5, 0.1), ValueError, "got 5"),
        ((torch.zeros(4), 1.5, 0.1), ValueError, "got 1.5"),
        ((torch.zeros(4), 2, 0.0), ValueError, "epsilon"),
        ((torch.zeros(4), 2, float("nan")), ValueError, "epsilon"),
        ((torch.zeros(()), 1, 0.1), ValueError, "shape"),
    ],
)
def test_bad_arguments(arguments, error, match):
    with pytest.raises(error, match=match):
        soft_topk(*arguments)
