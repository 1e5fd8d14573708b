"""On an accelerator nothing waits for the device once a shape is known: shown with a CPU that plays one."""

import importlib

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hf_reprot.ot import solve
from tests.ot.problems import cost_matrix

_READS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::masked_select"}


class _NoReads(TorchDispatchMode):
    """Raises where the host would wait for a value."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function.name().split(".")[0] not in _READS, function
        return function(*args, **(kwargs or {}))


@pytest.fixture
def accelerator(monkeypatch):
    for module in ("solve", "solvers.kernel", "solvers.proximal", "solvers.units"):
        monkeypatch.setattr(importlib.import_module(f"hf_reprot.ot.{module}"), "on_host", lambda tensor: False)


@pytest.mark.parametrize("method", ["sinkhorn", "proximal", "random", "independent"])
def test_no_read_after_the_first_calls_of_a_shape(method, accelerator):
    M = cost_matrix(19, 27, batch=3).float().requires_grad_()
    first = [solve(M, method=method) for _ in range(3)][-1]
    with _NoReads():
        again = solve(M, method=method)
        again.value.sum().backward()
    assert torch.allclose(again.plan, first.plan, rtol=1e-4, atol=1e-8)
    expected = solve(M.detach(), method=method)
    assert torch.allclose(again.value, expected.value, rtol=1e-4)


def test_the_guard_sees_reads():
    with pytest.raises(AssertionError), _NoReads():
        bool(torch.ones(()) > 0)


def test_a_useless_start_and_a_nan_need_no_read(accelerator):
    M = cost_matrix(19, 27, batch=2).float()
    M[0, 3, 4] = torch.nan
    start = torch.full((2, 27), torch.nan)
    for _ in range(3):
        result = solve(M, init=start, max_iterations=200)
    with _NoReads():
        result = solve(M, init=start, max_iterations=200)
    assert result.converged.tolist() == [False, True]
