"""Inverse transport: the loss, its gradient, and costs that are found again from the plans they made."""

import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from hf_reprot.experimental.inverse.costs import BilinearCost, MahalanobisCost, fix_gauge
from hf_reprot.experimental.inverse.fit import InverseTransport
from hf_reprot.experimental.inverse.loss import inverse_transport_loss
from hf_reprot.ot import solve


def points(*shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def plan_of(cost, epsilon=1.0, a=None, b=None):
    return solve(cost, a, b, epsilon=epsilon, tolerance=1e-11, max_iterations=50_000).plan


def sampled(plan, count, seed=0):
    """Matches (count, 2) drawn from a plan."""
    flat = torch.multinomial(plan.flatten(), count, True, generator=torch.Generator().manual_seed(seed))
    return torch.stack([flat // plan.shape[1], flat % plan.shape[1]], 1)


# ---- the loss ----


def test_the_loss_is_the_divergence_from_the_optimal_plan():
    cost, other = points((6, 9), (6, 9))
    observed = plan_of(other, epsilon=0.7)
    best = plan_of(cost, 0.7, observed.sum(1), observed.sum(0))
    by_hand = 0.7 * (observed * (observed / best).log()).sum()
    assert inverse_transport_loss(cost, observed, 0.7, tolerance=1e-10).item() == pytest.approx(
        by_hand.item(), rel=1e-8
    )
    assert inverse_transport_loss(other, observed, 0.7, tolerance=1e-10).item() == pytest.approx(0, abs=1e-10)


def test_pairs_are_the_plan_of_the_identity():
    (cost,) = points((7, 7))
    expected = inverse_transport_loss(cost, torch.eye(7, dtype=torch.float64) / 7, 0.5)
    assert inverse_transport_loss(cost, None, 0.5).item() == pytest.approx(expected.item(), rel=1e-9)
    nothing = inverse_transport_loss(torch.zeros(7, 7), epsilon=1.0)
    assert nothing.item() == pytest.approx(math.log(7), rel=1e-6)


def test_the_gradient_is_the_observed_plan_less_the_optimal_one():
    cost, other = points((5, 4), (5, 4))
    cost.requires_grad_()
    observed = plan_of(other)
    inverse_transport_loss(cost, observed, tolerance=1e-10).backward()
    best = plan_of(cost.detach(), 1.0, observed.sum(1), observed.sum(0))
    torch.testing.assert_close(cost.grad, observed - best, rtol=0, atol=1e-9)


@pytest.mark.parametrize("pairs", [True, False])
def test_gradcheck(pairs):
    cost, other = points((2, 4, 4), (4, 4))
    observed = None if pairs else plan_of(other)

    def loss(c):
        return inverse_transport_loss(c, observed, 0.8, tolerance=1e-12, max_iterations=100_000)

    assert torch.autograd.gradcheck(loss, cost.requires_grad_(), eps=1e-5, atol=1e-6)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 7), st.integers(1, 7), st.integers(0, 10**6), st.floats(0.1, 3))
def test_nonnegative_convex_and_blind_to_the_gauge(rows, columns, seed, epsilon):
    first, second, other, alpha, beta = points(
        (rows, columns), (rows, columns), (rows, columns), (rows, 1), (columns,), seed=seed
    )
    observed = plan_of(other, 0.5)

    def loss(cost):
        return inverse_transport_loss(cost, observed, epsilon, tolerance=1e-9).item()

    assert loss(first) >= -1e-7
    assert loss((first + second) / 2) <= (loss(first) + loss(second)) / 2 + 1e-7
    assert loss(first + alpha + beta) == pytest.approx(loss(first), abs=1e-6)


def test_rows_that_were_never_seen_take_no_part():
    cost, other = points((5, 4), (4, 4))
    observed = torch.cat([plan_of(other), torch.zeros(1, 4, dtype=torch.float64)])
    cost.requires_grad_()
    loss = inverse_transport_loss(cost, observed, tolerance=1e-9)
    loss.backward()
    assert loss.item() == pytest.approx(inverse_transport_loss(cost[:4], observed[:4], tolerance=1e-9).item(), rel=1e-8)
    assert cost.grad[4].abs().max() == 0
    assert torch.isfinite(cost.grad).all()


def test_half_precision_is_computed_in_float32():
    (cost,) = points((6, 6))
    half = cost.bfloat16().requires_grad_()
    loss = inverse_transport_loss(half)
    loss.backward()
    assert loss.dtype == torch.float32
    assert half.grad.dtype == torch.bfloat16
    assert loss.item() == pytest.approx(inverse_transport_loss(half.detach().double()).item(), rel=1e-4)


# ---- what is found again ----


def test_a_bilinear_cost_from_an_exact_plan():
    x, y, A = points((64, 5), (40, 3), (5, 3))
    inverse = InverseTransport().fit(x, y, plan_of(-x @ A @ y.T))
    assert (inverse.ground.A - A).norm() <= 1e-4 * A.norm()
    assert inverse.report.converged
    assert inverse.report.loss < 1e-8


def test_units_and_offsets():
    """Only C / eps is in a plan; offsets of the points are in no plan; the sum of the plan does not matter."""
    x, y, A = points((40, 4), (40, 4), (4, 4))
    observed = plan_of(-x @ A @ y.T, epsilon=0.5)
    inverse = InverseTransport(epsilon=0.5).fit((x + 3).float(), (y - 1).float(), 8 * observed)
    assert (inverse.ground.A - A).norm() <= 1e-3 * A.norm()
    twice = InverseTransport(epsilon=1.0).fit(x, y, observed)
    assert (twice.ground.A - 2 * A).norm() <= 1e-3 * A.norm()


def test_a_metric_from_an_exact_plan():
    x, y, L = points((60, 4), (60, 4), (2, 4))
    metric = L.T @ L  # of rank 2
    difference = (x[:, None] - y) @ L.T
    inverse = InverseTransport("mahalanobis").fit(x, y, plan_of(difference.square().sum(-1)))
    assert (inverse.ground.metric - metric).norm() <= 1e-2 * metric.norm()
    torch.testing.assert_close(inverse(x, y), difference.square().sum(-1), rtol=0.05, atol=0.05)
    assert inverse(x, x).diagonal().abs().max() < 1e-9
    shifted = inverse((x + 1e4).float(), (y + 1e4).float())
    torch.testing.assert_close(shifted.double(), inverse(x, y), rtol=0.05, atol=0.05)


def test_a_cost_from_sampled_matches_gets_better_with_their_number():
    x, y, A = points((64, 4), (64, 4), (4, 4))
    A /= 2
    observed = plan_of(-x @ A @ y.T)
    errors = []
    for count in (500, 8000):
        inverse = InverseTransport().fit(x, y, matches=sampled(observed, count))
        errors.append(((inverse.ground.A - A).norm() / A.norm()).item())
    assert errors[1] < 0.06 < errors[0]


def test_matches_are_counted():
    x, y = points((4, 2), (3, 2))
    matches = torch.tensor([[0, 0], [0, 0], [1, 2], [2, 1], [3, 1], [3, 0]])
    plan = torch.zeros(4, 3).index_put_((matches[:, 0], matches[:, 1]), torch.ones(6), accumulate=True)
    counted = InverseTransport(regularisation=0.1).fit(x, y, matches=matches)
    torch.testing.assert_close(counted.ground.A, InverseTransport(regularisation=0.1).fit(x, y, plan).ground.A)


def test_a_free_cost_is_exact_up_to_its_gauge():
    (cost,) = points((7, 5))
    inverse = InverseTransport("free", epsilon=0.3).fit(None, None, plan_of(cost, 0.3))
    torch.testing.assert_close(inverse(), fix_gauge(cost), rtol=0, atol=1e-10)
    torch.testing.assert_close(inverse(torch.tensor([3, 1]), torch.tensor([4])), fix_gauge(cost)[[3, 1]][:, [4]])
    assert inverse_transport_loss(inverse().detach(), plan_of(cost, 0.3), 0.3).item() == pytest.approx(0, abs=1e-9)


def test_a_module_of_ones_own():
    class Distance(nn.Module):
        def __init__(self):
            super().__init__()
            self.power = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))

        def forward(self, x, y):
            return self.power * (x[:, None] - y).abs().sum(-1)

    x, y = points((30, 3), (30, 3))
    module = Distance()
    inverse = InverseTransport(module).fit(x, y, plan_of(1.7 * (x[:, None] - y).abs().sum(-1)))
    assert inverse.ground is module
    assert module.power.item() == pytest.approx(1.7, rel=1e-4)


