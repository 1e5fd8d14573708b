import copy

import pytest
import torch
from safetensors.torch import save_file

from hf_reprot.losses import RepresentationTransport, RunningMoments
from hf_reprot.ot import neuron_cost, solve
from hf_reprot.ot.moments import pair_moments
from tests.ot.problems import layer


def _pair(n=64, ds=6, dt=9):
    return layer(n, ds).requires_grad_(), layer(n, dt, mixing=2)


def test_is_the_value_of_the_transport_between_the_neurons():
    student, teacher = _pair()
    out = RepresentationTransport(tolerance=1e-8)(student, teacher)
    result = solve(neuron_cost(student, teacher), tolerance=1e-8)
    assert out.loss.item() == pytest.approx(result.value.item())
    assert torch.allclose(out.plan, result.plan)
    assert out.logs["cost"].item() == pytest.approx(result.cost.item(), rel=1e-5)


def _slope(loss, student, teacher, direction, step=1e-5, **kwargs):
    with torch.no_grad():
        up, down = (loss(student + sign * step * direction, teacher, **kwargs).loss for sign in (1, -1))
    return (up - down).item() / (2 * step)


@pytest.mark.parametrize(
    "settings",
    [
        {"epsilon": 0.1},
        {"epsilon": 0.1, "standardize": False},
        {"epsilon": 0.1, "debiased": True},
        {"method": "exact"},
        {"method": "independent"},
        {"method": "random"},
    ],
)
def test_gradient_by_finite_differences(settings):
    student, teacher = _pair()
    loss = RepresentationTransport(tolerance=1e-11, max_iterations=50_000, **settings)
    loss(student, teacher).loss.backward()
    direction = torch.randn(student.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    slope = _slope(loss, student.detach(), teacher, direction)
    assert slope == pytest.approx((student.grad * direction).sum().item(), rel=1e-4)


def test_descends_to_a_permuted_teacher_where_it_is_debiased():
    teacher = layer(128, 8)
    start = teacher[:, torch.randperm(8, generator=torch.Generator().manual_seed(0))]
    debiased = RepresentationTransport(debiased=True, relative_epsilon=0.1, tolerance=1e-7)(start, teacher)
    assert debiased.loss.item() == pytest.approx(0, abs=1e-6)
    plain = RepresentationTransport(relative_epsilon=0.1, tolerance=1e-7)(start, teacher)
    assert plain.loss.item() > 0.1


def test_training_on_it_alone_finds_the_teacher():
    teacher = layer(256, 5)
    student = (0.5 * teacher + torch.randn(256, 5, dtype=torch.float64)).requires_grad_()
    loss, optimizer = RepresentationTransport(), torch.optim.Adam([student], lr=0.05)
    first = loss(student, teacher).logs["cost"].item()
    for _ in range(100):
        optimizer.zero_grad()
        loss(student, teacher).loss.backward()
        optimizer.step()
    assert loss(student, teacher).logs["cost"].item() < 0.2 * first


def test_a_plan_from_outside_weighs_the_costs():
    student, teacher = _pair()
    plan = torch.rand(6, 9, dtype=torch.float64)
    out = RepresentationTransport()(student, teacher, plan=plan)
    M = neuron_cost(student, teacher)
    assert out.loss.item() == pytest.approx((plan * M).sum().item())
    ours = torch.autograd.grad(out.loss, student)[0]
    assert torch.allclose(ours, torch.autograd.grad((plan * M).sum(), student)[0])
    assert not out.plan.requires_grad


def test_a_plan_from_running_moments_is_that_of_all_their_samples():
    loss, running = RepresentationTransport(tolerance=1e-7), [RunningMoments(0.5)]
    student, teacher = layer(96, 6), layer(96, 9, mixing=2)
    parts = [(student[i : i + 32], teacher[i : i + 32]) for i in (0, 32, 64)]
    outputs = [loss.forward_pairs([part], running=running)[0] for part in parts]
    halves = pair_moments(*parts[0])
    for part in parts[1:]:
        halves = halves.decayed(0.5).merge(pair_moments(*part))
    from hf_reprot.ot.cost import cost_from_moments

    expected = solve(cost_from_moments(halves), tolerance=1e-7).plan
    assert torch.allclose(outputs[-1].plan, expected, atol=1e-9)
    assert outputs[-1].loss.item() == pytest.approx((expected * neuron_cost(*parts[-1])).sum().item())
    assert running[0].moments.count.item() == pytest.approx(32 * 1.75)


def test_running_moments_go_through_a_state_dict():
    running = RunningMoments(0.9)
    running.update(pair_moments(layer(10, 3), layer(10, 4, mixing=2)))
    other = RunningMoments(0.9)
    other.load_state_dict(copy.deepcopy(running.state_dict()))
    for moments in (running, other):
        moments.update(pair_moments(layer(10, 3, seed=5), layer(10, 4, seed=5, mixing=2)))
    for name, value in running.state_dict().items():
        assert torch.equal(value, other.state_dict()[name])


def test_several_pairs_at_once_are_each_as_alone():
    loss = RepresentationTransport()
    pairs = [_pair(), _pair(ds=4, dt=4), (layer(64, 6, seed=9), layer(64, 9, seed=9, mixing=3))]
    for together, (student, teacher) in zip(loss.forward_pairs(pairs), pairs, strict=True):
        alone = loss(student, teacher)
        assert together.loss.item() == pytest.approx(alone.loss.item())
        assert torch.allclose(together.plan, alone.plan, atol=1e-9)
        assert together.logs.keys() == alone.logs.keys()


def test_diagnostics():
    teacher = layer(64, 7)
    out = RepresentationTransport(method="identity")(teacher, teacher)
    assert out.logs["off_identity"].item() == pytest.approx(0, abs=1e-6)
    assert out.logs["plan_entropy"].item() == pytest.approx(0, abs=1e-6)
    spread = RepresentationTransport(method="independent")(teacher, teacher)
    assert spread.logs["plan_entropy"].item() == pytest.approx(torch.tensor(7.0).log().item(), rel=1e-5)
    assert spread.logs["off_identity"].item() == pytest.approx(6 / 7)
    logs = RepresentationTransport()(*_pair()).logs
    assert logs["marginal_error"].item() <= 1e-3
    assert logs["iterations"].item() >= 1
    assert all(not value.requires_grad and value.ndim == 0 for value in logs.values())
    assert "off_identity" not in logs


def test_dead_neurons_can_be_left_out():
    student, teacher = layer(64, 6), layer(64, 9, mixing=2)
    dead_student, dead_teacher = student.clone(), teacher.clone()
    dead_student[:, 2], dead_teacher[:, [0, 5]] = 4.0, 0.0
    out = RepresentationTransport(dead_neurons="ignore", tolerance=1e-8)(dead_student, dead_teacher)
    keep_s, keep_t = [0, 1, 3, 4, 5], [1, 2, 3, 4, 6, 7, 8]
    expected = RepresentationTransport(tolerance=1e-8)(student[:, keep_s], teacher[:, keep_t])
    assert out.loss.item() == pytest.approx(expected.loss.item(), rel=1e-6)
    assert out.plan[2].sum() == 0
    assert out.plan[:, [0, 5]].sum() == 0


@pytest.mark.parametrize("debiased", [False, True])
@pytest.mark.parametrize("side", ["student", "teacher"])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_what_is_not_finite_is_dropped_counted_and_has_no_gradient(side, poison, debiased):
    student, teacher = layer(64, 6), layer(64, 9, mixing=2)
    (student if side == "student" else teacher)[3, 2] = poison
    student.requires_grad_()
    good = _pair()
    bad, fine = RepresentationTransport(debiased=debiased).forward_pairs([(student, teacher), good])
    (bad.loss + fine.loss).backward()
    assert bad.loss.item() == 0
    assert bad.logs["dropped"].item() == 1
    assert fine.logs["dropped"].item() == 0
    assert (student.grad == 0).all()
    assert torch.isfinite(good[0].grad).all()
    assert good[0].grad.abs().sum() > 0


def test_running_moments_forget_a_batch_that_is_not_finite():
    loss, running = RepresentationTransport(), [RunningMoments(0.9)]
    student, teacher = _pair()
    loss.forward_pairs([(student, teacher)], running=running)
    before = {name: value.clone() for name, value in running[0].state_dict().items()}
    poisoned = student.detach().clone()
    poisoned[0, 0] = torch.nan
    assert loss.forward_pairs([(poisoned, teacher)], running=running)[0].logs["dropped"].item() == 1
    for name, value in running[0].state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("samples", [0, 1])
@pytest.mark.parametrize("standardize", [True, False])
def test_too_few_samples_give_a_finite_value_and_a_flag(samples, standardize):
    student, teacher = torch.randn(samples, 4).requires_grad_(), torch.randn(samples, 5)
    out = RepresentationTransport(standardize=standardize)(student, teacher)
    out.loss.backward()
    assert torch.isfinite(out.loss)
    assert torch.isfinite(student.grad).all()
    assert out.logs["skipped"].item() == 1
    if standardize:
        assert out.loss.item() == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_autocast_leave_the_transport_in_float32(dtype):
    student, teacher = layer(256, 16).float(), layer(256, 24, mixing=2).float()
    exact = RepresentationTransport()(student, teacher).loss.item()
    half = student.to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = RepresentationTransport()(half, teacher.to(dtype))
    assert out.loss.dtype == out.plan.dtype == torch.float32
    assert out.loss.item() == pytest.approx(exact, rel=0.01)
    out.loss.backward()
    assert half.grad.dtype == dtype


def test_has_nothing_to_save_or_train():
    loss = RepresentationTransport()
    loss(*_pair())
    assert loss.state_dict() == {}
    assert list(loss.parameters()) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cost": "sqeuclid"}, "Did you mean 'sqeuclidean'"),
        ({"method": "sinkhon"}, "Did you mean 'sinkhorn'"),
        ({"dead_neurons": "drop"}, "'keep', 'ignore'"),
        ({"method": "exact", "debiased": True}, "needs method='sinkhorn'"),
        ({"relative_epsilon": -1.0}, "relative_epsilon"),
        ({"tolerance": float("inf")}, "tolerance"),
        ({"max_iterations": 0}, "max_iterations"),
    ],
)
def test_settings_that_make_no_sense(settings, message):
    with pytest.raises(ValueError, match=message):
        RepresentationTransport(**settings)


