"""Sinkhorn for one pair on a CPU, by arrays: what the sweeps of a batch find, and a plainly written solver."""

import math

import pytest
import torch

from hf_reprot.ot import neuron_cost, solve
from hf_reprot.ot.result import Limits
from hf_reprot.ot.solvers import one_pair, sinkhorn_host
from hf_reprot.ot.solvers.kernel import cold_potentials, fill_kernel, inner
from tests.ot.problems import cost_matrix, weights


def _problem(batch=2, m=20, n=33, dtype=torch.float64):
    M = cost_matrix(m, n, batch=batch).to(dtype)
    a, b = weights(m).to(dtype), weights(n, 4).to(dtype)
    return M, a.expand(batch, m).contiguous(), b.expand(batch, n).contiguous()


def _plainly(M, a, b, epsilon, sweeps=20_000):
    """The plan (m, n) by sweeps in the log domain."""
    g = torch.zeros_like(b)
    for _ in range(sweeps):
        f = -epsilon * torch.logsumexp((g - M) / epsilon + b.log(), 1)
        g = -epsilon * torch.logsumexp((f[:, None] - M) / epsilon + a.log()[:, None], 0)
    f = -epsilon * torch.logsumexp((g - M) / epsilon + b.log(), 1)
    return a[:, None] * b * ((f[:, None] + g - M) / epsilon).exp()


@pytest.mark.parametrize(("dtype", "tolerance", "off"), [(torch.float64, 1e-10, 1e-8), (torch.float32, 1e-5, 1e-4)])
def test_ends_where_a_plainly_written_solver_does(dtype, tolerance, off):
    M, a, b = _problem(1)
    expected = _plainly(M[0], a[0], b[0], 0.1, 2000)
    found = sinkhorn_host.sinkhorn_host(
        *(x.to(dtype) for x in (M, a, b, torch.tensor([0.1]))), Limits(tolerance, 20_000)
    )
    assert found.converged.all()
    assert (found.plan[0] - expected).abs().max() <= off * expected.max()
    assert torch.allclose(found.plan.sum(-1), a.to(dtype), rtol=1e-5)


@pytest.mark.parametrize("accelerate", [True, False])
def test_makes_the_sweeps_of_a_batch(monkeypatch, accelerate):
    M, a, b = _problem(7)
    epsilon = torch.tensor([1.0, 0.02, 0.5, 0.03, 0.2, 0.05, 1.0], dtype=torch.float64)
    limits = Limits(1e-8, 20_000, accelerate)
    together = sinkhorn_host.sinkhorn_host(M, a, b, epsilon, limits)
    monkeypatch.setattr(sinkhorn_host, "_MANY", 99)
    monkeypatch.setattr(sinkhorn_host, "_together", None)  # not taken
    alone = sinkhorn_host.sinkhorn_host(M, a, b, epsilon, limits)
    # Two looks apart at most: rounding, which differs between products, may decide who stops first.
    assert (together.iterations - alone.iterations).abs().max() <= 2
    for name in ("plan", "f", "g"):
        assert torch.allclose(getattr(together, name), getattr(alone, name), rtol=1e-6, atol=1e-7), name
    assert max(together.error.max(), alone.error.max()) <= 1e-8


@pytest.mark.parametrize("relative", [0.5, 0.1, 0.005])
@pytest.mark.parametrize("warm", [True, False])
def test_blocks_of_rows_are_one_matrix(monkeypatch, relative, warm):
    """A plain kernel, and one that needs potentials to start from."""
    M, a, b = _problem()
    start = 0.1 * torch.randn(b.shape, generator=torch.Generator().manual_seed(0), dtype=b.dtype) if warm else None
    limits = Limits(1e-9, 20_000)
    whole = sinkhorn_host.sinkhorn_host(M, a, b, None, limits, start, relative=relative)
    monkeypatch.setattr(one_pair, "BLOCK", 3 * M.shape[-1])
    monkeypatch.setattr(one_pair, "_WHOLE", 0)
    blocks = sinkhorn_host.sinkhorn_host(M, a, b, None, limits, start, relative=relative)
    assert whole.converged.all()
    assert (whole.iterations - blocks.iterations).abs().max() <= 2
    for name in ("plan", "epsilon", "cost", "value"):
        assert torch.allclose(getattr(whole, name), getattr(blocks, name), rtol=1e-6, atol=1e-10), name
    mean = (a[..., :, None] * b[..., None, :] * M).sum((-2, -1))
    assert torch.allclose(whole.epsilon, relative * mean)
    assert torch.allclose(whole.cost, (whole.plan * M).sum((-2, -1)))
    entropy = (whole.plan * (whole.plan / (a[..., :, None] * b[..., None, :])).log()).nansum((-2, -1))
    assert torch.allclose(whole.value, whole.cost + whole.epsilon * entropy, atol=1e-8)