# ---- pairs ----


def paired(count, width=4, other=3, noise=0.5, seed=0):
    x, W, e = points((count, width), (width, other), (count, other), seed=seed)
    return x, x @ W + noise * e


def test_pairs_lead_to_the_optimality_conditions():
    """At the optimum <I/n - P, x_i y_j> is what the penalty pulls with."""
    x, y = paired(80)
    inverse = InverseTransport(regularisation=0.05, tolerance=1e-8).fit(x, y)
    best = plan_of(inverse(x, y).detach())
    pull = x.T @ (torch.eye(80, dtype=torch.float64) / 80 - best) @ y
    torch.testing.assert_close(pull, 0.05 * inverse.ground.A.detach(), rtol=0, atol=1e-7)


def test_more_pairs_than_a_batch_are_split():
    x, y = paired(300)
    whole = InverseTransport(regularisation=0.01).fit(x, y)
    parts = InverseTransport(regularisation=0.01, batch_size=100).fit(x, y)
    A, B = whole.ground.A.detach(), parts.ground.A.detach()
    assert 1e-3 * A.norm() < (A - B).norm() < 0.2 * A.norm()
    again = InverseTransport(regularisation=0.01, batch_size=100).fit(x, y)
    assert torch.equal(again.ground.A, parts.ground.A)
    assert parts.report.loss < math.log(100)


