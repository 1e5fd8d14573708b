"""Transport maps: closed forms, known answers, and what is refused."""

from __future__ import annotations

import json
import math

import ot as pot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from scipy.linalg import sqrtm
from sklearn.covariance import OAS

from hf_reprot.experimental.maps import (
    METHODS,
    TransportMap,
    barycentric_map,
    gaussian_map,
    sinkhorn_divergence,
)
from hf_reprot.experimental.maps.divergence import half_squares, halves_divergence
from hf_reprot.experimental.maps.entropic import Entropic
from hf_reprot.experimental.maps.gaussian import Linear, shrunk_covariance
from hf_reprot.ot import solve

QUICK = {"steps": 6, "batch_size": 16, "width": 8}


def points(*shapes: tuple[int, ...], seed: int = 0, dtype=torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def covariances(d: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    P, Q = points((d, 2 * d), (d, 2 * d), seed=seed, dtype=torch.float64)
    return P @ P.T / d, Q @ Q.T / d


def four(scale: float, degrees: float, n: int, seed: int) -> torch.Tensor:
    angles = math.radians(degrees) + torch.arange(n) % 4 * math.pi / 2
    (noise,) = points((n, 2), seed=seed)
    return scale * torch.stack([angles.cos(), angles.sin()], 1) + 0.1 * noise


# ---- barycentric map ----


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 5), st.integers(1, 6), st.integers(1, 3), st.integers(0, 100))
def test_each_row_gets_the_mean_of_its_matches(m, n, d, seed):
    generator = torch.Generator().manual_seed(seed)
    plan, y = torch.rand(2, m, n, generator=generator), torch.randn(2, n, d, generator=generator)
    plan[0, 0] = 0
    found = barycentric_map(plan, y)
    for k in range(2):
        everything = sum(plan[k, i, j] * y[k, j] for i in range(m) for j in range(n))
        for i in range(m):
            mass = float(plan[k, i].sum())
            mean = sum(plan[k, i, j] * y[k, j] for j in range(n))
            if mass > 0:
                expected = mean / mass
            elif float(plan[k].sum()) > 0:
                expected = everything / plan[k].sum()
            else:
                expected = y[k].mean(0)
            torch.testing.assert_close(found[k, i], expected, rtol=1e-4, atol=1e-4)


def test_a_permutation_is_applied():
    (y,) = points((5, 2))
    order = torch.tensor([3, 0, 4, 1, 2])
    plan = torch.eye(5)[order] / 5
    torch.testing.assert_close(barycentric_map(plan, y), y[order])
    assert barycentric_map(plan.half(), y.half()).dtype == torch.float32


def test_barycentric_gradients_with_an_empty_row():
    plan, y = torch.rand(3, 4, dtype=torch.float64), torch.randn(4, 2, dtype=torch.float64)
    plan[1] = 0
    y.requires_grad_()
    assert torch.autograd.gradcheck(lambda y: barycentric_map(plan, y), y)
    plan.requires_grad_()
    barycentric_map(plan, y).sum().backward()
    assert torch.isfinite(plan.grad).all()


# ---- divergences ----


def test_the_divergence_is_that_of_pot():
    x, y = points((30, 3), (40, 3), dtype=torch.float64)
    y = y + 0.7
    epsilon = 0.5
    uniform = [torch.full((len(z),), 1 / len(z), dtype=torch.float64) for z in (x, y)]

    def value(k, l):
        z, w, cost = (x, y)[k], (x, y)[l], torch.cdist((x, y)[k], (x, y)[l]).square() / 2
        plan = pot.sinkhorn(uniform[k], uniform[l], cost, epsilon, stopThr=1e-12, numItermax=5000)
        product = uniform[k][:, None] * uniform[l]
        return (plan * cost).sum() + epsilon * (plan * (plan / product).log()).sum(), z, w

    expected = value(0, 1)[0] - (value(0, 0)[0] + value(1, 1)[0]) / 2
    assert sinkhorn_divergence(x, y, epsilon=epsilon).item() == pytest.approx(expected.item(), rel=2e-2)
    assert sinkhorn_divergence(x, x.flip(0)).item() == pytest.approx(0, abs=1e-4)


def test_halves_do_not_favour_a_map_that_shrinks():
    """In 32 dimensions the usual divergence of two samples of one law prefers the one that was pulled to its mean."""
    x, y = points((200, 32), (200, 32), seed=3)
    epsilon = 0.05 * half_squares(y, y).mean()
    assert sinkhorn_divergence(0.8 * x, y, epsilon=epsilon) < sinkhorn_divergence(x, y, epsilon=epsilon) - 0.3
    assert halves_divergence(0.8 * x, y, epsilon) > halves_divergence(x, y, epsilon) + 0.1
    assert abs(halves_divergence(x, y, epsilon)) < 0.3


# ---- the Gaussian map ----


