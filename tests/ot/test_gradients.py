"""The gradient of the value is the plan: by finite differences, with epsilon held fixed."""

import pytest
import torch

from hf_reprot.ot import METHODS, neuron_cost, solve
from tests.ot.problems import cost_matrix, layer, weights


def _slope(function, x, direction, step):
    return (function(x + step * direction) - function(x - step * direction)).item() / (2 * step)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_in_the_cost_matrix(method, weighted):
    M = cost_matrix(9, 9).requires_grad_()
    a, b = (weights(9), weights(9, 3)) if weighted else (None, None)
    settings = {"method": method, "tolerance": 1e-11, "max_iterations": 50_000}
    if method == "sinkhorn":
        settings["epsilon"] = 0.1
    if method == "proximal":
        settings |= {"tolerance": 1e-5, "max_iterations": 20_000}
    result = solve(M, a, b, **settings)
    result.value.backward()
    assert torch.equal(M.grad, result.plan)
    direction = torch.randn(9, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    slope = _slope(
        lambda x: solve(x, a, b, **settings).value, M.detach(), direction, 1e-3 if method == "proximal" else 1e-4
    )
    assert slope == pytest.approx((M.grad * direction).sum().item(), rel=2e-2 if method == "proximal" else 1e-4)


@pytest.mark.parametrize("standardize", [True, False])
def test_down_to_the_activations(standardize):
    student = layer(40, 7).requires_grad_()
    teacher = layer(40, 9, mixing=2)

    def value(x):
        M = neuron_cost(x, teacher, standardize=standardize)
        return solve(M, epsilon=0.05, tolerance=1e-12, max_iterations=50_000).value

    value(student).backward()
    for seed in range(3):
        direction = torch.randn(student.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        slope = _slope(value, student.detach(), direction, 1e-5)
        assert slope == pytest.approx((student.grad * direction).sum().item(), rel=1e-4)


def test_a_relative_epsilon_is_detached():
    M = cost_matrix(6, 6).requires_grad_()
    relative = solve(M, relative_epsilon=0.1, tolerance=1e-10)
    relative.value.backward()
    fixed = M.detach().clone().requires_grad_()
    solve(fixed, epsilon=relative.epsilon, tolerance=1e-10).value.backward()
    assert torch.allclose(M.grad, fixed.grad)


def test_nothing_is_recorded_without_need():
    M = cost_matrix(4, 4)
    assert not solve(M).value.requires_grad
    with torch.no_grad():
        assert not solve(M.requires_grad_()).value.requires_grad
    result = solve(M)
    assert not result.plan.requires_grad
    assert not result.cost.requires_grad


def test_a_batch_weighs_each_problem_by_its_own_gradient():
    M = cost_matrix(5, 6, batch=3).requires_grad_()
    result = solve(M)
    (result.value * torch.tensor([1.0, 0.0, -2.0])).sum().backward()
    assert torch.equal(M.grad, result.plan * torch.tensor([1.0, 0.0, -2.0], dtype=torch.float64)[:, None, None])
