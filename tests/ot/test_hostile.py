"""Whatever it is given, `solve` gives a finite, right answer or says that it did not: never NaN that is "converged".

HF_REPROT_HOSTILE_CASES=10000 sets how many cases are drawn.
"""

import os

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hf_reprot.ot import METHODS, neuron_cost, solve

CASES = int(os.environ.get("HF_REPROT_HOSTILE_CASES", "150"))
hostile = settings(
    max_examples=CASES, deadline=None, derandomize=CASES <= 150, suppress_health_check=list(HealthCheck), database=None
)
DTYPES = st.sampled_from([torch.float32, torch.float32, torch.float64, torch.bfloat16, torch.float16])
SIZES = st.integers(1, 20)
SEEDS = st.integers(0, 2**20)
TOLERANCE = 1e-3

pytestmark = pytest.mark.timeout(300 + CASES // 5)


@st.composite
def layouts(draw):
    """A function that gives the same values other strides."""
    kind = draw(st.sampled_from(["plain", "transposed", "sliced", "reversed batch"]))

    def relaid(x: torch.Tensor) -> torch.Tensor:
        if kind == "transposed":
            return x.transpose(-1, -2).contiguous().transpose(-1, -2)
        if kind == "sliced":
            return torch.stack([x, x + 1], -1)[..., 0]
        if kind == "reversed batch" and x.ndim == 3:
            return x.transpose(0, 1).contiguous().transpose(0, 1)
        return x

    return relaid


@st.composite
def costs(draw):
    m, n = draw(SIZES), draw(SIZES)
    batch = draw(st.sampled_from([(), (), (1,), (3,)]))
    generator = torch.Generator().manual_seed(draw(SEEDS))
    M = torch.rand(*batch, m, n, generator=generator, dtype=torch.float64)
    if draw(st.booleans()):  # a few matches that are far better than the others
        M = M ** draw(st.sampled_from([0.0, 8.0, 60.0]))
    if draw(st.booleans()):  # loud neurons
        M = M * torch.exp(3 * torch.randn(m, 1, generator=generator, dtype=torch.float64))
    if draw(st.booleans()):  # duplicates
        M = M[..., torch.randint(m, (m,), generator=generator), :][..., torch.randint(n, (n,), generator=generator)]
    M = M * 10.0 ** draw(st.sampled_from([0, 0, 0, -20, -8, 8, 20])) + draw(st.sampled_from([0.0, 0.0, 0.0, 1e6, -1e6]))
    flaw = draw(st.sampled_from(["none"] * 6 + ["nan", "inf", "inf row", "-inf", "all equal"]))
    if flaw == "all equal":
        M = torch.zeros_like(M) + M[..., :1, :1]
    elif flaw == "inf row":
        M[..., 0, :] = torch.inf
    elif flaw != "none":
        M[..., draw(st.integers(0, m - 1)), draw(st.integers(0, n - 1))] = float(flaw)
    M = draw(layouts())(M.to(draw(DTYPES)))
    if len(batch) and draw(st.booleans()):
        M = M[:1].expand(4, m, n)
    return M


@st.composite
def marginals(draw, size):
    kind = draw(st.sampled_from(["none", "none", "uneven", "zeros", "all but one zero", "tiny"]))
    if kind == "none":
        return None
    weights = torch.rand(size, generator=torch.Generator().manual_seed(draw(SEEDS)), dtype=torch.float64) + 1e-3
    if kind == "zeros":
        weights[::2] = 0
        weights[-1] = 1
    elif kind == "all but one zero":
        weights[1:] = 0
    elif kind == "tiny":
        weights[0] = 1e-20
        weights[-1] = 1
    return (weights / weights.sum()).to(draw(st.sampled_from([torch.float32, torch.float64])))


def _kl(plan: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    base = a[..., :, None] * b[..., None, :]
    return torch.where(plan > 0, plan * (plan / base).log(), 0.0).sum((-2, -1))


def _check(M, a, b, result, method, limit):
    batch, (m, n) = M.shape[:-2], M.shape[-2:]
    wide = M.detach().double()
    a = torch.full((m,), 1 / m).double() if a is None else a.double()
    b = torch.full((n,), 1 / n).double() if b is None else b.double()
    assert result.value.shape == batch
    assert result.plan.shape == M.shape
    good = result.converged
    plan = result.plan.double()
    assert not good[torch.isnan(wide).any(-1).any(-1)].any()
    assert torch.isfinite(result.plan[good]).all()
    assert (result.plan[good] >= 0).all()
    assert torch.isfinite(result.marginal_error[good]).all()
    allowed = torch.where(plan > 0, wide, 0.0)
    finite = torch.isfinite(allowed).all(-1).all(-1)
    good = good & finite  # where all must be forbidden, infinity is the answer
    assert torch.isfinite(result.value[good]).all()
    assert torch.isfinite(result.cost[good]).all()
    assert ((plan.sum(-1) - a).abs().sum(-1)[good] <= 1e-4).all()
    assert ((plan.sum(-2) - b).abs().sum(-1)[good] <= 1.1 * TOLERANCE + 1e-5).all()
    assert (result.iterations <= limit).all()
    size = torch.where(torch.isfinite(wide), wide, 0.0).abs().amax((-2, -1))
    rounding = 1e-5 * size
    assert ((result.cost.double() - (plan * allowed).sum((-2, -1))).abs() <= rounding)[good].all()

    clean = good & torch.isfinite(wide).all(-1).all(-1)
    if method == "sinkhorn" and clean.any():
        best = solve(torch.where(clean[..., None, None], wide, 0.0), a, b, method="exact")
        assert best.converged.all()
        span = wide.amax((-2, -1)) - wide.amin((-2, -1))
        # float32's digits are those of the largest of the costs and epsilon
        slack = 2 * TOLERANCE * span + rounding + 1e-6 * result.epsilon.double()
        assert (result.value.double() >= best.value - slack)[clean].all()
        most = best.value + result.epsilon.double() * _kl(best.plan, a.expand(*batch, m), b.expand(*batch, n))
        assert (result.value.double() <= most + slack)[clean].all()
        assert (result.cost.double() >= best.cost - slack)[clean].all()


@hostile
@given(data=st.data(), M=costs(), method=st.sampled_from(METHODS))
def test_solve(data, M, method):
    a, b = data.draw(marginals(M.shape[-2])), data.draw(marginals(M.shape[-1]))
    if method == "identity" and M.shape[-1] != M.shape[-2]:
        method = "independent"
    limit = data.draw(st.sampled_from([1, 30, 300]))
    epsilon = data.draw(st.sampled_from([{}, {}, {"relative_epsilon": 1e-4}, {"relative_epsilon": 10.0}]))
    if data.draw(st.integers(0, 9)) == 0:
        epsilon = {"epsilon": data.draw(st.sampled_from([1e-30, 1e-6, 1e30]))}
    M = M.detach().requires_grad_()
    result = solve(M, a, b, method=method, max_iterations=limit, tolerance=TOLERANCE, **epsilon)
    _check(M, a, b, result, method, limit)
    result.value.sum().backward()
    assert M.grad.shape == M.shape


@st.composite
def activations(draw, samples):
    neurons = draw(SIZES)
    x = torch.randn(samples, neurons, generator=torch.Generator().manual_seed(draw(SEEDS)), dtype=torch.float64)
    x = x * 10.0 ** draw(st.sampled_from([0, 0, -20, -4, 4, 20])) + draw(st.sampled_from([0.0, 0.0, 1e6, -1e6]))
    if draw(st.booleans()):
        x[:, 0] = 3.0
    if draw(st.booleans()):
        x[:, -1] = x[:, 0]
    return draw(layouts())(x.to(draw(DTYPES)))


@hostile
@given(data=st.data(), samples=st.integers(1, 40), standardize=st.booleans())
def test_from_activations(data, samples, standardize):
    student, teacher = data.draw(activations(samples)), data.draw(activations(samples))
    student = student.detach().requires_grad_()
    M = neuron_cost(student, teacher, standardize=standardize)
    result = solve(M)
    assert M.shape == (student.shape[1], teacher.shape[1])
    if result.converged:
        assert torch.isfinite(result.value)
        assert result.value >= -1e-5 * M.abs().max() - 1e-30
        assert (result.plan >= 0).all()
        result.value.backward()
        if student.dtype != torch.float16:  # whose range ends at 65504
            assert torch.isfinite(student.grad).all()
    if standardize and torch.isfinite(M).all():
        assert (M <= 4.01).all()
