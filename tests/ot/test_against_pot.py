"""Known answers: POT's exact solver and its converged log-domain Sinkhorn."""

import numpy as np
import ot
import pytest
import torch

from hf_reprot.ot import solve
from tests.ot.problems import cost_matrix, weights

SIZES = [(1, 1), (1, 7), (7, 1), (40, 40), (30, 65), (65, 30)]


def _marginals(m, n, uniform):
    return (None, None) if uniform else (weights(m, 1), weights(n, 2))


@pytest.mark.parametrize("uniform", [True, False])
@pytest.mark.parametrize(("m", "n"), SIZES)
def test_exact_is_emd(m, n, uniform):
    M = cost_matrix(m, n)
    a, b = _marginals(m, n, uniform)
    result = solve(M, a, b, method="exact")
    a, b = (np.full(k, 1 / k) if w is None else w.numpy() for w, k in ((a, m), (b, n)))
    assert result.value.item() == pytest.approx(ot.emd2(a, b, M.numpy()), rel=1e-6)
    assert result.converged


@pytest.mark.parametrize("uniform", [True, False])
@pytest.mark.parametrize(("m", "n"), SIZES)
def test_sinkhorn_is_the_converged_sinkhorn_log(m, n, uniform):
    M = cost_matrix(m, n)
    a, b = _marginals(m, n, uniform)
    result = solve(M, a, b, relative_epsilon=0.03, tolerance=1e-10, max_iterations=20_000)
    a, b = (np.full(k, 1 / k) if w is None else w.numpy() for w, k in ((a, m), (b, n)))
    epsilon = result.epsilon.item()
    plan = ot.sinkhorn(a, b, M.numpy(), epsilon, method="sinkhorn_log", stopThr=1e-14, numItermax=100_000)
    kl = np.sum(np.where(plan > 0, plan * np.log(np.maximum(plan, 1e-300) / np.outer(a, b)), 0.0))
    assert result.value.item() == pytest.approx(np.sum(plan * M.numpy()) + epsilon * kl, rel=1e-6)
    assert result.plan.numpy() == pytest.approx(plan, abs=1e-4 * plan.max())
    assert result.plan.numpy()[plan > 0.01 * plan.max()] == pytest.approx(plan[plan > 0.01 * plan.max()], rel=1e-4)


def test_absolute_epsilon_is_pots_reg():
    M = cost_matrix(20, 30)
    plan = ot.sinkhorn(np.full(20, 1 / 20), np.full(30, 1 / 30), M.numpy(), 0.1, method="sinkhorn_log", stopThr=1e-14)
    result = solve(M, epsilon=0.1, relative_epsilon=5.0, tolerance=1e-10, max_iterations=10_000)
    assert result.epsilon.item() == pytest.approx(0.1)
    assert result.plan.numpy() == pytest.approx(plan, abs=1e-8)


def test_proximal_is_near_the_exact_cost_on_a_large_pair():
    M = cost_matrix(512, 2048, samples=512).float()
    proximal, exact = solve(M, method="proximal"), solve(M, method="exact")
    assert proximal.converged
    assert proximal.cost.item() == pytest.approx(exact.cost.item(), rel=1e-3)
    assert proximal.cost.item() == pytest.approx(proximal.value.item())


@pytest.mark.parametrize("uniform", [True, False])
def test_proximal_without_entropic_bias_on_small_pairs(uniform):
    M = cost_matrix(30, 45)
    a, b = _marginals(30, 45, uniform)
    assert solve(M, a, b, method="proximal", tolerance=1e-4, max_iterations=20_000).cost.item() == pytest.approx(
        solve(M, a, b, method="exact").cost.item(), rel=2e-4
    )


def test_sinkhorn_goes_to_the_exact_value_as_epsilon_goes_to_zero():
    M = cost_matrix(40, 40)
    exact = solve(M, method="exact").value.item()
    gaps = [
        solve(M, relative_epsilon=e, tolerance=1e-6, max_iterations=50_000).value.item() - exact
        for e in (0.1, 0.03, 0.01, 0.003, 0.001)
    ]
    assert all(gap >= -1e-6 for gap in gaps)
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < 0.01 * exact


def test_one_dimension_is_sorting():
    x, y = torch.randn(50, dtype=torch.float64), torch.randn(50, dtype=torch.float64)
    M = (x[:, None] - y).square()
    assert solve(M, method="exact").value.item() == pytest.approx((x.sort()[0] - y.sort()[0]).square().mean().item())


def test_gaussians_have_the_closed_form():
    # W2^2 of N(m1, s1^2) and N(m2, s2^2) = (m1 - m2)^2 + (s1 - s2)^2, by quantiles in place of samples
    grid = torch.special.ndtri((torch.arange(400, dtype=torch.float64) + 0.5) / 400)
    M = ((1.0 + 2.0 * grid)[:, None] - (-0.5 + 0.5 * grid)).square()
    assert solve(M, method="exact").value.item() == pytest.approx(1.5**2 + 1.5**2, rel=0.02)
    assert solve(M, method="proximal", max_iterations=5000).cost.item() == pytest.approx(1.5**2 + 1.5**2, rel=0.02)
