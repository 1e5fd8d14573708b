"""Transport between Gaussians by their cross moments: closed forms, gradients, and both ways to compute it."""

import math

import pytest
import torch
from ot.gaussian import bures_wasserstein_distance

from hf_reprot.ot import gaussian
from hf_reprot.ot.gaussian import solve_gaussian
from tests.ot.test_no_stall import _NoReads


def _cross(m=5, n=8, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(m, n, generator=generator, dtype=torch.float64).to(dtype)


def test_the_distance_of_pot_where_epsilon_is_small():
    X, Y = _cross(6, 4), _cross(6, 5, seed=1)
    overlap = solve_gaussian(X.mT @ Y, relative_epsilon=1e-9).overlap
    A, B = X @ X.mT + 1e-9 * torch.eye(6), Y @ Y.mT + 1e-9 * torch.eye(6)
    expected = bures_wasserstein_distance(torch.zeros(6).double(), torch.zeros(6).double(), A, B) ** 2
    assert (X.square().sum() + Y.square().sum() - overlap).item() == pytest.approx(expected.item(), rel=1e-3)


def test_one_dimension_by_hand():
    """N(0, 4) and N(0, 9), eps = 5: s = 6, r = sqrt(144 + 25) = 13."""
    result = solve_gaussian(torch.tensor([[6.0]]).double(), epsilon=5.0)
    assert result.overlap.item() == pytest.approx(13 - 5 - 5 * math.log(18 / 10))
    assert result.coupling.item() == pytest.approx(12 / 18)


def test_one_dimension_by_the_plan_itself():
    """The best correlated Gaussian plan, found by trying all: its cost and its mutual information."""
    a, b, eps = 2.0, 3.0, 1.5
    rho = torch.linspace(-0.9999, 0.9999, 200_001).double()
    value = a**2 + b**2 - 2 * rho * a * b - 0.5 * eps * (1 - rho.square()).log()
    overlap = solve_gaussian(torch.tensor([[a * b]]).double(), epsilon=eps / 2).overlap
    assert (a**2 + b**2 - overlap).item() == pytest.approx(value.min().item(), abs=1e-6)


@pytest.mark.parametrize("shape", [(5, 8), (8, 5), (4, 4)])
def test_gradient_by_finite_differences(shape):
    cross = _cross(*shape).requires_grad_()
    assert torch.autograd.gradcheck(lambda K: solve_gaussian(K, epsilon=0.3).overlap, cross)
    result = solve_gaussian(cross, epsilon=0.3)
    gradient = torch.autograd.grad(result.overlap, cross)[0]
    torch.testing.assert_close(gradient, 2 * result.coupling)


def test_the_coupling_tends_to_the_polar_factor_and_shrinks_with_epsilon():
    K = _cross()
    U, _, Vh = torch.linalg.svd(K, full_matrices=False)
    torch.testing.assert_close(solve_gaussian(K, relative_epsilon=1e-7).coupling, U @ Vh, rtol=0, atol=1e-6)
    large = solve_gaussian(K, epsilon=1e6).coupling
    torch.testing.assert_close(large, K / 1e6, rtol=1e-4, atol=0)


def test_few_samples_by_their_span():
    left, right = _cross(30, 3), _cross(3, 40, seed=1)
    K, basis = left @ right, torch.linalg.qr(left).Q
    whole, spanned = solve_gaussian(K, rank=torch.tensor(3.0)), solve_gaussian(K, rank=torch.tensor(3.0), basis=basis)
    assert spanned.overlap.item() == pytest.approx(whole.overlap.item())
    torch.testing.assert_close(spanned.coupling, whole.coupling)


@pytest.mark.parametrize("relative_epsilon", [1.0, 0.1, 0.01])
@pytest.mark.parametrize("shape", [(6, 9), (40, 100)])
def test_by_products_as_by_eigenvalues(shape, relative_epsilon, monkeypatch):
    K = (_cross(*shape) @ torch.diag(torch.logspace(0, -3, shape[1], dtype=torch.float64))).float()
    expected = solve_gaussian(K, relative_epsilon=relative_epsilon)
    monkeypatch.setattr(gaussian, "_by_eigenvalues", gaussian._by_products)
    with _NoReads():
        result = solve_gaussian(K, relative_epsilon=relative_epsilon)
    assert result.overlap.item() == pytest.approx(expected.overlap.item(), rel=1e-4)
    torch.testing.assert_close(result.coupling, expected.coupling, rtol=0, atol=1e-3)


@pytest.mark.parametrize("solver", ["_by_eigenvalues", "_by_products"])
def test_nothing_in_common_is_no_overlap(solver, monkeypatch):
    monkeypatch.setattr(gaussian, "_by_eigenvalues", getattr(gaussian, solver))
    K = torch.zeros(3, 4, requires_grad=True)
    result = solve_gaussian(K)
    result.overlap.backward()
    assert result.overlap.item() == pytest.approx(0, abs=1e-5)
    assert K.grad.abs().max() == 0


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="relative_epsilon must be a finite number above 0, got 0"):
        solve_gaussian(_cross(), relative_epsilon=0)
    with pytest.raises(ValueError, match="epsilon must be a finite number above 0, got inf"):
        solve_gaussian(_cross(), epsilon=math.inf)
    with pytest.raises(ValueError, match=r"shape \(m, n\), got \(3,\)"):
        solve_gaussian(torch.zeros(3))