@pytest.mark.parametrize("offset", [0.0, -0.4, 50.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_plain_kernel_starts_where_any_other_ends(monkeypatch, dtype, offset):
    M, a, b = _problem(dtype=dtype)
    limits, epsilon = Limits(1e-5, 5000), torch.full((2,), 0.1, dtype=dtype)
    plain = sinkhorn_host.sinkhorn_host(M + offset, a, b, epsilon, limits)
    monkeypatch.setattr(one_pair, "_EASY", -1)
    other = sinkhorn_host.sinkhorn_host(M + offset, a, b, epsilon, limits)
    assert plain.converged.all()
    assert torch.allclose(plain.plan, other.plan, atol=1e-4 * other.plan.max())
    assert torch.allclose(plain.value, other.value, rtol=1e-4, atol=1e-4)


def test_absorbing_often_changes_nothing(monkeypatch):
    M, a, b = _problem()
    epsilon, limits = torch.full((2,), 0.01).double(), Limits(1e-9, 50_000)
    rarely = sinkhorn_host.sinkhorn_host(M, a, b, epsilon, limits)
    written = []
    monkeypatch.setattr(one_pair, "LARGE", 1.5)
    write = one_pair._Pair._write_anew
    monkeypatch.setattr(one_pair._Pair, "_write_anew", lambda *call: (written.append(1), write(*call)))
    often = sinkhorn_host.sinkhorn_host(M, a, b, epsilon, limits)
    assert len(written) > 20
    assert often.converged.all()
    assert torch.allclose(rarely.plan, often.plan, atol=1e-8)
    assert torch.allclose(rarely.f - rarely.f.mean(-1, keepdim=True), often.f - often.f.mean(-1, keepdim=True))


def test_a_wild_start_ends_at_the_same_plan():
    M, a, b = _problem(dtype=torch.float32)
    epsilon, limits = torch.full((2,), 0.05), Limits(1e-5, 5000)
    expected = sinkhorn_host.sinkhorn_host(M, a, b, epsilon, limits)
    start = 50 * torch.randn(b.shape, generator=torch.Generator().manual_seed(0))
    found = sinkhorn_host.sinkhorn_host(M, a, b, epsilon, limits, start)
    assert found.converged.all()
    assert torch.allclose(found.plan, expected.plan, atol=1e-4 * expected.plan.max())


def test_a_kernel_holds_no_subnormal_number():
    M = cost_matrix(60, 70, samples=64).float()[None]
    M[0, 3, 4], M[0, 5, 6] = math.inf, math.nan
    f, g = cold_potentials(torch.nan_to_num(M, nan=1.0, posinf=9.0))
    scale = 1 / (0.002 * M.nan_to_num(nan=1.0, posinf=1.0).mean((-2, -1)))
    exponents = (f[..., :, None] + g[..., None, :] - M).double() * scale
    batch, one = fill_kernel(torch.empty_like(M), M, f, g, scale), torch.empty_like(M[0])
    sides = (x[0].numpy() for x in (f, g))
    pair = one_pair._Pair(M[0], f[0].numpy(), g[0].numpy(), one, *sides, Limits(1e-3, 1))
    pair.scale = math.log2(math.e) * float(scale)
    pair._write_anew(slice(None), M[0], one)
    assert torch.allclose(batch[0], one, rtol=1e-5, equal_nan=True)
    assert one[3, 4] == 0
    assert one[5, 6].isnan()
    one[5, 6] = 0
    assert ((one == 0) | (one >= 2.0**-100)).all()
    assert (one == 0).any()
    assert ((exponents.exp() > 0) & (exponents.exp() < torch.finfo(torch.float32).tiny)).any()  # without, some are
    kept = exponents[0] > -60
    assert torch.allclose(one[kept].double(), exponents[0][kept].exp(), rtol=1e-4)


def test_a_sharp_problem_is_right_without_what_vanished():
    """At an epsilon of 0.3 % of the mean cost, most of a float32 kernel is below 1e-30."""
    M = cost_matrix(40, 50)
    exact = solve(M, relative_epsilon=0.003, tolerance=1e-10, max_iterations=50_000)
    found = solve(M.float(), relative_epsilon=0.003, tolerance=1e-5, max_iterations=50_000)
    assert found.converged
    assert found.value.item() == pytest.approx(exact.value.item(), rel=1e-5)
    assert (found.plan - exact.plan).norm() <= 1e-3 * exact.plan.norm()


def test_sums_that_are_no_numbers():
    plan, M = torch.full((2, 3, 4), 1 / 12), torch.ones(2, 3, 4)
    plan[0, 1, 2], M[0, 1, 2] = 0, math.inf
    M[1, 0, 0] = math.nan
    costs = inner(plan, M)
    assert costs[0].item() == pytest.approx(11 / 12)
    assert costs[1].isnan()


@pytest.mark.parametrize("method", ["sinkhorn", "proximal"])
@pytest.mark.parametrize("even", [True, False])
def test_the_gradient_in_the_activations_meets_no_subnormal_number(method, even):
    draw = torch.Generator().manual_seed(0)
    causes = torch.randn(128, 8, generator=draw)
    student, teacher = (causes @ torch.randn(8, d, generator=draw) for d in (96, 256))
    costs = neuron_cost(student, teacher)
    a = torch.full((96,), 1 / 96) if even else torch.softmax(4 * torch.randn(96, generator=draw), 0)
    plan = solve(costs, a, method=method).plan
    exact = solve(costs.double(), a.double(), method=method, tolerance=1e-3).plan
    smallest = plan[plan > 0].min()
    assert float(smallest) >= 2**-60 * float(a.min())
    assert float(exact[exact > 0].min()) < 2**-60 * float(a.min())  # there was something to leave out
    torch.testing.assert_close(plan.sum(-1), a, rtol=1e-5, atol=0)
    # with factors of a gradient, 1 / samples and 1 / deviations, it is still a normal number
    assert float(smallest) * 1e-6 > torch.finfo(plan.dtype).tiny
