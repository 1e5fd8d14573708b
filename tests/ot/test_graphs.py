"""Recorded chunks of sweeps: what is launched writes into its own memory only, and can be replayed for other problems.

On a CPU, a recorder of torch's operations plays the CUDA graph: it keeps the operations with the very tensors that they
were given, and runs them again on the same memory, whatever has been written there since.
"""

import threading

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hf_reprot.ot import graphs, solve
from hf_reprot.ot.budget import Work
from hf_reprot.ot.graphs import GraphSolver
from hf_reprot.ot.kernel import starting_potentials
from hf_reprot.ot.sinkhorn_device import CHUNK, Chunks, sinkhorn_device
from hf_reprot.ot.solution import Limits
from tests.ot.problems import cost_matrix, weights

LIMITS = Limits(1e-5, 400)


class _Recorder(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        assert "_local_scalar_dense" not in function.name(), "a graph cannot read"
        self.calls.append((function, args, kwargs or {}, [x for x in tree_leaves(out) if isinstance(x, torch.Tensor)]))
        return out

    def replay(self):
        for function, args, kwargs, outputs in self.calls:
            again = [x for x in tree_leaves(function(*args, **kwargs)) if isinstance(x, torch.Tensor)]
            for old, new in zip(outputs, again, strict=True):
                if old.data_ptr() != new.data_ptr():  # else a view, or written in place
                    old.copy_(new)


def _record(launch, warm_up):
    warm_up()
    with _Recorder() as recorder:
        launch()
    return recorder.replay


def _problem(seed=0, batch=2, m=20, n=33, epsilon=0.05):
    M = cost_matrix(m, n, batch=batch, seed=seed)
    a, b = weights(m, seed).expand(batch, m).contiguous(), weights(n, seed + 4).expand(batch, n).contiguous()
    return M, a, b, torch.full((batch,), epsilon).double() * torch.arange(1, batch + 1)


def _equal(found, expected):
    for name in ("plan", "f", "g", "error", "iterations", "converged"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name


@pytest.fixture(autouse=True)
def _every_call_asks(monkeypatch):
    """So that how many sweeps are launched does not depend on earlier calls."""
    monkeypatch.setattr("hf_reprot.ot.sinkhorn_device._budget.plan", lambda *key: Work(None, None))


@pytest.mark.parametrize("accelerate", [True, False])
def test_replays_for_other_problems_are_the_loop_itself(accelerate):
    limits = Limits(1e-5, 400, accelerate)
    solver = GraphSolver(_record)
    starts = [
        None,
        None,
        0.1 * torch.randn(2, 33, dtype=torch.float64, generator=torch.Generator().manual_seed(0)),
        None,
    ]
    kept = []
    for seed, g in enumerate(starts):
        problem = _problem(seed, epsilon=0.02 * (seed + 1))
        copies = [x.clone() for x in problem]
        found = solver.solve(*problem, limits, g)
        expected = sinkhorn_device(*problem, limits, g)
        _equal(found, expected)
        kept.append((found, expected))
        for ours, before in zip(problem, copies, strict=True):
            assert torch.equal(ours, before)
    assert len(solver) == 1
    for found, expected in kept:  # later calls wrote over nothing that was handed out
        _equal(found, expected)


def test_a_chunk_stays_in_its_memory():
    M, a, b, epsilon = _problem()
    chunks = Chunks(M, a, b, epsilon, *starting_potentials(M, None), LIMITS)

    def memory():
        held = {**vars(chunks), **vars(chunks.sweeps)}
        return {name: x.data_ptr() for name, x in held.items() if isinstance(x, torch.Tensor)}

    before = memory()
    chunks.run(CHUNK, True)
    for _ in range(3):
        chunks.run(CHUNK, False)
    assert memory() == before
    chunks.restart(*_problem(3), *starting_potentials(_problem(3)[0], None))
    assert memory() == before


def test_a_limit_that_is_no_multiple_of_a_chunk():
    problem, limits = _problem(), Limits(1e-12, 2 * CHUNK + 3)
    found = GraphSolver(_record).solve(*problem, limits)
    assert found.iterations.tolist() == [2 * CHUNK + 3] * 2
    _equal(found, sinkhorn_device(*problem, limits))


def test_where_recording_fails_the_loop_goes_on(recwarn):
    def fails(launch, warm_up):
        raise RuntimeError("operation not permitted when stream is capturing")

    solver, problem = GraphSolver(fails), _problem()
    with pytest.warns(UserWarning, match="no CUDA graph.*not permitted"):
        found = solver.solve(*problem, LIMITS)
    _equal(found, sinkhorn_device(*problem, LIMITS))
    again = solver.solve(*problem, LIMITS)  # not tried again, no second warning
    _equal(again, found)
    assert not recwarn.list


def test_while_the_caller_records_nothing_is_recorded(monkeypatch):
    monkeypatch.setattr(graphs, "_recording", lambda matrix: True)
    solver = GraphSolver(_record)
    _equal(solver.solve(*_problem(), LIMITS), sinkhorn_device(*_problem(), LIMITS))
    assert len(solver) == 0


def test_the_memory_that_is_kept_is_bounded():
    recorded = []
    solver = GraphSolver(lambda *call: (recorded.append(1), _record(*call))[1], kept=2)
    for m in (4, 5, 4, 6, 4, 5):  # 5 was dropped for 6, since 4 was used again
        solver.solve(*_problem(m=m, n=7), LIMITS)
    assert len(solver) == 2
    assert len(recorded) == 2 * 4  # two graphs each of 4, 5, 6, 5


def test_threads_do_not_mix():
    solver, problems = GraphSolver(_record), [_problem(seed) for seed in range(4)]
    expected = [sinkhorn_device(*problem, LIMITS) for problem in problems]
    found = [None] * 4

    def work(i):
        for _ in range(3):
            found[i] = solver.solve(*problems[i], LIMITS)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for ours, theirs in zip(found, expected, strict=True):
        _equal(ours, theirs)


def test_what_a_graph_needs():
    with pytest.raises(ValueError, match=r"backend='graph' runs method='sinkhorn' only, got 'proximal'"):
        solve(torch.rand(3, 3), method="proximal", backend="graph")
    with pytest.raises(ValueError, match=r"backend='graph' needs a CUDA device, got a tensor on cpu"):
        solve(torch.rand(3, 3), backend="graph")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cuda_graphs(dtype):
    for seed in range(4):
        M = _problem(seed)[0].to("cuda", dtype).requires_grad_()
        found, expected = (solve(M, backend=backend) for backend in ("graph", "torch"))
        assert torch.allclose(found.plan, expected.plan, rtol=1e-4, atol=1e-8)
        assert torch.allclose(found.value, expected.value, rtol=1e-5)
        (gradient,) = torch.autograd.grad(found.value.sum(), M)
        assert torch.equal(gradient, found.plan)
        assert found.converged.all()
