"""Gaussian transport between two layers: what it is blind to, its bound, its gradient, samples that are not whole."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_reprot.losses import GaussianTransport, RepresentationTransport, RunningMoments
from hf_reprot.ot.moments import pair_moments
from tests.ot.problems import layer

SHARP = {"relative_epsilon": 1e-6}


def _pair(n=64, ds=6, dt=9):
    return layer(n, ds).requires_grad_(), layer(n, dt, mixing=2)


def _standardised(x):
    return (x - x.mean(0)) / x.std(0, unbiased=False)


def test_is_procrustes_distance():
    student, teacher = (x.detach() for x in _pair())
    X, Y = _standardised(student) / 6**0.5, _standardised(teacher) / 9**0.5
    expected = 2 - 2 * torch.linalg.svdvals(X.mT @ Y / 64).sum()
    out = GaussianTransport(teacher_mass="uniform", **SHARP)(student, teacher)
    assert out.loss.item() == pytest.approx(expected.item(), rel=1e-4)
    assert out.logs["cost"].item() == pytest.approx(expected.item(), rel=1e-4)
    Y = (teacher - teacher.mean(0)) / teacher.var(0, unbiased=False).sum().sqrt()
    expected = 2 - 2 * torch.linalg.svdvals(X.mT @ Y / 64).sum()
    assert GaussianTransport(**SHARP)(student, teacher).loss.item() == pytest.approx(expected.item(), rel=1e-4)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), ds=st.integers(1, 7), dt=st.integers(1, 7))
def test_never_exceeds_the_transport_between_the_neurons(seed, ds, dt):
    student, teacher = layer(40, ds, seed=seed), layer(40, dt, seed=seed, mixing=2)
    exact = RepresentationTransport(method="exact")(student, teacher).loss
    assert GaussianTransport(teacher_mass="uniform", **SHARP)(student, teacher).loss <= exact + 1e-4


def test_of_a_permuted_copy_the_plan_is_the_permutation():
    teacher = layer(256, 8)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    out = GaussianTransport(teacher_mass="uniform", **SHARP)(teacher[:, order], teacher)
    assert out.loss.item() == pytest.approx(0, abs=1e-3)
    torch.testing.assert_close(out.plan, torch.eye(8).double()[order] / 8, rtol=0, atol=1e-4)
    assert not out.plan.requires_grad


def test_is_blind_to_a_rotation_of_the_teacher_and_to_scales_of_the_student():
    student, teacher = (x.detach() for x in _pair())
    rotation = torch.linalg.qr(torch.randn(9, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)).Q
    value = GaussianTransport()(student, teacher).loss.item()
    assert GaussianTransport()(student, 5 * teacher @ rotation + 2).loss.item() == pytest.approx(value)
    scales = torch.tensor([1.0, -2.0, 3.0, 0.1, 5.0, 1.0], dtype=torch.float64)
    assert GaussianTransport()(scales * student - 1, teacher).loss.item() == pytest.approx(value)


def _slope(loss, student, teacher, direction, **given):
    with torch.no_grad():
        up, down = (loss(student + sign * 1e-5 * direction, teacher, **given).loss for sign in (1, -1))
    return (up - down).item() / 2e-5


@pytest.mark.parametrize("mass", ["variance", "uniform"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", [(64, 6, 9), (5, 14, 16)])
def test_gradient_by_finite_differences(mass, weighted, shape):
    student, teacher = _pair(*shape)
    # Epsilon follows the singular values without a gradient: hardly any is left of it.
    loss = GaussianTransport(relative_epsilon=1e-4, teacher_mass=mass)
    given = {"sample_weights": torch.linspace(0.2, 1, shape[0], dtype=torch.float64)} if weighted else {}
    loss(student, teacher, **given).loss.backward()
    direction = torch.randn(student.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    slope = _slope(loss, student.detach(), teacher, direction, **given)
    assert slope == pytest.approx((student.grad * direction).sum().item(), rel=2e-3)


def test_a_narrow_student_learns_as_many_directions_as_it_has_neurons():
    """Where one-to-one pairs average the teacher's neurons, this keeps the teacher's main directions."""
    teacher = layer(256, 24, factors=6)
    student = torch.randn(256, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    loss, optimizer = GaussianTransport(), torch.optim.Adam([student], lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        loss(student, teacher).loss.backward()
        optimizer.step()
    centred = teacher - teacher.mean(0)
    learned = torch.linalg.qr(student.detach() - student.detach().mean(0)).Q
    kept = (learned.mT @ centred).square().sum() / centred.square().sum()
    best = torch.linalg.svdvals(centred).square()
    assert kept > 0.97 * best[:4].sum() / best.sum()


def test_carried_moments_give_the_coupling_and_the_batch_the_gradient():
    student, teacher = _pair()
    running = RunningMoments(0.5)
    first = layer(64, 6, seed=3), layer(64, 9, seed=3, mixing=2)
    GaussianTransport().forward_pairs([first], running=[running])
    out = GaussianTransport().forward_pairs([(student, teacher)], running=[running])[0]
    both = pair_moments(*first).decayed(0.5).merge(pair_moments(student.detach(), teacher))
    for name, value in both.tensors().items():
        torch.testing.assert_close(running.moments.tensors()[name], value)
    alone = GaussianTransport()(student, teacher)
    assert not torch.allclose(out.plan, alone.plan, atol=1e-4)
    assert torch.autograd.grad(out.loss, student)[0].abs().sum() > 0


def test_constant_neurons_take_no_part():
    student, teacher = _pair()
    value = GaussianTransport()(student, teacher).loss
    dead = torch.cat([teacher, torch.full((64, 3), 2.0, dtype=torch.float64)], 1)
    out = GaussianTransport()(student, dead)
    assert out.loss.item() == pytest.approx(value.item())
    assert out.plan[:, 9:].abs().max() == 0
    none = torch.zeros(64, 6, requires_grad=True)
    out = GaussianTransport()(none, teacher.float())
    out.loss.backward()
    assert out.loss.item() == pytest.approx(1)  # the teacher's mass alone
    assert none.grad.abs().max() == 0


def test_one_sample_is_skipped_and_what_is_not_finite_dropped():
    student, teacher = _pair(1)
    out = GaussianTransport()(student, teacher)
    assert (out.loss.item(), out.logs["skipped"].item()) == (0, 1)
    student, teacher = _pair()
    teacher[3, 2] = torch.nan
    out = GaussianTransport()(student, teacher)
    out.loss.backward()
    assert (out.loss.item(), out.logs["dropped"].item()) == (0, 1)
    assert student.grad.abs().max() == 0


def test_half_precision_is_computed_in_float32():
    student, teacher = (x.detach().bfloat16() for x in _pair())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = GaussianTransport()(student, teacher).loss
    assert half.dtype == torch.float32
    assert half.item() == GaussianTransport()(student.float(), teacher.float()).loss.item()


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"teacher_mass.*'varience'.*variance"):
        GaussianTransport(teacher_mass="varience")
    with pytest.raises(ValueError, match="relative_epsilon must be a finite number above 0, got -1"):
        GaussianTransport(-1.0)
    with pytest.raises(ValueError, match="64 samples and teacher 9"):
        GaussianTransport()(_pair()[0], torch.randn(9, 3))
