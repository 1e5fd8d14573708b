"""Gradient accumulation is one large batch, whatever the form of the loss and the sizes of the micro-batches."""

import copy

import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import Dataset
from transformers import BertConfig, BertForTokenClassification, TrainerCallback

from tests.toy_models import IMAGE, resnet, vit
from tests.training.runs import make_trainer, training_logs


class Rows(Dataset):
    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


class Kept(TrainerCallback):
    """The gradient of every step."""

    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        self.steps.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})


def images(labels):
    pixels = torch.randn(len(labels), 3, IMAGE, IMAGE, generator=torch.Generator().manual_seed(3))
    return Rows([{"pixel_values": x, "labels": y} for x, y in zip(pixels, labels, strict=True)])


def single_label():
    return vit(), images(torch.arange(10) % 3), lambda z, y: F.cross_entropy(z, y)


def ignored_labels():
    """The second micro-batch of two has no label at all."""
    labels = torch.tensor([0, -100, -100, -100, 2, 1, 0, 1, -100, 2])
    return vit(), images(labels), lambda z, y: F.cross_entropy(z, y, ignore_index=-100)


def multi_label():
    student = vit()
    student.config.problem_type = "multi_label_classification"
    labels = (torch.rand(10, 3, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    return student, images(labels), F.binary_cross_entropy_with_logits


def regression():
    student = vit(labels=1)
    student.config.problem_type = "regression"
    return student, images(torch.linspace(-100, 100, 10)), lambda z, y: F.mse_loss(z.squeeze(-1), y)


def tokens():
    """Rows with 1 to 6 labelled tokens."""
    torch.manual_seed(0)
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    student = BertForTokenClassification(BertConfig(vocab_size=30, num_labels=3, **small, **off))
    draw, rows = torch.Generator().manual_seed(1), []
    for i in range(10):
        labels = torch.randint(0, 3, (6,), generator=draw)
        labels[1 + i * 5 // 9 :] = -100
        rows.append({"input_ids": torch.randint(0, 30, (6,), generator=draw), "labels": labels})
    return student, Rows(rows), lambda z, y: F.cross_entropy(z.flatten(0, 1), y.flatten())


FORMS = [single_label, ignored_labels, multi_label, regression, tokens]


def sum_over_items(outputs, labels, num_items_in_batch=None):
    return F.cross_entropy(outputs["logits"], labels, reduction="sum") / num_items_in_batch


def mean(outputs, labels, num_items_in_batch=None):
    return F.cross_entropy(outputs["logits"], labels)


def float_of_items(outputs, labels, num_items_in_batch=None):
    return F.cross_entropy(outputs["logits"], labels, reduction="sum") * (1 / float(num_items_in_batch))


def steps_by_hand(student, data, loss, batches):
    """The gradient of the mean over each whole batch, with the student as it was made, and its value."""
    found = []
    for rows in batches:
        model = copy.deepcopy(student).train()
        batch = torch.utils.data.default_collate([data[i] for i in rows])
        labels = batch.pop("labels")
        value = loss(model(**batch).logits, labels)
        value.backward()
        found.append((value.item(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}))
    return found


def check(folder, form, size, accumulation, **trainer):
    student, data, loss = form()
    whole = size * accumulation
    batches = [range(i, min(i + whole, 10)) for i in range(0, 10, whole)]
    expected, kept = steps_by_hand(student, data, loss, batches), Kept()
    run = make_trainer(
        folder,
        model=student,
        teacher=[],
        data=data,
        ot_weight=0.0,
        learning_rate=0.0,
        max_steps=-1,
        num_train_epochs=1,
        per_device_train_batch_size=size,
        gradient_accumulation_steps=accumulation,
        train_sampling_strategy="sequential",
        trainer={"callbacks": [kept], **trainer},
    )
    run.train()
    assert len(kept.steps) == len(expected)
    for entry, gradients, (value, theirs) in zip(training_logs(run), kept.steps, expected, strict=True):
        assert entry["loss"] == pytest.approx(value, rel=1e-4)
        assert entry["task_loss"] == pytest.approx(value, rel=1e-4)
        scale = max(g.norm() for g in theirs.values())
        for name, gradient in theirs.items():
            assert (gradients[name] - gradient).norm() <= 1e-4 * scale, name


# 10 rows in micro-batches of 2, four of them and one; of 4, 4 and 2; of 3, 3, 3 and 1.
@pytest.mark.parametrize(("size", "accumulation"), [(2, 4), (4, 3)])
@pytest.mark.parametrize("form", FORMS)
def test_a_step_is_one_large_batch(tmp_path, form, size, accumulation):
    check(tmp_path, form, size, accumulation)


@pytest.mark.parametrize(("size", "accumulation"), [(4, 1), (3, 4)])
@pytest.mark.parametrize("custom", [sum_over_items, mean, float_of_items])
def test_a_custom_loss(tmp_path, custom, size, accumulation):
    check(tmp_path, single_label, size, accumulation, compute_loss_func=custom)


def test_a_custom_loss_gets_what_the_stock_trainer_gives(tmp_path):
    seen = []

    def loss(outputs, labels, num_items_in_batch=None):
        seen.append(num_items_in_batch)
        return sum_over_items(outputs, labels, num_items_in_batch)

    check(tmp_path, ignored_labels, 3, 4, compute_loss_func=loss)
    assert [int(n) for n in seen] == [6, 6, 6, 6]  # labels of the whole step that are not ignored


def test_distillation_of_micro_batches_of_different_sizes(tmp_path):
    student, teacher, data = vit(), resnet(seed=1).eval(), images(torch.arange(10) % 3)
    batch = torch.utils.data.default_collate([data[i] for i in range(10)])
    model = copy.deepcopy(student).train()
    with torch.no_grad():
        target = (teacher(batch["pixel_values"]).logits / 2).softmax(-1)
    loss = 4 * F.kl_div((model(batch["pixel_values"]).logits / 2).log_softmax(-1), target, reduction="batchmean")
    loss.backward()
    kept = Kept()
    run = make_trainer(
        tmp_path,
        model=student,
        teacher=teacher,
        data=data,
        task_weight=0.0,
        ot_weight=0.0,
        kd_weight=1.0,
        max_steps=1,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=3,
        train_sampling_strategy="sequential",
        trainer={"callbacks": [kept]},
    )
    run.train()
    assert training_logs(run)[0]["kd_loss"] == pytest.approx(loss.item(), rel=1e-4)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(kept.steps[0][name], parameter.grad, rtol=1e-3, atol=1e-5, msg=name)
