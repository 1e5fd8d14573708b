"""The baselines of transport: values against a second implementation, gradients, what they are blind to, errors."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_reprot.losses.baselines import (
    DELTA,
    FEATURE_LOSSES,
    AttentionTransfer,
    BatchSpectralShrinkage,
    DecoupledDistillation,
    FitNet,
    GaussianWasserstein,
    LinearCKA,
    NeuronSelectivityTransfer,
    RelationalDistillation,
    SimilarityPreserving,
    linear_cka,
)
from tests.losses import plain

NAMES = list(FEATURE_LOSSES)


def sides(name, *, seed=0, samples=5, widths=(4, 6), positions=7, dtype=torch.float64):
    """Student and teacher activations of the shapes that a loss takes, and the loss with fixed weights."""
    kind = FEATURE_LOSSES[name]
    generator = torch.Generator().manual_seed(seed)
    tail = (positions,) if kind.input_kind == "maps" else ()
    student, teacher = (torch.randn(samples, w, *tail, generator=generator, dtype=torch.float64) for w in widths)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        loss = kind.for_widths(*widths).to(dtype)
    return loss, student.to(dtype), teacher.to(dtype)


def expected(name, loss, student, teacher):
    weights = [p.detach().double().numpy() for p in loss.parameters()]
    return getattr(plain, name)(student.double().numpy(), teacher.double().numpy(), *weights)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000), samples=st.integers(3, 6), widths=st.tuples(st.integers(2, 6), st.integers(2, 6)))
@pytest.mark.parametrize("name", NAMES)
def test_value_by_plain_loops(name, seed, samples, widths):
    loss, student, teacher = sides(name, seed=seed, samples=samples, widths=widths)
    assert loss(student, teacher).loss.item() == pytest.approx(expected(name, loss, student, teacher), rel=1e-9)


@pytest.mark.parametrize("positions", [3, 40])
def test_nst_by_either_product(positions):
    loss, student, teacher = sides("nst", positions=positions)
    assert loss(student, teacher).loss.item() == pytest.approx(expected("nst", loss, student, teacher), rel=1e-9)


@pytest.mark.parametrize("samples", [4, 30])
def test_cka_by_either_product(samples):
    loss, student, teacher = sides("cka", samples=samples)
    assert loss(student, teacher).loss.item() == pytest.approx(expected("cka", loss, student, teacher), rel=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_gradient_by_finite_differences(name):
    loss, student, teacher = sides(name, seed=3)
    student.requires_grad_()
    parameters = tuple(loss.parameters())
    assert torch.autograd.gradcheck(lambda s, *_: loss(s, teacher).loss, (student, *parameters), atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_the_teacher_gets_no_gradient(name):
    loss, student, teacher = sides(name, dtype=torch.float32)
    student.requires_grad_()
    teacher.requires_grad_()
    loss(student, teacher).loss.backward()
    assert student.grad.abs().sum() > 0
    assert teacher.grad is None
    assert all(p.grad.abs().sum() > 0 for p in loss.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_is_computed_in_float32(name):
    loss, student, teacher = sides(name, dtype=torch.float32, samples=8)
    student, teacher = student.bfloat16(), teacher.bfloat16()
    exact = loss(student.float(), teacher.float()).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = loss(student, teacher).loss
    assert half.dtype == torch.float32
    assert half.item() == exact.item()


@pytest.mark.parametrize("name", NAMES)
def test_one_sample_gives_a_finite_value_and_gradient(name):
    loss, student, teacher = sides(name, samples=1, dtype=torch.float32)
    student.requires_grad_()
    out = loss(student, teacher)
    out.loss.backward()
    assert torch.isfinite(out.loss)
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [0.0, 3.0])
def test_constant_layers_give_a_finite_gradient(name, value):
    """Dead neurons, equal samples: roots and norms of 0."""
    loss, student, teacher = sides(name, dtype=torch.float32)
    student = torch.full_like(student, value).requires_grad_()
    out = loss(student, teacher)
    out.loss.backward()
    assert torch.isfinite(out.loss)
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("name", NAMES)
def test_wrong_shapes_are_named(name):
    loss, student, teacher = sides(name)
    with pytest.raises(ValueError, match=r"student must have shape \(samples"):
        loss(student[..., None], teacher)
    with pytest.raises(ValueError, match="5 samples and teacher 4"):
        loss(student, teacher[:4])
    with pytest.raises(TypeError, match="int64"):
        loss(student.long(), teacher)


@pytest.mark.parametrize("name", ["attention", "nst", "wkd"])
def test_other_positions_are_an_error(name):
    loss, student, teacher = sides(name)
    with pytest.raises(ValueError, match="7 positions and teacher 6"):
        loss(student, teacher[..., :6])


@pytest.mark.parametrize("name", ["fitnet", "wkd"])
def test_a_projector_of_other_widths(name):
    loss, student, teacher = sides(name)
    with pytest.raises(ValueError, match=r"built for widths \(4, 6\) \(student, teacher\), got \(3, 6\)"):
        loss(student[:, :3], teacher)


def test_a_perfect_projector_leaves_nothing():
    loss, student, _ = sides("fitnet")
    assert loss(student, loss.projector(student)).loss.item() == 0
    maps, wkd = torch.randn(3, 4, 9), GaussianWasserstein(4, 6)
    assert wkd(maps, wkd.projector(maps.transpose(1, 2)).transpose(1, 2)).loss.item() == pytest.approx(0, abs=1e-9)


def test_what_each_is_blind_to():
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(9, 6, generator=generator, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64)).Q
    for blind in (RelationalDistillation(), LinearCKA()):
        assert blind(2 * table @ rotation + 1, table).loss.item() == pytest.approx(0, abs=1e-10)
    assert SimilarityPreserving()(2 * table @ rotation, table).loss.item() == pytest.approx(0, abs=1e-12)
    maps = torch.randn(3, 6, 16, generator=generator, dtype=torch.float64)
    order = torch.randperm(6, generator=generator)
    for blind in (AttentionTransfer(), NeuronSelectivityTransfer()):
        assert blind(5 * maps[:, order], maps).loss.item() == pytest.approx(0, abs=1e-12)
        assert blind(maps.flip(2), maps).loss.item() > 1e-3  # where the activity lies is what they see
    assert FitNet(6, 6).double()(table, table).loss.item() > 0.1


def test_wkd_is_the_distance_of_gaussians():
    """With mean weight 1: |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) of diagonal covariances."""
    loss = GaussianWasserstein(2, 2, mean_weight=1.0).double()
    torch.nn.init.eye_(loss.projector.weight)
    torch.nn.init.zeros_(loss.projector.bias)
    student, teacher = torch.randn(1, 2, 50, dtype=torch.float64), 3 * torch.randn(1, 2, 50, dtype=torch.float64) + 1
    variances = [x.var(2, correction=0)[0] + 1e-5 for x in (student, teacher)]
    bures = sum(variances).sum() - 2 * (variances[0] * variances[1]).sqrt().sum()
    value = (student.mean(2) - teacher.mean(2)).square().sum() + bures
    assert loss(student, teacher).loss.item() == pytest.approx(value.item(), rel=1e-9)


def test_near_equal_samples_have_no_direction():
    """Two samples closer than float32 can tell: neither the value nor the gradient explodes."""
    teacher = torch.randn(6, 4)
    student = torch.randn(6, 4)
    student[1] = student[0] + 1e-7
    student.requires_grad_()
    out = RelationalDistillation()(student, teacher)
    out.loss.backward()
    assert student.grad.abs().max() < 10


def test_cka_is_a_number_from_0_to_1():
    assert linear_cka(torch.randn(20, 5), torch.zeros(20, 3)).item() == 0
    x = torch.randn(200, 3)
    assert 0 <= linear_cka(x, torch.randn(200, 4)).item() < 0.2
    assert LinearCKA()(x, x).logs["cka"].item() == pytest.approx(1)


@pytest.mark.parametrize("attention", [None, [0.1, 0.2, 0.3, 0.4], [0.0, 0.0, 5.0, 5.0]])
def test_delta_by_plain_loops(attention):
    student, teacher = torch.randn(3, 4, 9, dtype=torch.float64), torch.randn(3, 4, 9, dtype=torch.float64)
    given = None if attention is None else torch.tensor(attention)
    weights = [0.25] * 4 if attention is None else [w / sum(attention) for w in attention]
    found = DELTA(given)(student, teacher).loss.item()
    assert found == pytest.approx(plain.delta(student.numpy(), teacher.numpy(), weights), rel=1e-6)


def test_delta_refuses_what_is_no_copy():
    with pytest.raises(ValueError, match="started as a copy"):
        DELTA()(torch.randn(2, 3, 4), torch.randn(2, 5, 4))
    with pytest.raises(ValueError, match="2 weights for 3 channels"):
        DELTA(torch.ones(2))(torch.randn(2, 3, 4), torch.randn(2, 3, 4))
    for bad in (torch.tensor([1.0, -1.0]), torch.zeros(3), torch.ones(2, 2)):
        with pytest.raises(ValueError, match="attention must be"):
            DELTA(bad)
    maps = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    target = torch.randn(2, 3, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: DELTA()(s, target).loss, (maps,))


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 5)])
@pytest.mark.parametrize("k", [1, 3, 99])
def test_bss_by_eigenvalues(shape, k):
    features = torch.randn(*shape, dtype=torch.float64, requires_grad=True)
    shrink = BatchSpectralShrinkage(k)
    assert shrink(features).loss.item() == pytest.approx(plain.bss(features.detach().numpy(), k), rel=1e-8)
    assert torch.autograd.gradcheck(lambda x: shrink(x).loss, (features,), atol=1e-6)


def test_bss_with_what_is_not_finite():
    features = torch.randn(4, 3)
    features[1, 1] = float("nan")
    assert math.isnan(BatchSpectralShrinkage()(features).loss.item())
    with pytest.raises(ValueError, match="k must be at least 1"):
        BatchSpectralShrinkage(0)
    with pytest.raises(ValueError, match=r"\(samples, neurons\)"):
        BatchSpectralShrinkage()(torch.randn(2, 3, 4))


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    classes=st.integers(2, 6),
    alpha=st.floats(0, 3),
    beta=st.floats(0, 9),
    temperature=st.floats(0.5, 6),
)
def test_dkd_by_plain_loops(seed, classes, alpha, beta, temperature):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (3 * torch.randn(4, classes, generator=generator, dtype=torch.float64) for _ in range(2))
    labels = torch.randint(0, classes, (4,), generator=generator)
    found = DecoupledDistillation(alpha, beta, temperature)(student, teacher, labels).loss.item()
    reference = plain.dkd(student.numpy(), teacher.numpy(), labels.numpy(), alpha, beta, temperature)
    assert found == pytest.approx(reference, rel=1e-6, abs=1e-12)


def test_dkd_of_one_sample_adds_up_to_plain_distillation():
    """alpha 1 and beta the teacher's doubt: the decomposition that the method starts from."""
    from hf_reprot.losses import LogitDistillation

    student, teacher, label = torch.randn(1, 5), torch.randn(1, 5), torch.tensor([2])
    doubt = 1 - torch.softmax(teacher / 3, 1)[0, 2].item()
    found = DecoupledDistillation(1.0, doubt, 3.0)(student, teacher, label).loss
    assert found.item() == pytest.approx(LogitDistillation(3.0)(student, teacher).loss.item(), rel=1e-4)


