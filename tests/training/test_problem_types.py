"""The form of a loss follows the question that the student answers; labels that it cannot take are refused."""

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset
from transformers import EvalPrediction

from hf_reprot.experimental.topk.selection import NeuronSelection
from hf_reprot.hub.card import render_card
from hf_reprot.losses import LogitDistillation, PartialDistillation
from hf_reprot.losses.baselines import DecoupledDistillation
from hf_reprot.models.problems import problem_of
from hf_reprot.training.labels import LabelRule
from hf_reprot.utils.running import accuracy
from tests.toy_models import Images, convnext, resnet, timm_vit, vit
from tests.training.runs import make_trainer, training_logs

SINGLE, MULTI, NUMBERS = "single_label_classification", "multi_label_classification", "regression"
FIRST = {"ot_weight": 0.0, "max_steps": 1, "learning_rate": 0.0, "train_sampling_strategy": "sequential"}


class Labelled(Dataset):
    """The images of `Images` with other labels."""

    def __init__(self, labels):
        self.images, self.labels = Images(len(labels)), labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return {"pixel_values": self.images[i]["pixel_values"], "labels": self.labels[i]}


def of(problem, model):
    model.config.problem_type = problem
    return model


def many_hot(samples=8, classes=3):
    return (torch.randn(samples, classes, generator=torch.Generator().manual_seed(1)) > 0).float()


def bernoulli(student, teacher, temperature):
    """The divergence of yes or no, by its definition, in double precision: (n, classes)."""
    p, q = ((x.double() / temperature).sigmoid() for x in (teacher, student))
    return temperature**2 * (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log())


# ---- losses ----


def test_several_labels_by_hand():
    s, t = torch.tensor([[0.0, 2.0]]), torch.tensor([[0.0, -2.0]])
    loss = LogitDistillation(2.0, MULTI)(s, t).loss.item()
    # the second class: p = 1 - q with log-odds of 1: KL = (1 - 2p) * 1 = tanh(1/2)
    assert loss == pytest.approx(4 * np.tanh(0.5) / 2, rel=1e-6)
    assert LogitDistillation(2.0, MULTI)(t, t).loss.item() == 0


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_several_labels_against_the_definition(temperature):
    torch.manual_seed(0)
    s, t = torch.randn(6, 4, requires_grad=True), torch.randn(6, 4)
    out = LogitDistillation(temperature, MULTI)(s, t)
    torch.testing.assert_close(out.loss.double(), bernoulli(s, t, temperature).mean())
    assert out.logs["kd_agreement"].item() == pytest.approx(((s > 0) == (t > 0)).float().mean().item())
    shifted = LogitDistillation(temperature, MULTI)(t + 50, t)  # a softmax would not see it
    assert 1 < shifted.loss < float("inf")
    (gradient,) = torch.autograd.grad(LogitDistillation(1.0, MULTI)(s, 200 * t).loss, s)
    assert gradient.isfinite().all()


def test_regression_by_hand():
    s, t = torch.tensor([[1.0], [3.0]], requires_grad=True), torch.tensor([[2.0], [5.0]])
    out = LogitDistillation(7.0, NUMBERS)(s, t)
    out.loss.backward()
    assert out.loss.item() == 2.5
    assert s.grad.tolist() == [[-1.0], [-2.0]]
    # variances 1 and 2.25, covariance 1.5, means 2 and 3.5: 3 / (1 + 2.25 + 2.25)
    assert out.logs["kd_agreement"].item() == pytest.approx(3 / 5.5, rel=1e-6)
    assert LogitDistillation(1.0, NUMBERS)(t[:1], t[:1]).logs["kd_agreement"] == 1
    with pytest.raises(ValueError, match="problem_type must be one of"):
        LogitDistillation(problem_type="several")


@pytest.mark.parametrize("problem", [MULTI, NUMBERS])
def test_several_teachers_class_by_class(problem):
    torch.manual_seed(0)
    s, a, b = torch.randn(5, 4, requires_grad=True), torch.randn(5, 2), torch.randn(5, 3)
    plain = LogitDistillation(2.0, problem)
    kd = PartialDistillation([[3, 0], [0, None, 1]], 4, weights=[1, 3], loss=plain)
    out = kd(s, [a, b], labels=torch.zeros(5, 4))  # labels are not asked
    first, second = plain.divergence(s[:, [3, 0]], a), plain.divergence(s[:, [0, 1]], b[:, [0, 2]])
    expected = (first[:, 0] + (first[:, 1] + 3 * second[:, 0]) / 4 + second[:, 1]).mean() / 3
    torch.testing.assert_close(out.loss, expected)
    (gradient,) = torch.autograd.grad(out.loss, s)
    assert (gradient[:, 2] == 0).all()
    assert (gradient[:, [0, 1, 3]] != 0).all()
    assert out.logs["heard/0"].item() == pytest.approx((1 + 1 / 4) / 3)
    both = PartialDistillation([None, None], 3, weights=[1, 3], loss=plain)
    t, u = torch.randn(5, 3), torch.randn(5, 3)
    expected = (plain(s[:, :3], t).loss + 3 * plain(s[:, :3], u).loss) / 4
    torch.testing.assert_close(both(s[:, :3], [t, u]).loss, expected)