def test_held_out_pairs_are_ranked_better_than_by_distance():
    """A rotation of the space: plain distances know nothing of it."""
    x, rotation, noise = points((500, 6), (6, 6), (500, 6))
    rotation = torch.linalg.qr(rotation).Q
    y = x @ rotation + 0.3 * noise
    inverse = InverseTransport(regularisation=0.01).fit(x[:250], y[:250])

    def recall(cost):
        plan = solve(cost, epsilon=1.0, tolerance=1e-4).plan
        return (plan.argmax(1) == torch.arange(250)).double().mean().item()

    learned = recall(inverse(x[250:], y[250:]).detach())
    plain = recall(torch.cdist(x[250:], y[250:]).square())
    assert learned > 0.7
    assert plain < 0.1


def test_pairs_that_a_cost_separates_are_said_to_need_a_penalty():
    x, y = paired(6, noise=0.0)
    with pytest.warns(UserWarning, match="separates the pairs perfectly"):
        InverseTransport(tolerance=1e-4).fit(x, y)
    with pytest.warns(UserWarning, match="not at its optimum after"):
        InverseTransport(max_iterations=2, regularisation=0.1).fit(x, y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        InverseTransport(max_iterations=200, regularisation=0.1).fit(x, y)


# ---- saving, and what is refused ----


@pytest.mark.parametrize("kind", ["bilinear", "mahalanobis", "free"])
def test_saved_and_loaded(tmp_path, kind):
    x, y, cost = points((12, 3), (12, 3), (12, 12))
    inverse = InverseTransport(kind)
    points_ = (None, None) if kind == "free" else (x, y)
    inverse.fit(*points_, plan_of(cost))
    save_file(inverse.state_dict(), tmp_path / "cost.safetensors")
    loaded = InverseTransport(kind)
    assert not loaded.fitted
    loaded.load_state_dict(load_file(tmp_path / "cost.safetensors"))
    assert torch.equal(loaded(*points_), inverse(*points_))


def test_a_fitted_cost_takes_any_dtype_and_moves_on_without_a_gradient_of_its_own():
    x, y, A = points((20, 3), (20, 2), (3, 2))
    inverse = InverseTransport().fit(x, y, plan_of(-x @ A @ y.T)).requires_grad_(False)
    x = x.half().requires_grad_()
    cost = inverse(x, y.half())
    assert cost.dtype == torch.float32
    cost.sum().backward()
    assert x.grad.dtype == torch.float16
    assert inverse.ground.A.grad is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, y: InverseTransport("bilinaer"), "Did you mean 'bilinear'"),
        (lambda x, y: InverseTransport(epsilon=0.0), "epsilon must be a finite number above 0, got 0.0"),
        (lambda x, y: InverseTransport(regularisation=-1.0), "regularisation"),
        (lambda x, y: InverseTransport(batch_size=1), "batch_size must be at least 2"),
        (lambda x, y: InverseTransport(max_iterations=0), "max_iterations must be at least 1"),
        (lambda x, y: InverseTransport("free", regularisation=0.1), "closed form"),
        (lambda x, y: InverseTransport("free").fit(x, y), "from a plan alone"),
        (lambda x, y: InverseTransport("free").fit(None, None, torch.eye(3)), "6 of 9 entries of the plan are 0"),
        (lambda x, y: InverseTransport("mahalanobis").fit(x, y), "3 columns and y 2.*'bilinear'"),
        (lambda x, y: InverseTransport().fit(x, y[:4]), "5 and 4 rows"),
        (lambda x, y: InverseTransport().fit(x[:1], y[:1]), "one pair"),
        (lambda x, y: InverseTransport().fit(x, y, torch.ones(4, 5)), r"cost's shape \(..., 5, 5\), got \(4, 5\)"),
        (lambda x, y: InverseTransport().fit(x, y, -torch.ones(5, 5)), "nonnegative"),
        (lambda x, y: InverseTransport().fit(x, y, torch.eye(5), matches=torch.zeros(1, 2).long()), "either a plan"),
        (lambda x, y: InverseTransport().fit(x, y, matches=torch.tensor([[0, 5]])), "columns up to 5 of 5"),
        (lambda x, y: InverseTransport().fit(x, y, matches=torch.rand(4, 2)), "integers"),
        (lambda x, y: InverseTransport().fit(x / 0, y), "x has values that are not finite"),
        (lambda x, y: InverseTransport().fit(None, y), "x must be a float tensor"),
        (lambda x, y: InverseTransport(nn.Identity()).fit(x, y), "no parameters"),
        (lambda x, y: inverse_transport_loss(torch.rand(3, 4)), "3 x 4: give the observed plan"),
        (lambda x, y: inverse_transport_loss(torch.rand(3)), r"must have shape \(..., n, m\)"),
        (lambda x, y: inverse_transport_loss(torch.rand(3, 3), torch.rand(3, 4)), "cost's shape"),
    ],
)
def test_bad_arguments(call, message):
    x, y = points((5, 3), (5, 2))
    with pytest.raises(ValueError, match=message):
        call(x, y)


def test_bad_types():
    with pytest.raises(TypeError, match="int64"):
        inverse_transport_loss(torch.ones(3, 3).long())
    with pytest.raises(TypeError, match="matches"):
        inverse_transport_loss(torch.rand(3, 3), torch.eye(3).long())
    with pytest.raises(RuntimeError, match="call fit"):
        InverseTransport()(torch.rand(3, 2), torch.rand(3, 2))


def test_the_costs_alone():
    x, y = points((2, 5, 3), (2, 4, 3))
    bilinear, metric = BilinearCost(3, 3), MahalanobisCost(3)
    nn.init.normal_(bilinear.A)
    nn.init.normal_(metric.L)
    for k in range(2):
        for i, j in ((0, 0), (4, 3)):
            difference = x[k, i] - y[k, j]
            assert bilinear(x, y)[k, i, j].item() == pytest.approx(-(x[k, i] @ bilinear.A @ y[k, j]).item())
            assert metric(x, y)[k, i, j].item() == pytest.approx((difference @ metric.metric @ difference).item())
