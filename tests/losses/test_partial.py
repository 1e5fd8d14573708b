"""Distillation from teachers that know some classes, and transport on the samples that count."""

import pytest
import torch

from hf_reprot.losses import LogitDistillation, PartialDistillation, RepresentationTransport
from hf_reprot.losses.baselines import DecoupledDistillation


def by_hand(student, teachers, classes, weights, labels, temperature):
    """The formulas of `PartialDistillation`, sample by sample."""
    total = 0.0
    for k in range(len(student)):
        q = (student[k] / temperature).exp()
        soft = [(z[k] / temperature).exp() / (z[k] / temperature).exp().sum() for z in teachers]
        if labels is None:
            peaks = [(z - z.mean(1, keepdim=True)).max() for z in teachers]
            level = torch.stack(peaks).prod() ** (1 / len(peaks))
            scaled = [(z[k] - z[k].mean()) * level / peak for z, peak in zip(teachers, peaks, strict=True)]
            heard = [w * z.exp().sum() for w, z in zip(weights, scaled, strict=True)]
        else:
            heard = [w * float(labels[k].item() in c) for w, c in zip(weights, classes, strict=True)]
        whole = sum(heard)
        heard = [g / whole if whole else 0.0 for g in heard]
        if labels is not None:
            for g, p, c in zip(heard, soft, classes, strict=True):
                own = q[c] / q[c].sum()
                total += g * (p * (p.log() - own.log())).sum()
        else:
            union = sorted({i for c in classes for i in c})
            target = {
                i: sum(g * p[c.index(i)] for g, p, c in zip(heard, soft, classes, strict=True) if i in c) for i in union
            }
            own = q[union] / q[union].sum()
            total += sum(target[i] * (target[i].log() - own[j].log()) for j, i in enumerate(union))
    return temperature**2 * total / len(student)


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("classes", [[[0, 1], [2, 3, 4]], [[3, 0], [4, 3, 1]], [[2, 1]], [[4, 2, 0, 1, 3], [1, 3]]])
def test_the_loss_is_its_formula(classes, labelled):
    torch.manual_seed(0)
    student = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    teachers = [2 * torch.randn(7, len(c), dtype=torch.float64) for c in classes]
    labels = torch.tensor([0, 1, 2, 3, 4, 4, 0]) if labelled else None
    weights = [1.0, 3.0][: len(classes)]
    kd = PartialDistillation(classes, 5, weights=weights, loss=LogitDistillation(3.0))
    out = kd(student, teachers, labels)
    expected = by_hand(student, teachers, classes, weights, labels, 3.0)
    torch.testing.assert_close(out.loss, expected)
    ours, theirs = torch.autograd.grad(out.loss, student)[0], torch.autograd.grad(expected, student)[0]
    torch.testing.assert_close(ours, theirs)


def test_no_term_reaches_classes_that_nobody_knows_nor_samples_of_no_one():
    student = torch.randn(4, 5, requires_grad=True)
    kd = PartialDistillation([[0, 1], [3]], 5)
    teachers = [torch.randn(4, 2), torch.randn(4, 1)]
    (free,) = torch.autograd.grad(kd(student, teachers).loss, student)
    assert ((free != 0) == torch.tensor([True, True, False, True, False])).all()
    out = kd(student, teachers, torch.tensor([0, 2, -100, 4]))
    (own,) = torch.autograd.grad(out.loss, student)
    assert own.nonzero().tolist() == [[0, 0], [0, 1]]
    # means are over the three samples with a label
    assert [out.logs[f"heard/{i}"].item() for i in (0, 1)] == pytest.approx([1 / 3, 0])
    nobody = kd(student, teachers, torch.tensor([2, 2, 4, 4]))
    assert nobody.loss == nobody.logs["kd_agreement"] == 0


def test_teachers_of_all_classes_are_a_weighted_mean():
    torch.manual_seed(0)
    student, first, second = torch.randn(3, 6, 5)
    plain = LogitDistillation(2.0)
    whole = PartialDistillation([None, None], 5, weights=[1, 3], loss=plain)(student, [first, second])
    torch.testing.assert_close(whole.loss, 0.25 * plain(student, first).loss + 0.75 * plain(student, second).loss)
    # in another order of the classes, and with an output that the student has no class for
    order = [4, None, 2, 0, 1, 3]
    moved = torch.randn(6, 6)
    moved[:, [0, 2, 3, 4, 5]] = first[:, [4, 2, 0, 1, 3]]
    again = PartialDistillation([order, None], 5, weights=[1, 3], loss=plain)(student, [moved, second])
    torch.testing.assert_close(again.loss, whole.loss)


