"""Pairs of different shapes in one padded call: each is as if it were alone."""

import pytest
import torch

from hf_reprot.losses import RepresentationTransport
from hf_reprot.ot import solve
from hf_reprot.ot.result import Limits
from hf_reprot.ot.solvers import padding as together
from hf_reprot.ot.solvers.sinkhorn_device import sinkhorn_device
from tests.ot.problems import cost_matrix, layer, weights

SHAPES = [(64, 512), (96, 64), (130, 257), (96, 64), (300, 512)]


def _together(matrices, a=None, b=None, **settings):
    """As `RepresentationTransport` does it, all in one call."""
    none = [None] * len(matrices)
    a = together.stack_weights(a or none, [len(M) for M in matrices], matrices[0])
    b = together.stack_weights(b or none, [M.shape[1] for M in matrices], matrices[0])
    result = solve(together.stack_padded(matrices), a, b, **settings)
    return [together.without_padding(result, i, *M.shape) for i, M in enumerate(matrices)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("method", ["sinkhorn", "proximal"])
def test_values_plans_and_gradients_are_those_of_calls_of_their_own(method, dtype):
    shapes = SHAPES if method == "sinkhorn" else SHAPES[1:3]
    matrices = [cost_matrix(m, n, seed=i).to(dtype).requires_grad_() for i, (m, n) in enumerate(shapes)]
    # a fixed number of steps: rounding must not decide who stops first
    settings = {"method": method, "tolerance": 1e-12, "max_iterations": 48}
    padded = _together(matrices, **settings)
    for M, found in zip(matrices, padded, strict=True):
        alone = solve(M, **settings)
        tight = 1e-12 if dtype == torch.float64 else 1e-6
        assert found.plan.shape == M.shape
        assert found.value.item() == pytest.approx(alone.value.item(), rel=tight)
        assert found.epsilon.item() == pytest.approx(alone.epsilon.item(), rel=1e-6)
        assert (found.plan - alone.plan).abs().max() <= 10 * tight * alone.plan.max()
        for ours, theirs in zip(found.potentials, alone.potentials, strict=True):
            assert torch.allclose(ours, theirs, atol=10 * tight)
        (gradient,) = torch.autograd.grad(found.value, M, retain_graph=True)
        assert torch.equal(gradient, found.plan)


def test_weights_are_padded_with_zeros():
    matrices = [cost_matrix(5, 9), cost_matrix(7, 4)]
    a, b = [weights(5), weights(7)], [weights(9), weights(4)]
    a[0][-1] = 0  # the neuron that is copied is one without weight
    a[0] /= a[0].sum()
    found = _together(matrices, a, b, tolerance=1e-9, max_iterations=20_000)
    for i, M in enumerate(matrices):
        alone = solve(M, a[i], b[i], tolerance=1e-9, max_iterations=20_000)
        assert torch.allclose(found[i].plan, alone.plan, atol=1e-9)
        assert found[i].converged
    assert found[0].plan[-1].sum() == 0


def test_an_accelerators_loop_takes_padding():
    matrices = [cost_matrix(*shape, seed=i) for i, shape in enumerate([(20, 33), (31, 8)])]
    stacked = together.stack_padded(matrices)
    a = together.stack_weights([None, None], [20, 31], stacked)
    b = together.stack_weights([None, None], [33, 8], stacked)
    solution = sinkhorn_device(stacked, a, b, torch.full((2,), 0.05).double(), Limits(1e-9, 20_000))
    for i, M in enumerate(matrices):
        alone = solve(M, epsilon=0.05, tolerance=1e-9, max_iterations=20_000)
        assert torch.allclose(solution.plan[i, : len(M), : M.shape[1]], alone.plan, atol=1e-9)
    assert solution.converged.all()


@pytest.mark.parametrize(
    "settings",
    [{}, {"debiased": True}, {"dead_neurons": "ignore"}, {"method": "proximal"}, {"standardize": False}],
    ids=str,
)
def test_the_loss_of_padded_pairs(monkeypatch, settings):
    """Widths 64 to 512, values and gradients of pairs that are padded and of pairs on their own."""
    shapes = SHAPES if settings.get("method") != "proximal" else [(64, 100), (96, 64)]
    tensors = []
    for i, (m, n) in enumerate(shapes):
        student, teacher = layer(128, m, mixing=2 * i + 1), layer(128, n, mixing=2 * i + 2)
        student[:, 3] = 0  # a dead neuron
        tensors.append((student.requires_grad_(), teacher))
    loss = RepresentationTransport(tolerance=1e-14, max_iterations=40, **settings)
    calls = []
    solve_one = RepresentationTransport._solve_one
    monkeypatch.setattr(
        RepresentationTransport, "_solve_one", lambda *args: (calls.append(args[1].shape), solve_one(*args))[1]
    )

    def run():
        calls.clear()
        outputs = loss.forward_pairs(tensors)
        gradients = torch.autograd.grad(sum(output.loss for output in outputs), [student for student, _ in tensors])
        return outputs, gradients, len(calls)

    alone, expected, separate = run()
    monkeypatch.setattr("hf_reprot.losses.transport.groups", lambda M, method: together.groups(M, method, pad=True))
    found, gradients, few = run()
    assert few < separate
    assert few == (3 if settings.get("debiased") else 1)
    for ours, theirs in zip(found, alone, strict=True):
        assert ours.loss.item() == pytest.approx(theirs.loss.item(), rel=1e-6)
        assert torch.allclose(ours.plan, theirs.plan, rtol=1e-6, atol=1e-12)
        assert ours.logs.keys() == theirs.logs.keys()
        for name, value in ours.logs.items():
            assert value.item() == pytest.approx(theirs.logs[name].item(), rel=1e-5, abs=1e-9), name
    for ours, theirs in zip(gradients, expected, strict=True):
        assert (ours - theirs).norm() <= 1e-6 * theirs.norm()


def test_weights_that_are_learned_keep_their_gradient():
    matrices = [cost_matrix(5, 9), cost_matrix(7, 4)]
    b = [weights(9).requires_grad_(), None]
    settings = {"tolerance": 1e-9, "max_iterations": 20_000}
    found = _together(matrices, None, b, **settings)
    alone = solve(matrices[0], None, b[0], **settings)
    ours, theirs = (torch.autograd.grad(result.value, b[0])[0] for result in (found[0], alone))
    assert torch.allclose(ours, theirs, atol=1e-8)
    assert found[1].value.item() == pytest.approx(solve(matrices[1], **settings).value.item())


def test_a_pair_that_is_not_finite_stays_alone_with_it():
    matrices = [cost_matrix(6, 9), cost_matrix(8, 4)]
    matrices[0][2, 8] = torch.nan
    bad, good = _together(matrices)
    assert not bad.converged
    assert good.value.item() == pytest.approx(solve(matrices[1]).value.item())


def _empty(*shape, **kind):
    return torch.empty(*shape, device="meta", **kind)


def test_what_is_solved_in_one_call():
    def shapes(matrices, method="sinkhorn", pad=None):
        return sorted(sorted(tuple(matrices[i].shape) for i in g) for g in together.groups(matrices, method, pad=pad))

    stages = [_empty(d, 2 * d) for d in (64, 128, 256, 512)]
    assert len(shapes(stages)) == 1  # a device that is no CPU
    assert len(shapes(stages, pad=False)) == 4
    assert len(shapes(stages, "exact")) == len(shapes(stages, "random")) == 4
    assert len(shapes([torch.empty(4, 5), torch.empty(5, 4)])) == 2  # a CPU
    assert len(shapes([torch.empty(4, 5), torch.empty(4, 5)])) == 1
    # large ones only where they are nearly of a size, wide ones never beside those that Triton's kernels can take
    assert len(shapes([_empty(2048, 2048), _empty(512, 512)])) == 2
    assert len(shapes([_empty(2048, 2048), _empty(2000, 2040)])) == 1
    assert len(shapes([_empty(100, 5000), _empty(100, 4000)])) == 2
    assert len(shapes([_empty(512, 32), _empty(32, 512)])) == 2  # 16 times the work
    assert len(shapes([_empty(64, 64), _empty(64, 60, dtype=torch.float64)])) == 2
    assert together.groups([], "sinkhorn") == []


def test_groups_hold_each_problem_once():
    draw = torch.Generator().manual_seed(0)
    matrices = [_empty(*torch.randint(1, 2048, (2,), generator=draw).tolist()) for _ in range(60)]
    found = together.groups(matrices, "sinkhorn")
    assert sorted(i for group in found for i in group) == list(range(60))
    assert len(found) < 40
    for group in found:
        m, n = (max(matrices[i].shape[side] for i in group) for side in (0, 1))
        entries = sum(matrices[i].numel() for i in group)
        assert len(group) == 1 or len(group) * m * n <= max(together.FREE, 1.25 * entries)