@pytest.mark.parametrize("d", [1, 3, 8])
def test_the_gaussian_map_is_the_closed_form(d):
    S1, S2 = covariances(d, seed=d)
    A = gaussian_map(S1, S2)
    torch.testing.assert_close(A @ S1 @ A, S2, rtol=1e-8, atol=1e-8)
    assert (torch.linalg.eigvalsh(A) > 0).all()
    # scipy's matrix roots, in the other order: A = S2^1/2 (S2^1/2 S1 S2^1/2)^-1/2 S2^1/2
    r = sqrtm(S2.numpy()).real
    other = (
        torch.from_numpy(r) @ torch.linalg.inv(torch.from_numpy(sqrtm(r @ S1.numpy() @ r).real)) @ torch.from_numpy(r)
    )
    torch.testing.assert_close(A, other, rtol=1e-6, atol=1e-6)


def test_directions_without_variance_go_to_zero():
    A = gaussian_map(torch.diag(torch.tensor([1.0, 0.0])), torch.eye(2))
    torch.testing.assert_close(A, torch.diag(torch.tensor([1.0, 0.0])).double())


def test_shrinkage_is_that_of_scikit_learn():
    (x,) = points((20, 12))
    expected = OAS().fit(x.numpy()).covariance_
    torch.testing.assert_close(shrunk_covariance(x), torch.from_numpy(expected).double(), rtol=1e-4, atol=1e-5)
    none = torch.cov(x.double().T, correction=0)
    torch.testing.assert_close(shrunk_covariance(x, 0.0), none)
    assert (torch.linalg.eigvalsh(shrunk_covariance(x[:3])) > 0).all()


# ---- the entropic map ----


def test_the_entropic_map_is_barycentric_on_its_samples():
    x, y = points((30, 2), (40, 2), seed=2)
    y = y * 2
    found = Entropic.between(Linear(torch.eye(2)), x, y, 0.2, debiased=False)
    cost = torch.cdist(x, y).square() / 2
    plan = solve(cost, epsilon=0.2 * cost.mean(), tolerance=1e-5).plan
    torch.testing.assert_close(found(x), barycentric_map(plan, y), rtol=1e-2, atol=2e-2)


def test_debiasing_leaves_the_start_at_a_large_epsilon():
    x, y = points((60, 3), (60, 3))
    x, y = x - x.mean(0), y - y.mean(0)
    start = Linear(torch.diag(torch.tensor([2.0, 1.0, 0.5])))
    plain, debiased = (Entropic.between(start, x, y, 1e3, debiased)(x) for debiased in (False, True))
    assert plain.abs().max() < 0.1
    torch.testing.assert_close(debiased, start(x), rtol=0, atol=0.05)


# ---- the whole ----


@pytest.mark.parametrize(("d", "bar"), [(2, 2.0), (8, 5.0), (32, 10.0)])
def test_gaussian_to_gaussian(d, bar):
    S1, S2 = covariances(d, seed=d)
    x, y, new = points((1000, d), (1000, d), (500, d), seed=d, dtype=torch.float64)
    L1, L2 = torch.linalg.cholesky(S1), torch.linalg.cholesky(S2)
    truth = 3 + new @ L1.T @ gaussian_map(S1, S2)
    found = TransportMap(d).fit(x @ L1.T - 1, y @ L2.T + 3).transform(new @ L1.T - 1)
    assert found.dtype == torch.float64
    assert 100 * (found - truth).square().sum(1).mean() / S2.trace() < bar


def test_four_gaussians_against_the_exact_map():
    x, y = four(2.0, 0.0, 400, seed=0), four(2.0, 30.0, 400, seed=1)
    best = barycentric_map(solve(torch.cdist(x, y).square(), method="exact").plan, y)

    def error(**settings):
        found = TransportMap(2, **settings).fit(x, y).transform(x)
        return ((found - best).norm(dim=1).mean() / (best - x).norm(dim=1).mean()).item()

    assert error(relative_epsilon=0.03) < 0.1
    assert error(method="gaussian") > 0.9


def test_a_network_learns():
    x, y = four(2.0, 0.0, 400, seed=0), four(2.0, 30.0, 400, seed=1)
    fitted = TransportMap(2, "w2gan", steps=50, width=32, batch_size=64, learning_rate=5e-3, patience=9).fit(x, y)
    report = fitted.report
    assert report.divergence < 0.7 * report.divergence_start
    assert report.history[0] == (0, report.divergence_start)
    assert report.steps == 50


def test_training_stops_where_nothing_is_gained_and_keeps_the_start():
    x, y = points((300, 3), (300, 3))
    stopped = TransportMap(3, "w2gan", steps=500, patience=1, learning_rate=0.3, batch_size=32, width=8).fit(x, y)
    assert stopped.report.steps < 500
    assert stopped.report.divergence == min(figure for _, figure in stopped.report.history)
    assert stopped.report.divergence <= stopped.report.divergence_start