@pytest.mark.parametrize("kind", ["dkd", "partial", "partial dkd", "selection"])
def test_a_sample_without_a_label_is_as_if_it_were_not_there(kind):
    torch.manual_seed(0)
    s, t, labels = torch.randn(6, 3), torch.randn(6, 3), torch.tensor([0, -100, 2, 1, -100, 0])
    real = labels != -100
    if kind == "dkd":
        loss = DecoupledDistillation()
    elif kind == "selection":
        weights = torch.rand(3)
        module = NeuronSelection(3, 1, classes=3)
        module.readout.weight.data.normal_()
        loss = lambda s, t, y: module(t - t[real].mean(0), y, weights)  # noqa: E731
        t[~real] = t[real].mean(0)  # the same moments, but for the factor of the samples
    else:
        inner = DecoupledDistillation() if "dkd" in kind else None
        partial = PartialDistillation([[2, 0], [1, 2]], 3, loss=inner)
        loss = lambda s, t, y: partial(s, [t[:, :2], t[:, 1:]], y)  # noqa: E731
    if kind != "selection":
        whole, few = loss(s, t, labels), loss(s[real], t[real], labels[real])
        torch.testing.assert_close(whole.loss, few.loss)
        for name, value in few.logs.items():
            torch.testing.assert_close(whole.logs[name], value, msg=name)
    none = loss(s, t, torch.full_like(labels, -100))
    assert none.loss == 0
    if kind == "selection":
        assert loss(s, t, labels).logs["accuracy"] <= 1


# ---- in training ----


@pytest.mark.parametrize("build", [vit, convnext, timm_vit])
@pytest.mark.parametrize("stated", [True, False])
def test_the_loss_follows_the_student(tmp_path, build, stated):
    """Stated in its config, or found from float labels, as transformers finds it."""
    student, teacher = build(labels=3), resnet(3, seed=1)
    if stated:
        of(MULTI, student)
    trainer = make_trainer(
        tmp_path, model=student, teacher=teacher, data=Labelled(many_hot()), kd_weight=1.0, kd_temperature=2.0, **FIRST
    )
    trainer.train()
    x = torch.stack([Images(8)[i]["pixel_values"] for i in range(8)])
    student.eval()
    with torch.no_grad():
        s, t = student(x).logits, teacher(x).logits
    entry = training_logs(trainer)[0]
    assert entry["kd_loss"] == pytest.approx(bernoulli(s, t, 2.0).mean().item(), rel=1e-3)
    task = torch.nn.functional.binary_cross_entropy_with_logits(s, many_hot())
    assert entry["task_loss"] == pytest.approx(task.item(), rel=1e-4)
    record = trainer.collect_record()
    assert record.problem_type == MULTI
    card = render_card(record)
    assert "kd_weight * KL of each class's yes or no at kd_temperature" in card
    assert "(logits[0] > 0).nonzero()" in card
    assert "names no classes: the outputs of" in card


def test_a_student_without_labels_answers_what_its_teacher_does(tmp_path):
    student, teacher = vit(), of(MULTI, resnet(3, seed=1))
    trainer = make_trainer(
        tmp_path,
        model=student,
        teacher=teacher,
        data=Images(8, labelled=False),
        kd_weight=1.0,
        task_weight=0.0,
        **FIRST,
    )
    assert student.config.problem_type == MULTI
    trainer.train()
    x = torch.stack([Images(8)[i]["pixel_values"] for i in range(8)])
    with torch.no_grad():
        expected = bernoulli(student(x).logits, teacher(x).logits, 2.0).mean().item()
    assert training_logs(trainer)[0]["kd_loss"] == pytest.approx(expected, rel=1e-3)


def test_regression_is_distilled_by_the_squared_difference(tmp_path):
    student, teacher = vit(labels=1), resnet(1, seed=1)
    teacher.classifier[-1].bias.data += 50.0
    data = Labelled(torch.rand(8))
    trainer = make_trainer(tmp_path, model=student, teacher=teacher, data=data, kd_weight=1.0, **FIRST)
    trainer.train()
    x = torch.stack([data[i]["pixel_values"] for i in range(8)])
    with torch.no_grad():
        expected = (student(x).logits - teacher(x).logits).square().mean().item()
    entry = training_logs(trainer)[0]
    assert expected > 2000
    assert entry["kd_loss"] == pytest.approx(expected, rel=1e-4)
    assert abs(entry["kd_agreement"]) < 0.01


