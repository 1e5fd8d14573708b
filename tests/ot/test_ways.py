"""Every way of running Sinkhorn ends at the same plan: host, accelerator's loop, log domain."""

import pytest
import torch

from hf_reprot.ot import solve
from hf_reprot.ot.result import Limits
from hf_reprot.ot.solvers.budget import SweepBudget
from hf_reprot.ot.solvers.kernel import cold_potentials, inner
from hf_reprot.ot.solvers.sinkhorn_device import CHUNK, sinkhorn_device
from hf_reprot.ot.solvers.sinkhorn_host import sinkhorn_host
from hf_reprot.ot.solvers.sweeps import Sweeps, sinkhorn_log
from tests.ot.problems import cost_matrix, weights


def _problem(batch=3, m=20, n=33, dtype=torch.float64):
    M = cost_matrix(m, n, batch=batch).to(dtype)
    return M, weights(m).to(dtype).expand(batch, m).contiguous(), weights(n, 4).to(dtype).expand(batch, n).contiguous()


@pytest.mark.parametrize("way", [sinkhorn_device, sinkhorn_log])
@pytest.mark.parametrize("start", [False, True])
def test_agrees_with_the_host(way, start):
    M, a, b = _problem()
    epsilon = torch.tensor([0.2, 0.05, 0.02], dtype=torch.float64)
    limits = Limits(1e-10, 20_000)
    g = torch.randn(b.shape, dtype=torch.float64) * 0.1 if start else None
    expected, found = sinkhorn_host(M, a, b, epsilon, limits, g), way(M, a, b, epsilon, limits, g)
    assert torch.allclose(found.plan, expected.plan, atol=1e-9)
    assert found.converged.all()
    assert expected.converged.all()
    value = (found.f * a).sum(-1) + (found.g * b).sum(-1)
    assert torch.allclose(value, (expected.f * a).sum(-1) + (expected.g * b).sum(-1), rtol=1e-9)
    assert torch.allclose(found.plan.sum(-1), a)


@pytest.mark.parametrize("way", [sinkhorn_host, sinkhorn_device])
def test_momentum_saves_sweeps_and_changes_nothing(way):
    M, a, b = _problem()
    epsilon = torch.tensor([1.0, 0.03, 0.01], dtype=torch.float64)
    plain, carried = (way(M, a, b, epsilon, Limits(1e-9, 50_000, accelerate)) for accelerate in (False, True))
    assert plain.converged.all()
    assert carried.converged.all()
    assert torch.allclose(plain.plan, carried.plan, atol=1e-7)
    assert (carried.iterations[1:] < 0.4 * plain.iterations[1:]).all()
    assert carried.iterations[0] <= plain.iterations[0] + CHUNK


def test_pairs_that_are_done_leave_and_the_rest_goes_on():
    M, a, b = _problem(batch=7)
    epsilon = torch.tensor([1.0, 0.02, 0.5, 0.01, 0.2, 0.05, 1.0], dtype=torch.float64)
    together = sinkhorn_host(M, a, b, epsilon, Limits(1e-8, 20_000))
    for i in range(7):
        one = slice(i, i + 1)
        alone = sinkhorn_host(M[one], a[one], b[one], epsilon[one], Limits(1e-8, 20_000))
        assert abs(together.iterations[i] - alone.iterations[0]) <= 2  # rounding differs
        assert torch.allclose(together.plan[i], alone.plan[0], rtol=1e-6, atol=1e-10)
        assert torch.allclose(together.f[i], alone.f[0], atol=1e-6)
        assert torch.allclose(together.g[i], alone.g[0], atol=1e-6)


def test_scalings_that_overflow_go_back_to_the_last_potentials():
    M, a, b = _problem(batch=2)
    f, g = cold_potentials(M)
    sweeps = Sweeps(M, a, b, torch.full((2,), 0.1).double(), f, g, torch.empty_like(M), accelerate=True)
    for _ in range(3):
        sweeps.sweep()
        sweeps.advance()
    sweeps.v[0, 3] = torch.inf
    sweeps.absorb()
    assert torch.equal(sweeps.g[0], g[0])
    assert not torch.equal(sweeps.g[1], g[1])
    for _ in range(200):
        sweeps.sweep()
        sweeps.advance()
    assert (sweeps.error() < 1e-3).all()


