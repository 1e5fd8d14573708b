"""A whole training step of the objective, in every mode: nothing waits for an accelerator once its shapes are known."""

import pytest
import torch

from hf_reprot.models.teacher import Teacher
from tests.accelerator import Copies, playing_accelerator, without_waits  # noqa: F401
from tests.toy_models import batch, resnet, vit
from tests.training.runs import make_trainer
from tests.training.test_text import LENGTH, Texts, _student, _teacher

LAYERS = {"layer_pairs": ["vit.layers.1=resnet.encoder.stages.0"]}
TOKENS = {"layer_pairs": ["vit.layers.0=vit.layers.0", "vit.layers.1=vit.layers.1"]}


def parts_of_the_classes():
    return [Teacher(resnet(2, seed=1), classes=[1, 0]), Teacher(resnet(2, seed=2), classes=[2, 1], weight=2.0)]


# Name -> (teacher, settings)
IMAGES = {
    "pooled": (resnet, {}),
    "every position": (resnet, LAYERS | {"ot_positions": "all"}),
    "stages": (resnet, {"layer_pairs": "stages"}),
    **{f"tokens {name}": (vit, TOKENS | {"ot_tokens": name}) for name in ("class", "patches", "all")},
    **{
        f"every position, {name}": (vit, TOKENS | {"ot_tokens": name, "ot_positions": "all"})
        for name in ("auto", "all")
    },
    **{
        name: (resnet, {"ot_method": name, "plan_momentum": momentum})
        for name, momentum in (("proximal", 0.0), ("random", 0.0), ("independent", 0.0), ("gaussian", 0.0))
    },
    "identity": (vit, TOKENS | {"ot_method": "identity"}),
    "momentum": (resnet, {"plan_momentum": 0.9}),
    "gaussian, momentum": (resnet, {"ot_method": "gaussian", "plan_momentum": 0.9}),
    "debiased, raw": (resnet, {"ot_debiased": True, "ot_standardize": False, "ot_dead_neurons": "ignore"}),
    "logits": (resnet, {"kd_weight": 1.0}),
    "labels left out": (resnet, {"task_weight": 0.0, "kd_weight": 1.0}),
    "two teachers": (lambda: [resnet(seed=1), resnet(seed=2)], {"kd_weight": 1.0, "ot_standardize": False}),
    "teachers of some classes": (parts_of_the_classes, {"kd_weight": 1.0}),
    "the same, label-free": (parts_of_the_classes, {"kd_weight": 1.0, "task_weight": 0.0}),
    "the same, every position": (parts_of_the_classes, LAYERS | {"ot_positions": "all"}),
    "fitnet, L2-SP": (resnet, {"feature_loss": "fitnet", "l2sp_weight": 0.1}),
}
TEXTS = {
    "pooled": {},
    "every position": {"ot_positions": "all", "layer_pairs": "stages"},
    "every position, gaussian": {"ot_positions": "all", "ot_method": "gaussian", "layer_pairs": "stages"},
    "every position, momentum": {"ot_positions": "all", "plan_momentum": 0.9},
    "class": {"ot_tokens": "class", "layer_pairs": "stages"},
}


def whole_step(objective, inputs, copies, known):
    """Student, teachers, terms and gradients; of texts the terms alone: what a model of texts reads is its own."""
    texts = "input_ids" in inputs
    objective.student.zero_grad(set_to_none=True)
    with without_waits(copies, known and not texts):
        with objective.recording():
            outputs = objective.student(**inputs)
        task = outputs.loss if objective.config.task_weight > 0 else None
        found = objective.batch(inputs, outputs.logits, task=task)
    with without_waits(copies, known):
        loss = objective(found)
        loss.loss.backward()
    return loss


@pytest.mark.parametrize("name", IMAGES)
def test_images(name, accelerator, tmp_path):
    teacher, settings = IMAGES[name]
    trainer = make_trainer(tmp_path, teacher=teacher(), **settings)
    steps(trainer.transfer, batch(8))


@pytest.mark.parametrize("name", TEXTS)
def test_texts(name, accelerator, tmp_path):
    trainer = make_trainer(tmp_path, model=_student(), teacher=_teacher(), data=Texts(), kd_weight=1.0, **TEXTS[name])
    data = Texts()
    steps(trainer.transfer, torch.utils.data.default_collate([data[i] for i in range(8)]))


def steps(objective, inputs):
    copies = Copies()
    objective.student.train()
    for known in (False, False, False, True):  # the first calls of a shape may ask how many sweeps it takes
        loss = whole_step(objective, inputs, copies, known)
    assert bool(loss.loss.isfinite())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in objective.student.parameters())


@pytest.mark.parametrize("method", ["sinkhorn", "gaussian"])
def test_padding_that_stays_in_is_as_padding_left_out(method, tmp_path):
    """Tokens that do not count change neither the loss nor any gradient, to rounding."""
    found = []
    for reads in (True, False):
        trainer = make_trainer(
            tmp_path, model=_student(), teacher=_teacher(), data=Texts(), ot_positions="all", ot_method=method,
            ot_tolerance=1e-6, layer_pairs="stages",
        )  # fmt: skip
        objective, data = trainer.transfer, Texts()
        (term,) = (term for term in objective.terms if term.name == "transport")
        term.reads_neurons = reads
        inputs = torch.utils.data.default_collate([data[i] for i in range(16)])
        assert 0 < int(inputs["attention_mask"].sum()) < 16 * LENGTH
        loss = whole_step(objective, inputs, Copies(), False)
        gradients = [p.grad for p in objective.student.parameters() if p.grad is not None]
        found.append((loss.loss.item(), gradients, loss.logs))
    (left_out, expected, logs), (left_in, gradients, others) = found
    assert left_in == pytest.approx(left_out, rel=1e-4)
    assert {name: float(value) for name, value in others.items() if name != "ot_iterations"} == pytest.approx(
        {name: float(value) for name, value in logs.items() if name != "ot_iterations"}, rel=2e-3, abs=1e-4
    )
    scale = max(float(x.norm()) for x in expected)
    assert max(float((x - y).norm()) for x, y in zip(gradients, expected, strict=True)) < 1e-3 * scale