@pytest.mark.parametrize("problem", [MULTI, NUMBERS])
@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"kd_weight": 1.0, "kd_method": "dkd"}, "kd_method='dkd'"),
        ({"select_k": 2, "select_by": "task"}, "select_by='task'"),
    ],
)
def test_what_needs_one_class_a_sample_is_refused_at_construction(tmp_path, problem, settings, name):
    with pytest.raises(ValueError, match=f"{name} needs one class .* problem_type is '{problem}'"):
        make_trainer(tmp_path, model=of(problem, vit()), data=Labelled(many_hot()), **settings)


def test_a_teacher_that_answers_another_question_is_refused(tmp_path):
    student, teacher = of(MULTI, vit()), of(SINGLE, resnet(3, seed=1))
    with pytest.raises(ValueError, match="that of the teacher ResNetForImageClassification 'single_label"):
        make_trainer(tmp_path, model=student, teacher=teacher, data=Labelled(many_hot()), kd_weight=1.0)
    make_trainer(tmp_path, model=student, teacher=teacher, data=Labelled(many_hot()))  # its representation teaches


def test_what_a_model_is_asked():
    assert problem_of(vit(labels=1)) == NUMBERS
    assert problem_of(vit()) is None
    assert problem_of(vit(), torch.zeros(2, 3)) == MULTI
    assert problem_of(vit(), torch.zeros(2, dtype=torch.long)) == SINGLE
    assert problem_of(torch.nn.Linear(2, 1)) == SINGLE


# ---- labels ----


@pytest.mark.parametrize(
    ("problem", "labels", "message"),
    [
        (None, torch.tensor([0, 3]), r"label 3 \(row 1 of the batch\) is no class: the student has 3, 0 to 2"),
        (SINGLE, torch.tensor([-1, 0]), "label -1 .*-100 for a sample without"),
        (None, torch.ones(2, 3, dtype=torch.long), "make them floats"),
        (MULTI, torch.ones(2, 3, dtype=torch.long), "takes floats"),
        (MULTI, torch.tensor([[0.0, 1.0, -100.0]]), "label -100 .*legal is 0 to 1"),
        (MULTI, torch.zeros(2, 2), "give 3 numbers a sample"),
        (NUMBERS, torch.tensor([1, 2]), "problem_type='regression' takes floats"),
        (NUMBERS, torch.tensor([1.0, float("nan")]), "not finite"),
    ],
)
def test_labels_that_no_loss_takes(problem, labels, message):
    rule = LabelRule(("labels",), problem, 3)
    with pytest.raises(ValueError, match=message):
        rule.check({"labels": labels})


def test_labels_that_are_taken():
    for problem, labels in (
        (None, torch.tensor([0, -100, 2])),
        (MULTI, torch.tensor([[0.0, 1.0, 0.5]])),
        (NUMBERS, torch.tensor([-100.0])),
    ):
        LabelRule(("labels",), problem, 3).check({"labels": labels})
    LabelRule(("labels",), None, 3).check({"pixel_values": torch.zeros(1)})


def test_labels_are_looked_at_in_training_and_evaluation(tmp_path):
    wrong = Labelled(torch.tensor([0, 1, 2, 5, 0, 1, 2, 0]))
    trainer = make_trainer(tmp_path, data=wrong)
    for use in (trainer.train, lambda: trainer.evaluate(wrong), lambda: trainer.predict(wrong)):
        with pytest.raises(ValueError, match=r"label 5 .* is no class"):
            use()
    make_trainer(tmp_path, data=wrong, task_weight=0.0).train()  # they take no part
    some = Labelled(torch.tensor([0, -100, 2, 1, -100, 0, 1, 2]))
    trainer = make_trainer(tmp_path, data=some, kd_weight=1.0, kd_method="dkd")
    trainer.train()
    assert all(np.isfinite(entry["loss"]) for entry in training_logs(trainer))


def test_accuracy_counts_answers():
    logits = np.array([[2.0, 1.0], [0.0, 3.0], [1.0, 0.0]])
    assert accuracy(EvalPrediction(logits, np.array([0, 0, -100]))) == {"accuracy": 0.5}
    assert accuracy(EvalPrediction(logits - 0.5, np.array([[1.0, 0], [0, 1], [0, 0]]))) == {"accuracy": 4 / 6}
    with pytest.raises(ValueError, match="regression"):
        accuracy(EvalPrediction(logits[:, :1], np.array([0.5, 1.0, 2.0])))