def test_inputs_that_make_no_sense():
    loss = RepresentationTransport()
    with pytest.raises(ValueError, match=r"student must have shape \(samples, neurons\)"):
        loss(torch.rand(2, 3, 4), torch.rand(2, 3))
    with pytest.raises(TypeError, match=r"teacher.*int64"):
        loss(torch.rand(2, 3), torch.ones(2, 3, dtype=torch.long))
    with pytest.raises(ValueError, match="3 samples and teacher 4"):
        loss(torch.rand(3, 3), torch.rand(4, 3))
    with pytest.raises(ValueError, match=r"plan must have shape \(3, 5\)"):
        loss(torch.rand(4, 3), torch.rand(4, 5), plan=torch.rand(5, 3))
    with pytest.raises(ValueError, match="equal widths"):
        RepresentationTransport(method="identity")(torch.rand(4, 3), torch.rand(4, 5))
    with pytest.raises(ValueError, match="either plans or running"):
        loss.forward_pairs(
            [(torch.rand(4, 3), torch.rand(4, 5))], plans=[torch.rand(3, 5)], running=[RunningMoments(0.5)]
        )
    with pytest.raises(ValueError, match="momentum"):
        RunningMoments(1.0)


@pytest.mark.parametrize("method", ["sinkhorn", "proximal", "exact"])
@pytest.mark.parametrize("dead_neurons", ["keep", "ignore"])
def test_neurons_that_all_do_the_same_match_at_no_cost(method, dead_neurons):
    """The mean cost is 0 up to rounding, and with it the unit of epsilon."""
    shape = layer(12, 1).float()
    student, teacher = shape.repeat(1, 3).requires_grad_(), shape.repeat(1, 7) * 2 + 1
    debiased = method == "sinkhorn"
    out = RepresentationTransport(method=method, debiased=debiased, dead_neurons=dead_neurons)(student, teacher)
    out.loss.backward()
    assert out.logs["dropped"] == 0
    assert out.loss.item() == pytest.approx(0, abs=1e-5)
    assert torch.isfinite(student.grad).all()