def test_dkd_where_the_teacher_is_sure():
    """No logarithm of a rounded 1 - p: probabilities of 1 to the last bit."""
    student = torch.tensor([[60.0, 0.0, -5.0]], requires_grad=True)
    out = DecoupledDistillation(temperature=1.0)(student, torch.tensor([[80.0, 1.0, 0.0]]), torch.tensor([0]))
    out.loss.backward()
    assert torch.isfinite(out.loss)
    assert torch.isfinite(student.grad).all()
    logits = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    teacher, labels = torch.randn(3, 4, dtype=torch.float64), torch.tensor([0, 3, 1])
    assert torch.autograd.gradcheck(lambda s: DecoupledDistillation()(s, teacher, labels).loss, (logits,))


@pytest.mark.parametrize(
    ("student", "teacher", "labels", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(2, 4), torch.tensor([0, 1]), "the same classes on both sides"),
        (torch.zeros(2, 1), torch.zeros(2, 1), torch.tensor([0, 0]), "2 classes or more"),
        (torch.zeros(2, 3), torch.zeros(2, 3), torch.tensor([0, 1, 2]), r"\(3,\)"),
        (torch.zeros(2, 3), torch.zeros(2, 3), torch.eye(3)[:2], "one class number per sample"),
        (torch.zeros(2, 3), torch.zeros(2, 3), torch.tensor([0.0, 1.0]), "float32"),
    ],
)
def test_dkd_refuses(student, teacher, labels, message):
    with pytest.raises(ValueError, match=message):
        DecoupledDistillation()(student, teacher, labels)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RelationalDistillation(distance_weight=-1), "distance_weight"),
        (lambda: FEATURE_LOSSES["crd"](3, 4, temperature=0), "temperature"),
        (lambda: FEATURE_LOSSES["crd"](3, 0), "teacher_width"),
        (lambda: FitNet(0, 4), "student_width must be at least 1, got 0"),
        (lambda: GaussianWasserstein(3, 4, mean_weight=float("inf")), "mean_weight"),
        (lambda: DecoupledDistillation(alpha=float("nan")), "alpha"),
        (lambda: DecoupledDistillation(temperature=0), "temperature"),
    ],
)
def test_settings_that_make_no_sense(make, message):
    with pytest.raises(ValueError, match=message):
        make()
