"""What must hold of every plan and value, whatever the costs."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_reprot.ot import METHODS, neuron_cost, solve
from tests.ot.problems import cost_matrix, layer, weights

SIZES = st.integers(1, 12)


def _random_cost(m, n, seed, dtype=torch.float64):
    return torch.rand(m, n, generator=torch.Generator().manual_seed(seed), dtype=dtype) * 3


@settings(deadline=None, max_examples=60)
@given(m=SIZES, n=SIZES, seed=st.integers(0, 10_000), method=st.sampled_from(METHODS), weighted=st.booleans())
def test_a_plan_is_nonnegative_and_has_its_marginals(m, n, seed, method, weighted):
    if method == "identity":
        n = m
    a, b = (weights(m, seed), weights(n, seed + 1)) if weighted else (torch.full((k,), 1 / k).double() for k in (m, n))
    if method == "identity":
        b = a
    result = solve(_random_cost(m, n, seed), a, b, method=method, tolerance=1e-5, max_iterations=20_000)
    assert (result.plan >= 0).all()
    assert result.plan.sum(1).tolist() == pytest.approx(a.tolist(), rel=1e-6)
    assert (result.plan.sum(0) - b).abs().sum().item() <= 1.1e-5 or not result.converged
    assert (result.plan.sum(0) - b).abs().sum().item() == pytest.approx(result.marginal_error.item(), abs=1e-8)
    assert result.cost.item() == pytest.approx((result.plan * _random_cost(m, n, seed)).sum().item(), rel=1e-6)


@settings(deadline=None, max_examples=30)
@given(m=SIZES, n=SIZES, seed=st.integers(0, 10_000), method=st.sampled_from(["sinkhorn", "proximal", "exact"]))
def test_the_order_of_neurons_changes_nothing_but_the_plans_order(m, n, seed, method):
    M = _random_cost(m, n, seed)
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.randperm(m, generator=generator), torch.randperm(n, generator=generator)
    limits = {"tolerance": 1e-9, "max_iterations": 300 if method == "proximal" else 5000}
    straight, permuted = solve(M, method=method, **limits), solve(M[rows][:, columns], method=method, **limits)
    assert permuted.value.item() == pytest.approx(straight.value.item(), rel=1e-8)
    assert torch.allclose(permuted.plan, straight.plan[rows][:, columns], atol=1e-7)


@pytest.mark.parametrize("seed", range(5))
def test_no_coupling_is_better_than_the_exact_one(seed):
    M = cost_matrix(24, 24, seed=seed)
    best = solve(M, method="exact").cost.item()
    entropic = solve(M, tolerance=1e-6, max_iterations=20_000)
    identity = solve(M, method="identity").cost.item()
    assert identity == pytest.approx(M.diagonal().mean().item())
    for method in METHODS:
        assert solve(M, method=method, tolerance=1e-6, max_iterations=20_000).cost.item() >= best - 1e-5
    assert entropic.value.item() <= identity + entropic.epsilon.item() * math.log(24)
    assert solve(M, method="independent").cost.item() == pytest.approx(M.mean().item())


@pytest.mark.parametrize("standardize", [True, False])
def test_a_permuted_copy_costs_nothing_and_shows_the_permutation(standardize):
    teacher = layer(300, 20)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(3))
    M = neuron_cost(teacher[:, order], teacher, standardize=standardize)
    for method in ("exact", "sinkhorn", "proximal"):
        result = solve(M, method=method, relative_epsilon=0.005 if method == "sinkhorn" else None)
        assert result.cost.item() == pytest.approx(0, abs=1e-3)
        assert (result.plan.argmax(1) == order).all()


def test_batched_equals_looped():
    M = cost_matrix(17, 23, batch=6).reshape(2, 3, 17, 23)
    a, b = weights(17).expand(3, 17), weights(23)
    for method in ("sinkhorn", "proximal", "exact", "random", "independent"):
        together = solve(M, a, b, method=method, tolerance=1e-6)
        for i in range(2):
            for j in range(3):
                alone = solve(M[i, j], a[j], b, method=method, tolerance=1e-6)
                for name in ("value", "cost", "plan", "marginal_error", "iterations", "converged"):
                    ours, theirs = getattr(together[i, j], name).double(), getattr(alone, name).double()
                    assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-12), (method, name)


def test_relative_epsilon_does_not_see_the_scale_of_the_costs():
    M = cost_matrix(20, 30)
    one, other = solve(M), solve(1e12 * M)
    assert torch.allclose(one.plan, other.plan, rtol=1e-6)
    assert other.value.item() == pytest.approx(1e12 * one.value.item())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("relative_epsilon", [0.05, 0.01, 0.002])
def test_loud_and_quiet_neurons_together(dtype, relative_epsilon):
    """Raw costs whose largest is thousands of times their median: where plain kernels underflow."""
    loud = torch.logspace(-2, 2, 60, dtype=torch.float64)
    M = neuron_cost(layer(200, 60) * loud, layer(200, 90, mixing=2) * loud.repeat(2)[:90], standardize=False).to(dtype)
    result = solve(M, relative_epsilon=relative_epsilon, max_iterations=5000)
    assert torch.isfinite(result.plan).all()
    assert result.plan.sum(1).tolist() == pytest.approx([1 / 60] * 60, rel=1e-4)
    assert result.converged
    assert result.cost.item() >= solve(M, method="exact").cost.item() * (1 - 2e-3)


def test_a_warm_start_needs_fewer_sweeps_and_ends_at_the_same_value():
    M = cost_matrix(40, 60)
    cold = solve(M, tolerance=1e-8, max_iterations=20_000)
    near = M * (1 + 0.01 * torch.rand(M.shape, generator=torch.Generator().manual_seed(0), dtype=M.dtype))
    again, warm = (solve(near, tolerance=1e-4, init=init, max_iterations=20_000) for init in (None, cold.potentials))
    assert warm.iterations < again.iterations
    assert warm.value.item() == pytest.approx(again.value.item(), rel=1e-6)
    useless = solve(M, init=torch.full((60,), torch.nan))
    assert useless.value.item() == pytest.approx(solve(M).value.item())


def test_all_equal_costs_give_the_product_plan():
    for constant in (0.0, 3.0):
        M = torch.full((4, 6), constant)
        for method in ("sinkhorn", "proximal"):
            result = solve(M, method=method)
            assert result.value.item() == pytest.approx(constant, abs=1e-6)
            assert torch.allclose(result.plan, torch.full((4, 6), 1 / 24))
            assert result.converged


def test_weights_of_zero_carry_nothing():
    M = cost_matrix(6, 8)
    a, b = weights(6), weights(8)
    a[2], b[5], b[0] = 0, 0, 0
    a, b = a / a.sum(), b / b.sum()
    keep_a, keep_b = a > 0, b > 0
    for method in ("sinkhorn", "proximal", "exact"):
        whole = solve(M, a, b, method=method, tolerance=1e-7, max_iterations=20_000)
        reduced = solve(
            M[keep_a][:, keep_b], a[keep_a], b[keep_b], method=method, tolerance=1e-7, max_iterations=20_000
        )
        assert whole.value.item() == pytest.approx(reduced.value.item(), rel=1e-5)
        assert whole.plan[2].sum() == 0
        assert whole.plan[:, [0, 5]].sum() == 0


@pytest.mark.parametrize("method", ["sinkhorn", "proximal"])
def test_a_neuron_of_weight_zero_may_be_everyones_best_match(method):
    M = cost_matrix(6, 8).float()
    M[:, 3] = 0
    M[2] = 0
    a, b = torch.full((6,), 1 / 5), torch.full((8,), 1 / 7)
    a[2], b[3] = 0, 0
    keep_a, keep_b = a > 0, b > 0
    whole = solve(M, a, b, method=method, max_iterations=5000)
    reduced = solve(M[keep_a][:, keep_b], a[keep_a], b[keep_b], method=method, max_iterations=5000)
    assert whole.converged
    # the unit of epsilon and of the tolerance is the mean cost, in which weights of 0 do not count
    assert whole.cost.item() == pytest.approx(reduced.cost.item(), rel=5e-3)


def test_forbidden_matches_carry_nothing():
    M = cost_matrix(6, 6)
    M[0, 1:] = torch.inf
    for method in ("sinkhorn", "proximal"):
        result = solve(M, method=method, max_iterations=5000)
        assert result.plan[0, 0].item() == pytest.approx(1 / 6, rel=1e-3)
        assert torch.isfinite(result.cost)
        assert result.converged


def test_a_nan_shows_in_its_own_problem_only():
    M = cost_matrix(5, 5, batch=2)
    M[0, 2, 3] = torch.nan
    for method in ("sinkhorn", "proximal", "exact"):
        result = solve(M, method=method)
        assert not result.converged[0]
        assert not torch.isfinite(result.value[0])
        assert result.value[1].item() == pytest.approx(solve(M[1], method=method).value.item())


@pytest.mark.parametrize("method", METHODS)
def test_half_precision_is_computed_in_float32(method):
    M = cost_matrix(8, 8).bfloat16()
    result = solve(M.requires_grad_(), method=method)
    assert result.plan.dtype == result.value.dtype == torch.float32
    result.value.backward()
    assert M.grad.dtype == torch.bfloat16
