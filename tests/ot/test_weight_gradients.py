"""The gradient of the value in the weights is the potentials: by finite differences."""

import pytest
import torch

from hf_reprot.losses import RepresentationTransport
from hf_reprot.ot import METHODS, solve
from tests.ot.problems import cost_matrix, layer, weights

SETTINGS = {
    "sinkhorn": {"method": "sinkhorn", "epsilon": 0.05, "tolerance": 1e-12, "max_iterations": 50_000},
    "exact": {"method": "exact"},
}


def _slopes(function, x: torch.Tensor, step: float = 1e-5) -> torch.Tensor:
    """Of weight 0 the one-sided ones."""
    found = torch.empty_like(x)
    for i, unit in enumerate(torch.eye(len(x), dtype=x.dtype)):
        low = 0.0 if x[i] < step else step
        found[i] = (function(x + step * unit) - function(x - low * unit)) / (step + low)
    return found


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("method", SETTINGS)
def test_in_the_weights(method, zeros):
    M, a, b = cost_matrix(9, 7), weights(9), weights(7, 3)
    if zeros:
        a[2] = b[4] = 0
        a, b = a / a.sum(), b / b.sum()

    def value(a, b):
        return solve(M, a / a.sum(), b / b.sum(), **SETTINGS[method]).value

    a, b = a.requires_grad_(), b.requires_grad_()
    solve(M, a, b, **SETTINGS[method]).value.backward()
    with torch.no_grad():
        assert torch.allclose(a.grad, _slopes(lambda x: value(x, b), a), atol=3e-5)
        assert torch.allclose(b.grad, _slopes(lambda x: value(a, x), b), atol=3e-5)


def test_potentials_up_to_a_constant():
    M, a = cost_matrix(6, 8), weights(6).requires_grad_()
    result = solve(M, a, **SETTINGS["sinkhorn"])
    result.value.backward()
    assert torch.allclose(a.grad, result.potentials[0] - (result.potentials[0] * a).sum(), atol=1e-9)
    assert (a.grad * a).sum().abs() < 1e-12


def test_shared_and_broadcast_weights():
    """One b for both sides and for a batch of problems: what a Sinkhorn divergence of selected neurons needs."""
    M, b = cost_matrix(7, 7, batch=3), weights(7).requires_grad_()

    def value(b):
        b = b / b.sum()
        return (solve(M, b, b, **SETTINGS["sinkhorn"]).value * torch.tensor([1.0, 0.5, -2.0])).sum()

    value(b).backward()
    with torch.no_grad():
        assert torch.allclose(b.grad, _slopes(value, b), atol=1e-5)


def test_a_forbidden_neuron_of_weight_0_has_no_gradient():
    M, b = cost_matrix(4, 5), weights(5)
    M[:, 2], b[2] = torch.inf, 0
    b = (b / b.sum()).requires_grad_()
    solve(M, None, b).value.backward()
    assert torch.isfinite(b.grad).all()
    assert b.grad[2] == 0


def test_only_the_weights_are_differentiated():
    a = weights(4).float().requires_grad_()
    result = solve(cost_matrix(4, 5), a)
    result.value.backward()
    assert a.grad.dtype == torch.float32
    with torch.no_grad():
        assert not solve(cost_matrix(4, 5), a).value.requires_grad


@pytest.mark.parametrize("method", [m for m in METHODS if m not in SETTINGS])
def test_refused_where_there_is_none(method):
    a = weights(5).requires_grad_()
    with pytest.raises(ValueError, match="no gradient in the weights"):
        solve(cost_matrix(5, 5), a, method=method)
    solve(cost_matrix(5, 5), a.detach(), method=method)


@pytest.mark.parametrize("debiased", [False, True])
def test_through_the_loss(debiased):
    student, teacher = layer(60, 5), layer(60, 8, mixing=2)
    teacher[:, 3] = 2.0
    loss = RepresentationTransport(epsilon=0.05, tolerance=1e-11, max_iterations=50_000, debiased=debiased)

    def value(b):
        return loss(student, teacher, teacher_weights=b).loss

    b = weights(8).requires_grad_()
    value(b).backward()
    with torch.no_grad():
        assert torch.allclose(b.grad, _slopes(value, b), atol=1e-5)
    assert b.grad[3] == 0
    plan = loss(student, teacher, teacher_weights=b).plan
    alive = b.detach().index_fill(0, torch.tensor(3), 0.0)
    assert torch.allclose(plan.sum(0), alive / alive.sum(), atol=1e-9)


def test_what_does_not_fit_the_loss():
    student, teacher, b = layer(20, 3), layer(20, 4), weights(4)
    with pytest.raises(ValueError, match="either a plan or teacher_weights"):
        RepresentationTransport()(student, teacher, plan=torch.ones(3, 4) / 12, teacher_weights=b)
    with pytest.raises(ValueError, match=r"shape \(4,\)"):
        RepresentationTransport()(student, teacher, teacher_weights=b[:3])


def test_weights_that_all_lie_on_dead_neurons():
    student, teacher = layer(20, 3), layer(20, 4)
    teacher[:, 0] = 1.0
    out = RepresentationTransport()(student, teacher, teacher_weights=torch.tensor([1.0, 0, 0, 0]))
    assert torch.allclose(out.plan.sum(0), torch.tensor([0, 1, 1, 1], dtype=torch.float64) / 3, atol=1e-3)