def test_neurons_that_hardly_vary_count_as_constant_and_have_a_finite_gradient():
    student, teacher = layer(32, 4).float(), layer(32, 5, mixing=2).float()
    student[:, 1] *= 1e-16
    student.requires_grad_()
    RepresentationTransport()(student, teacher).loss.backward()
    assert torch.isfinite(student.grad).all()
    assert (student.grad[:, 1] == 0).all()


def test_running_moments_do_not_take_in_what_would_overflow():
    running = RunningMoments(0.5)
    running.update(pair_moments(torch.randn(4, 2), torch.randn(4, 3)))
    before = {name: value.clone() for name, value in running.state_dict().items()}
    running.update(pair_moments(torch.full((4, 2), 1e25), torch.randn(4, 3)))
    for name, value in running.state_dict().items():
        assert torch.equal(value, before[name])


def test_moments_of_pairs_computed_together_are_saved_apart(tmp_path):
    """safetensors refuses tensors that share memory, as those of a stack do."""
    running = [RunningMoments(0.9) for _ in range(3)]
    pairs = [(layer(20, 4, seed=i), layer(20, 5, seed=i, mixing=2)) for i in range(3)]
    RepresentationTransport().forward_pairs(pairs, running=running)
    state = {f"{i}.{name}": value for i, one in enumerate(running) for name, value in one.state_dict().items()}
    save_file(state, tmp_path / "state.safetensors")
    for i, pair in enumerate(pairs):
        torch.testing.assert_close(state[f"{i}.cov"], pair_moments(*pair).cov)