def test_decoupled_distillation_of_some_classes():
    torch.manual_seed(0)
    student, teacher, labels = torch.randn(6, 5), torch.randn(6, 3), torch.tensor([0, 3, 1, 4, 3, 2])
    dkd = DecoupledDistillation()
    out = PartialDistillation([[4, 1, 3]], 5, loss=dkd)(student, [teacher], labels)
    rows = torch.tensor([1, 2, 3, 4])
    own = dkd(student[rows][:, [4, 1, 3]], teacher[rows], torch.tensor([2, 1, 0, 2]))
    torch.testing.assert_close(out.loss, own.loss * 4 / 6)
    torch.testing.assert_close(out.logs["kd_others"], own.logs["kd_others"] * 4 / 6)
    torch.testing.assert_close(out.logs["loss/0"], own.loss)


def test_confidence_says_whose_sample_it_is():
    kd = PartialDistillation([[0, 1], [2, 3]], 4)
    sure, torn = [8.0, -8.0], [0.1, 0.0]
    first, second = torch.tensor([sure, sure, sure, torn]), torch.tensor([torn, torn, torn, sure])
    for scale, offset in ((1.0, 0.0), (5.0, 0.0), (1.0, 100.0)):  # how sure a teacher is as a rule says nothing
        out = kd(torch.zeros(4, 4), [scale * first + offset, second])
        assert out.logs["heard/0"] == pytest.approx(0.75, abs=1e-3)
    none_of_these = PartialDistillation([[0, 1, None], [2, 3, None]], 4)
    not_mine, mine = [1.0, 0.0, 9.0], [1.0, 0.0, -9.0]
    first, second = torch.tensor([not_mine] * 3 + [mine]), torch.tensor([mine] * 3 + [not_mine])
    assert none_of_these(torch.zeros(4, 4), [first, second]).logs["heard/0"] == pytest.approx(0.25, abs=1e-2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([[0, 1]], 5, [1.0, 2.0]), "1 teachers and 2 weights"),
        (([[0, 1]], 5, [0.0]), "weights must be finite numbers above 0"),
        (([[0, 5]], 5, None), "from 0 to 4"),
        (([[0, 0]], 5, None), "different numbers"),
        (([[None]], 5, None), "different numbers"),
    ],
)
def test_classes_that_cannot_be(arguments, message):
    with pytest.raises(ValueError, match=message):
        PartialDistillation(arguments[0], arguments[1], weights=arguments[2])


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_a_student_of_two_teachers_of_disjoint_classes_knows_both(scale):
    """Without labels: it learns what no teacher alone tells apart, also where one is surer than its due."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (400,), generator=generator)
    images = 4 * torch.eye(4)[labels] + torch.randn(400, 4, generator=generator)
    teachers = [images[:, :2], scale * images[:, 2:]]
    scores = {}
    for who in ((0, 1), (0,)):
        kd = PartialDistillation([[[0, 1], [2, 3]][i] for i in who], 4)
        student = torch.nn.Linear(4, 4)
        torch.nn.init.zeros_(student.weight)
        optimizer = torch.optim.Adam(student.parameters(), lr=0.1)
        for _ in range(100):
            optimizer.zero_grad()
            kd(student(images), [teachers[i] for i in who]).loss.backward()
            optimizer.step()
        scores[who] = (student(images).argmax(1) == labels).float().mean().item()
    assert scores[0, 1] > 0.95
    assert scores[0, 1] > scores[(0,)] + 0.2


@pytest.mark.parametrize("changes", [{}, {"standardize": False}, {"debiased": True}])
def test_samples_that_do_not_count_are_as_if_they_were_not_there(changes):
    torch.manual_seed(0)
    student, teacher = torch.randn(40, 5, requires_grad=True), 2 + torch.randn(40, 7)
    own = torch.rand(40) < 0.5
    transport = RepresentationTransport(tolerance=1e-7, **changes)
    ours = transport(student, teacher, sample_weights=own.float())
    (gradient,) = torch.autograd.grad(ours.loss, student)
    theirs = transport(student[own], teacher[own])
    (expected,) = torch.autograd.grad(theirs.loss, student)
    torch.testing.assert_close(ours.loss, theirs.loss)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)
    twice = transport(student.repeat(2, 1), teacher.repeat(2, 1), sample_weights=torch.full((80,), 0.5))
    torch.testing.assert_close(twice.loss, transport(student, teacher).loss)
    nobody = transport(student, teacher, sample_weights=torch.zeros(40))
    assert nobody.loss == 0 or changes.get("standardize") is False
    assert nobody.logs["skipped"] == 1
    with pytest.raises(ValueError, match="sample_weights must have shape"):
        transport(student, teacher, sample_weights=torch.ones(3))