@pytest.mark.parametrize("method", METHODS)
def test_saved_and_loaded(tmp_path, method):
    x, y = points((60, 3), (70, 3), seed=5)
    y = 2 * y.sign() + 0.1 * y + 1
    fitted = TransportMap(3, method, **QUICK).fit(x, y)
    fitted.save(tmp_path / "map.safetensors")
    loaded = TransportMap.load(tmp_path / "map.safetensors")
    assert torch.equal(loaded.transform(x), fitted.transform(x))
    assert loaded.settings == fitted.settings
    again = TransportMap(3, method, **QUICK).fit(x, y)
    assert torch.equal(again.transform(x), fitted.transform(x))


def rewritten(path, **changes) -> None:
    """The file with other settings in its header, as version 0.1 wrote them."""
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    header["settings"] = json.dumps(json.loads(header["settings"]) | changes)
    save_file(tensors, path, metadata=header)


def test_a_file_of_version_0_1_loads_or_is_refused_by_its_method(tmp_path):
    x, y = points((40, 2), (50, 2))
    fitted = TransportMap(2, "gaussian").fit(x, y)
    fitted.save(tmp_path / "map.safetensors")
    rewritten(tmp_path / "map.safetensors", gap_weight=1.0)
    assert torch.equal(TransportMap.load(tmp_path / "map.safetensors").transform(x), fitted.transform(x))
    rewritten(tmp_path / "map.safetensors", method="monge_gap")
    with pytest.raises(ValueError, match="method='monge_gap', which this version no longer has"):
        TransportMap.load(tmp_path / "map.safetensors")


def test_an_entropic_map_without_debiasing_is_saved(tmp_path):
    x, y = points((40, 2), (50, 2))
    fitted = TransportMap(2, relative_epsilon=0.1, debiased=False).fit(x, y)
    fitted.save(tmp_path / "map.safetensors")
    assert torch.equal(TransportMap.load(tmp_path / "map.safetensors").transform(x), fitted.transform(x))


def test_calling_is_differentiable_and_transform_is_not():
    x, y = points((50, 2), (50, 2))
    fitted = TransportMap(2, relative_epsilon=0.1).fit(x, y)
    new = x.double()[:4].requires_grad_()
    assert not fitted.transform(new).requires_grad
    step, eps = torch.zeros(4, 2, dtype=torch.float64), 1e-2
    step[0, 0] = eps
    slope = (fitted(new + step) - fitted(new - step))[0, 0].item() / (2 * eps)
    (gradient,) = torch.autograd.grad(fitted(new)[0, 0], new)
    assert gradient[0, 0].item() == pytest.approx(slope, rel=0.05, abs=1e-2)
    assert all(not p.requires_grad for p in fitted.parameters())


def test_a_set_that_does_not_vary_goes_to_the_mean():
    (y,) = points((30, 2))
    moved = TransportMap(2, "gaussian").fit(torch.ones(30, 2), y).transform(torch.ones(1, 2))
    torch.testing.assert_close(moved[0], y.mean(0))


def bad(value: float) -> torch.Tensor:
    x = torch.rand(30, 3)
    x[4, 1] = value
    return x


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: TransportMap(3, "entropc"), "Did you mean 'entropic'"),
        (lambda: TransportMap(3, start="zero"), "'gaussian', 'identity'"),
        (lambda: TransportMap(0), "dim must be an integer of at least 1, got 0"),
        (lambda: TransportMap(3, steps=0), "steps must be an integer of at least 1, got 0"),
        (lambda: TransportMap(3, relative_epsilon=-1.0), "relative_epsilon must be a finite number above 0, got -1.0"),
        (lambda: TransportMap(3, shrinkage=2.0), "shrinkage must be from 0 to 1, got 2.0"),
        (lambda: TransportMap(3).fit(torch.rand(30, 3), torch.rand(30, 4)), r"y must have shape \(n, 3\).*\(30, 4\)"),
        (lambda: TransportMap(3).fit(torch.rand(5, 3), torch.rand(30, 3)), "x has 5 samples.*needs 20"),
        (lambda: TransportMap(3).fit(torch.rand(30, 3), bad(math.nan)), "y has values that are not finite, in 1 of"),
        (lambda: TransportMap(3).fit(bad(math.inf), torch.rand(30, 3)), "x has values that are not finite, in 1 of"),
        (lambda: barycentric_map(torch.rand(3, 4), torch.rand(3, 2)), "plan has 4 columns and y 3 points"),
        (lambda: barycentric_map(torch.rand(3), torch.rand(3, 2)), "plan must have two dimensions"),
        (lambda: gaussian_map(torch.eye(2), torch.eye(3)), "covariances must both be"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_bad_types_and_files(tmp_path):
    with pytest.raises(TypeError, match="int64"):
        TransportMap(2).fit(torch.ones(30, 2).long(), torch.rand(30, 2))
    with pytest.raises(TypeError, match="int64"):
        barycentric_map(torch.ones(2, 2).long(), torch.rand(2, 2))
    with pytest.raises(RuntimeError, match="call fit"):
        TransportMap(2).transform(torch.rand(3, 2))
    with pytest.raises(RuntimeError, match="nothing to save"):
        TransportMap(2).save(tmp_path / "map.safetensors")
    save_file({"a": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="does not hold a transport map"):
        TransportMap.load(tmp_path / "other.safetensors")
