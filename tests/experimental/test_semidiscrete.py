"""Semi-discrete transport against closed forms and against discrete exact transport."""

import math

import pytest
import torch

from hf_reprot.experimental.latent.semidiscrete import semidiscrete
from hf_reprot.ot import solve

NORMAL = torch.distributions.Normal(0.0, 1.0)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_on_a_line_the_cells_are_quantiles():
    """In one dimension the map is monotone: the borders of the cells are the quantiles of the cumulated weights."""
    points = torch.tensor([[5.0], [-3.0], [0.0], [-1.0]])
    weights = torch.tensor([0.4, 0.3, 0.1, 0.2])
    plan = semidiscrete(points, weights, generator=seeded(), check_draws=200_000)
    order = points[:, 0].argsort()
    borders = NORMAL.icdf(weights[order].cumsum(0)[:-1])
    shifted = (points - plan.centre)[order, 0]
    found = -plan.offsets[order].diff() / shifted.diff()  # where two neighbours' scores are equal
    torch.testing.assert_close(found, borders, atol=0.02, rtol=0)
    assert plan.mass_error < 0.01
    # E |z - T(z)|^2 / 2 in closed form: the mean of z over a cell is a difference of densities.
    ends = torch.cat([torch.tensor([-math.inf]), borders, torch.tensor([math.inf])])
    density = NORMAL.log_prob(ends.clamp(-1e3, 1e3)).exp()
    moved = ((density[:-1] - density[1:]) * points[order, 0]).sum()
    value = 0.5 - moved + (weights * points[:, 0].square()).sum() / 2
    torch.testing.assert_close(plan.value, value, atol=0.02, rtol=0)


def test_the_value_is_near_discrete_exact_transport():
    """A sample of the Gaussian, matched exactly, costs about the same."""
    points = torch.randn(20, 2, generator=seeded(1)) * 2 + 1
    plan = semidiscrete(points, generator=seeded(), check_draws=100_000)
    noise = torch.randn(2000, 2, generator=seeded(2))
    cost = torch.cdist(noise, points).square() / 2
    exact = solve(cost.double(), method="exact").cost
    assert abs(plan.value - exact) < 0.08
    own = cost.gather(1, plan.assign(noise)[:, None]).mean()
    assert abs(own - exact) < 0.08  # the map itself, on fresh noise
    assert cost.min(1).values.mean() + 0.3 < own  # which the nearest point, the map without h, is far from


def test_masses_meet_the_weights_on_noise_that_was_not_seen():
    points = torch.randn(50, 8, generator=seeded(3))
    weights = torch.rand(50, generator=seeded(4)) + 0.1
    weights /= weights.sum()
    plan = semidiscrete(points, weights, generator=seeded())
    masses = torch.bincount(plan.assign(torch.randn(100_000, 8, generator=seeded(9))), minlength=50) / 100_000
    assert (masses - weights).abs().sum() < 0.04
    assert plan.mass_error < 0.09  # on 10,000 draws, where exact masses show what follows
    assert 0.03 < plan.mass_noise < 0.08
    spread = points - plan.centre
    nearest = (-torch.cdist(torch.randn(100_000, 8, generator=seeded(9)), spread)).max(1).indices
    assert (torch.bincount(nearest, minlength=50) / 100_000 - weights).abs().sum() > 0.3  # h does the work


def test_units_do_not_matter():
    points = torch.randn(30, 3, generator=seeded(5))
    noise = torch.randn(5000, 3, generator=seeded(6))
    plain = semidiscrete(points, steps=100, generator=seeded()).assign(noise)
    for changed in (points * 1e-4, points * 1e4, points + 1000):
        same = semidiscrete(changed, steps=100, generator=seeded()).assign(noise) == plain
        assert same.float().mean() > 0.99


def test_problems_side_by_side_and_places_without_a_point():
    points = torch.randn(3, 20, 4, generator=seeded(7))
    weights = torch.ones(3, 20)
    weights[1, 5:] = 0
    weights[2, 1:] = 0
    points[1, 5:] = 1e6  # whatever lies there
    weights /= weights.sum(1, keepdim=True)
    plan = semidiscrete(points, weights, steps=200, generator=seeded(), check_draws=50_000)
    noise = torch.randn(20_000, 4, generator=seeded(8))
    assigned = plan.assign(noise)
    assert assigned.shape == (3, 20_000)
    assert (assigned[1] < 5).all()
    assert (assigned[2] == 0).all()
    assert (plan.mass_error < 0.06).all()
    alone = semidiscrete(points[1, :5], steps=200, generator=seeded())
    assert (alone.assign(noise) == assigned[1]).float().mean() > 0.98
    assert torch.isfinite(plan.value).all()


def test_seeds_and_progress():
    points = torch.randn(10, 2, generator=seeded(1))
    seen = []
    first = semidiscrete(points, steps=7, generator=seeded(), on_step=lambda done, steps: seen.append((done, steps)))
    assert seen == [(i, 7) for i in range(1, 8)]
    assert torch.equal(first.offsets, semidiscrete(points, steps=7, generator=seeded()).offsets)
    assert not torch.equal(first.offsets, semidiscrete(points, steps=7, generator=seeded(1)).offsets)
    assert semidiscrete(points.half(), steps=7, generator=seeded()).offsets.dtype == torch.float32
    one = semidiscrete(points[:1], steps=3, generator=seeded())
    assert (one.assign(torch.randn(9, 2)) == 0).all()


def test_bad_arguments():
    points = torch.rand(5, 2)
    with pytest.raises(TypeError, match=r"int64"):
        semidiscrete(torch.ones(5, 2, dtype=torch.long))
    with pytest.raises(ValueError, match=r"\(5,\)"):
        semidiscrete(points[:, 0])
    with pytest.raises(ValueError, match=r"weights must have shape \(5,\), got \(4,\)"):
        semidiscrete(points, torch.ones(4) / 4)
    for name in ("steps", "batch_size", "check_draws"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            semidiscrete(points, **{name: 0})
