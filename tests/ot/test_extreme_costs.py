"""Costs at the ends of float32's range, and matches that are forbidden."""

import math

import pytest
import torch

from hf_reprot.ot import METHODS, solve

ITERATED = ("sinkhorn", "proximal")


def costs(*shape: int, seed: int = 0, dtype=torch.float32) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def forbid(M: torch.Tensor, share: float, seed: int = 0) -> torch.Tensor:
    """Forbids a share of the matches, and leaves some that reach everybody."""
    m, n = M.shape[-2:]
    far = torch.rand(M.shape, generator=torch.Generator().manual_seed(seed)) < share
    steps = torch.arange(max(m, n))
    far[..., steps % m, steps % n] = False
    return M.masked_fill(far, math.inf)


@pytest.mark.parametrize("exponent", [-124, -126, 61, 126])
@pytest.mark.parametrize("kind", ["plain", "negative", "forbidden", "epsilon", "warm"])
@pytest.mark.parametrize("method", METHODS)
def test_the_unit_of_the_cost_changes_nothing_but_the_unit(method, kind, exponent):
    M, unit = costs(2, 20, 20) + 0.25, 2.0**exponent  # halves of the least normal number keep most digits
    settings, theirs = {}, {}
    if kind == "negative":
        M = M - 0.5
    elif kind == "forbidden" and method in (*ITERATED, "exact"):
        M = forbid(M, 0.3)
    elif kind == "epsilon" and method in ITERATED:
        settings, theirs = {"epsilon": 0.05 * unit}, {"epsilon": 0.05}
    elif kind == "warm" and method in ITERATED:
        g = costs(2, 20, seed=1)
        settings, theirs = {"init": g * unit}, {"init": g}
    found, expected = solve(M * unit, method=method, **settings), solve(M, method=method, **theirs)
    assert found.converged.tolist() == expected.converged.tolist()
    for name in ("value", "cost"):
        close = getattr(found, name).double() / unit, getattr(expected, name).double()
        torch.testing.assert_close(*close, rtol=1e-4, atol=1e-6)
    if method != "exact":
        torch.testing.assert_close(found.plan, expected.plan, rtol=0, atol=1e-3 * expected.plan.max().item())
    if found.epsilon is not None and exponent > -120:  # in float32 an epsilon of 2^-130 has few digits
        torch.testing.assert_close(found.epsilon.double() / unit, expected.epsilon.double(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("method", ITERATED)
def test_problems_of_very_different_units_side_by_side(method):
    M, units = costs(4, 15, 15), torch.tensor([2.0**-124, 1.0, 0.0, 2.0**120])
    found, expected = solve(M * units[:, None, None], method=method), solve(M, method=method)
    assert found.converged.all()
    for k in (0, 1, 3):
        torch.testing.assert_close(found.plan[k], expected.plan[k], rtol=0, atol=1e-4)
    assert found.value[2].abs() < 1e-37
    assert found.plan[2].max() == pytest.approx(1 / 225)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.9])
@pytest.mark.parametrize("shape", [(40, 40), (20, 60)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("tolerance", [1e-2, 1e-3])
def test_proximal_with_forbidden_matches_is_as_near_as_it_says(shape, share, dtype, tolerance):
    M = forbid(torch.stack([costs(*shape, seed=seed, dtype=dtype) for seed in range(4)]), share)
    near, exact = solve(M, method="proximal", tolerance=tolerance, max_iterations=3000), solve(M, method="exact")
    assert near.converged.all()
    assert (near.cost <= (1 + 1.5 * tolerance) * exact.cost).all()


@pytest.mark.parametrize("method", [*ITERATED, "exact"])
def test_where_no_plan_avoids_what_is_forbidden_nothing_converges(method):
    a_row, a_column, two_for_one, everything = costs(4, 5, 5)
    a_row[1], a_column[:, 2], two_for_one[:2, 1:], everything[:] = (math.inf,) * 4
    found = solve(torch.stack([a_row, a_column, two_for_one, everything]), method=method)
    assert not found.converged.any()


@pytest.mark.parametrize("method", [*ITERATED, "exact"])
def test_costs_of_zero_beside_forbidden_ones(method):
    M = torch.full((6, 6), math.inf).fill_diagonal_(0)
    found = solve(M, method=method)
    assert found.converged
    assert found.cost == 0
    torch.testing.assert_close(found.plan, torch.eye(6) / 6)