def test_the_accelerators_loop_in_float32_reaches_what_was_asked():
    M, a, b = _problem(dtype=torch.float32)
    solution = sinkhorn_device(M, a, b, torch.full((3,), 0.02), Limits(1e-3, 1000))
    assert solution.converged.all()
    assert ((solution.plan.sum(-2) - b).abs().sum(-1) <= 1.1e-3).all()


def test_sweeps_beyond_what_a_pair_needs_do_not_change_it():
    M, a, b = _problem(dtype=torch.float32)
    epsilon = torch.tensor([0.5, 0.05, 0.01])
    first = sinkhorn_device(M, a, b, epsilon, Limits(1e-3, 999))
    for _ in range(4):  # later calls launch more sweeps than were needed, without asking
        again = sinkhorn_device(M, a, b, epsilon, Limits(1e-3, 999))
        assert torch.equal(first.iterations, again.iterations)
        assert torch.allclose(first.plan, again.plan, rtol=1e-5, atol=1e-9)
    assert first.iterations[0] < first.iterations[2]


def test_a_budget_grows_where_it_was_too_small_and_shrinks_slowly():
    budget = SweepBudget(first=8)

    def call(needed, most=1000):
        work = budget.plan("key", 8, most)
        allowed = work.sweeps if work.sweeps is not None else needed
        done = torch.tensor([allowed >= needed])
        work.learn(torch.tensor([min(needed, allowed)]), done)
        return work.sweeps

    assert call(16) is None  # the first call asks
    assert [call(16) for _ in range(4)] == [28, 28, 28, 28]
    grown = [call(200) for _ in range(12)]
    assert grown[-1] >= 200
    assert call(200, most=100) == 100
    shrinking = [call(16) for _ in range(8)]
    assert shrinking == sorted(shrinking, reverse=True)
    assert shrinking[-1] < grown[-1]


def test_where_the_kernel_overflows_the_log_domain_takes_over(monkeypatch):
    M, a, b = _problem(dtype=torch.float32)
    epsilon = torch.full((3,), 0.05)
    expected = sinkhorn_host(M, a, b, epsilon, Limits(1e-5, 5000))
    # without absorption, from a start whose scalings overflow in float32
    monkeypatch.setattr("hf_reprot.ot.solvers.sinkhorn_host._extreme", lambda scaling: False)
    monkeypatch.setattr(
        "hf_reprot.ot.solvers.sinkhorn_host.starting_potentials", lambda M, g: (M.amin(-1) + 100, M.amin(-2) * 0)
    )
    found = sinkhorn_host(M, a, b, epsilon, Limits(1e-5, 5000))
    assert torch.allclose(found.plan, expected.plan, atol=1e-5)


@pytest.mark.parametrize("way", [sinkhorn_host, sinkhorn_device])
def test_a_warm_start_stays_as_it_was_given(way):
    M, a, b = _problem()
    g = 0.1 * torch.randn(b.shape, dtype=torch.float64)
    given = g.clone()
    way(M, a, b, torch.full((3,), 0.05).double(), Limits(1e-6, 2000), g)
    assert torch.equal(g, given)
    start = solve(M[0], tolerance=1e-2).potentials
    before = [x.clone() for x in start]
    solve(M[0], init=start)
    assert all(map(torch.equal, start, before))


@pytest.mark.parametrize("shape", [(1, 3, 5), (3, 256, 128), (2, 256, 256), (1, 257, 300)])
def test_the_cost_of_a_plan_however_it_is_summed(shape):
    draw = torch.Generator().manual_seed(0)
    plan, matrix = torch.rand(2, *shape, generator=draw)
    plan /= plan.sum((-2, -1), keepdim=True)
    assert torch.allclose(inner(plan, matrix).double(), (plan.double() * matrix.double()).sum((-2, -1)), rtol=1e-6)
