"""A head fitted to a representation that stays as it is."""

import copy
import json

import numpy as np
import pytest
import timm
import torch
from datasets import ClassLabel, Dataset, Features, Image
from huggingface_hub import ModelCard
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image as PILImage
from sklearn.linear_model import LogisticRegression
from torch import nn
from transformers import ViTModel

from hf_reprot.commands.train import parse_recipe, run_recipe
from hf_reprot.data.datasets import equal_shares
from hf_reprot.hub import rebuild_card
from hf_reprot.models.head import fit_head, linear_head, write_head
from hf_reprot.models.regression import fit_linear, objective
from tests.cache.samples import photos, processor
from tests.toy_models import Images, resnet, timm_vit, vit
from tests.training.runs import make_trainer, weights_of


def _features(classes: int, count: int = 120, width: int = 6, spread: float = 1.0):
    """Classes that lie apart, in features of different sizes and a constant one."""
    draw = np.random.default_rng(0)
    labels = np.arange(count) % classes
    features = draw.normal(size=(classes, width))[labels] * 2 + spread * draw.normal(size=(count, width))
    return np.concatenate([features * 10.0 ** np.arange(-2, width - 2) + 5, np.full((count, 1), 3.0)], 1), labels


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("bias", [True, False])
def test_it_is_the_regression_on_features_of_one_size(classes, bias):
    features, labels = _features(classes)
    features = (features - features.mean(0)) / np.where(features.std(0) > 0, features.std(0), 1)
    layer = nn.Linear(features.shape[1], classes, bias=bias).double()
    fit = write_head(layer, features, labels, None)
    model = LogisticRegression(C=fit.strength, fit_intercept=bias, max_iter=10_000, tol=1e-8).fit(features, labels)
    found = torch.softmax(layer(torch.from_numpy(features)), -1).detach().numpy()
    np.testing.assert_allclose(found, model.predict_proba(features), atol=0.02)
    assert fit.samples == 120
    assert fit.absent == []
    assert fit.accuracy > 1.5 / classes


@pytest.mark.parametrize("strength", [1e-5, 1e-2, 1.0, 100.0])
@pytest.mark.parametrize("loss", ["softmax", "bernoulli", "squared"])
def test_the_optimum_is_reached(loss, strength):
    draw = np.random.default_rng(3)
    features = draw.normal(size=(90, 30)) @ np.diag(np.logspace(-1, 1, 30)) @ draw.normal(size=(30, 30))
    features = (features - features.mean(0)) / features.std(0)
    scores = features @ draw.normal(size=(30, 4)) + draw.normal(size=(90, 4)) * 4
    targets = {"softmax": np.eye(4)[scores.argmax(1)], "bernoulli": (scores > 1).astype(float), "squared": scores}[loss]
    found = fit_linear(features, targets, loss, [strength])[0]
    w, b = (torch.tensor(x, requires_grad=True) for x in (found.weight, found.bias))
    x, y = torch.from_numpy(features), torch.from_numpy(targets)

    def written_out():
        z = x @ w.T + b
        each = {
            "softmax": lambda: -(y * z.log_softmax(1)).sum(),
            "bernoulli": lambda: nn.functional.binary_cross_entropy_with_logits(z, y, reduction="sum"),
            "squared": lambda: ((z - y) ** 2).sum() / 2,
        }[loss]()
        return each + (w**2).sum() / (2 * strength)

    before = written_out().item()
    assert before == pytest.approx(90 * objective(found.weight, found.bias, features, targets, loss, strength))
    descent = torch.optim.LBFGS(
        [w, b], max_iter=3000, tolerance_grad=1e-10, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure():
        descent.zero_grad()
        value = written_out()
        value.backward()
        return value

    descent.step(closure)
    assert before <= written_out().item() * (1 + 1e-3)
    # A strong penalty leaves tiny weights, and these are right, too.
    error = np.linalg.norm(found.weight - w.detach().numpy()) / np.linalg.norm(w.detach().numpy())
    assert error < 0.1


def test_neurons_that_are_silent_on_the_labelled_samples_are_not_blown_up():
    """A third of the neurons tell the classes; the others are nearly silent on a few samples, not on the rest."""
    draw = np.random.default_rng(0)
    labels = np.arange(600) % 3
    telling = 2 * np.eye(3)[labels][:, np.arange(30) % 3] + draw.normal(size=(600, 30))
    others = draw.normal(size=(600, 60))
    others[:12] *= 0.02
    features = np.concatenate([telling, others], 1)
    layer = nn.Linear(90, 3).double()
    write_head(layer, features[:12], labels[:12], None)
    right = layer(torch.from_numpy(features[12:])).argmax(1).numpy() == labels[12:]
    assert right.mean() > 0.95  # 0.39 where each is divided by its own deviation


def test_the_penalty_is_chosen_by_what_is_left_out():
    weak = write_head(nn.Linear(7, 3), *_features(3, spread=0.2), None)
    noise = np.random.default_rng(1).normal(size=(60, 40))
    strong = write_head(nn.Linear(40, 3), noise, np.arange(60) % 3, None)
    assert strong.strength < weak.strength
    assert weak.accuracy == 1
    alone = write_head(nn.Linear(7, 3), *_features(3, count=3), None)
    assert (alone.strength, alone.accuracy) == (1.0, None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: (x, y + 1), "whole numbers from 0 to 2, got 1 to 3"),
        (lambda x, y: (x[y < 1], y[y < 1]), r"all labelled samples are of one class \(ant\)"),
        (lambda x, y: (x, np.full(len(y), -100)), "no sample has a label"),
        (lambda x, y: (x, np.eye(3)[y]), "one whole number per sample"),
        (lambda x, y: (x * np.nan, y), "not finite"),
        (lambda x, y: (x, y / 2), "whole numbers"),
    ],
)
def test_bad_samples_are_named_and_nothing_is_written(change, message):
    layer = nn.Linear(7, 3)
    before = layer.weight.detach().clone()
    with pytest.raises(ValueError, match=message):
        write_head(layer, *change(*_features(3)), ["ant", "bee", "cup"])
    assert torch.equal(layer.weight, before)


@pytest.mark.parametrize("bias", [True, False])
def test_a_class_without_a_sample_is_named_and_never_answered(bias):
    features, labels = _features(3, spread=0.3)
    features /= features.std(0) + (features.std(0) == 0)
    layer = nn.Linear(7, 5, bias=bias)
    names = ["ant", "bee", "cup", "dog", "elk"]
    some = np.array([0, 2, 4])[labels]
    some[:4] = -100  # not labelled
    fit = write_head(layer, features, some, names)
    assert fit.absent == ["bee", "dog"]
    assert fit.samples == 116
    answers = layer(torch.from_numpy(features).float()).argmax(1).numpy()
    assert (answers[4:] == some[4:]).mean() > 0.95
    wild = layer(100 * torch.randn(500, 7, generator=torch.Generator().manual_seed(0))).argmax(1)
    assert not {1, 3} & set(wild.tolist())


def test_several_labels_a_sample_and_values():
    draw = np.random.default_rng(0)
    features = draw.normal(size=(200, 6))
    wanted = (features[:, :3] > 0.2).astype(float)
    wanted[:, 2] = 0
    layer = nn.Linear(6, 3)
    fit = write_head(layer, features, wanted, ["ant", "bee", "cup"], "multi_label_classification")
    chances = torch.sigmoid(layer(torch.from_numpy(features).float())).detach().numpy()
    assert ((chances > 0.5) == wanted).mean() > 0.95
    assert fit.absent == ["cup"]
    assert fit.accuracy > 0.9
    values = 1000 * features[:, :2] @ np.array([[1.0, 2.0], [0.5, -1.0]]) + 7000
    layer = nn.Linear(6, 2)
    fit = write_head(layer, features, values, None, "regression")
    assert fit.accuracy is None
    assert fit.error < 0.02 * values.std()
    np.testing.assert_allclose(layer(torch.from_numpy(features).float()).detach(), values, atol=0.05 * values.std())
    with pytest.raises(ValueError, match="a column for each of 2 outputs, got 3"):
        write_head(layer, features, wanted, None, "regression")
    with pytest.raises(ValueError, match="0 or 1"):
        write_head(nn.Linear(6, 2), features, values, None, "multi_label_classification")


@pytest.mark.parametrize(("problem", "labels"), [("multi_label_classification", 3), ("regression", 1)])
def test_the_problem_type_of_a_student_decides(problem, labels):
    student, data = vit(labels=labels), Images(40)
    student.config.problem_type = problem
    wanted = torch.nn.functional.one_hot(data.labels, 3).float() if labels == 3 else data.labels.float() * 10
    pairs = [({"pixel_values": data.pixels[i : i + 8]}, wanted[i : i + 8]) for i in range(0, 40, 8)]
    fit = fit_head(student, pairs)
    assert (fit.accuracy is None) == (problem == "regression")
    with torch.no_grad():
        out = student(pixel_values=data.pixels).logits
    if problem == "regression":
        assert out.mean().item() == pytest.approx(wanted.mean().item(), rel=1e-3)
    else:
        torch.testing.assert_close(torch.sigmoid(out).mean(0), wanted.mean(0), atol=0.02, rtol=0)


def test_equal_shares():
    labels = [0] * 50 + [1] * 3 + [2] * 50 + [-1, None, -100]
    chosen = equal_shares(labels, 23, seed=1)
    assert np.bincount([labels[i] for i in chosen]).tolist() == [10, 3, 10]
    assert chosen == sorted(set(chosen))
    assert chosen == equal_shares(labels, 23, seed=1) != equal_shares(labels, 23, seed=2)
    assert len(equal_shares(labels, 1000)) == 103
    assert [labels[i] for i in equal_shares(labels, 2)] in ([0, 1], [0, 2], [1, 2])


def _adapter(student, **options):
    return get_peft_model(student, LoraConfig(r=2, **options))


def test_the_head_of_an_adapter_is_the_one_that_is_saved(tmp_path):
    """Two adapters: the active one's head is fitted, and a plain load gives the same answers."""
    data, start = Images(60), vit()
    student = _adapter(copy.deepcopy(start), target_modules=["q_proj", "v_proj"], modules_to_save=["classifier"])
    student.add_adapter("other", student.peft_config["default"])
    student.set_adapter("other")
    fit_head(student, [({"pixel_values": data.pixels}, data.labels)])
    assert linear_head(student)[0].endswith("classifier.modules_to_save.other")
    student.save_pretrained(tmp_path)
    with torch.no_grad():
        here = student.eval()(pixel_values=data.pixels).logits
        loaded = PeftModel.from_pretrained(copy.deepcopy(start), tmp_path / "other").eval()
        torch.testing.assert_close(loaded(pixel_values=data.pixels).logits, here)
    assert (here.argmax(1) == data.labels).float().mean() > 0.6
    with student.disable_adapter(), pytest.raises(ValueError, match="no part of the active adapter"):
        linear_head(student)


@pytest.mark.parametrize(
    ("make", "options", "name"),
    [
        (vit, {"target_modules": ["q_proj"]}, "classifier"),
        (vit, {"target_modules": "all-linear"}, "classifier"),
        (timm_vit, {"target_modules": ["qkv"]}, "head"),
        (timm_vit, {"target_modules": ["qkv", "head"]}, "head"),
    ],
)
def test_a_head_that_an_adapter_would_lose_is_refused_with_the_line_to_write(make, options, name):
    with pytest.raises(ValueError, match=rf'modules_to_save=\["{name}"\]'):
        linear_head(_adapter(make(), **options))
    path, layer = linear_head(_adapter(make(), target_modules=["qkv", "q_proj"], modules_to_save=[name]))
    assert path.endswith(f"{name}.modules_to_save.default")
    assert layer.weight.requires_grad


def test_a_backbone_without_a_head_is_told_how_to_get_one():
    with pytest.raises(ValueError, match=r"ViTModel has no head .*AutoModelForImageClassification\.from_pretrained"):
        linear_head(ViTModel(vit().config))
    with pytest.raises(ValueError, match="has no head to fit: make it with num_classes=N"):
        linear_head(timm.create_model("resnet10t", num_classes=0))


@pytest.mark.parametrize("make", [vit, resnet, timm_vit], ids=["ViT", "ResNet", "timm"])
def test_only_the_head_of_a_student_changes(make):
    student, data = make(), Images(48)
    before, modes = weights_of(student), [module.training for module in student.modules()]
    batches = [data[i] for i in range(48)]
    pairs = [({"pixel_values": row["pixel_values"][None]}, torch.tensor([int(row["labels"])])) for row in batches]
    fit = fit_head(student, pairs)
    path, layer = linear_head(student)
    changed = [name for name, value in weights_of(student).items() if not torch.equal(value, before[name])]
    assert changed
    assert all(name.startswith(path) for name in changed)
    assert [module.training for module in student.modules()] == modes
    assert not layer._forward_pre_hooks
    assert fit.samples == 48


def test_heads_that_cannot_be_fitted():
    with pytest.raises(ValueError, match="no linear layer that gives the logits"):
        linear_head(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.ModuleList([nn.Linear(4, 3), nn.Linear(4, 3)])

    with pytest.raises(ValueError, match="several heads side by side"):
        linear_head(Two())
    with pytest.raises(ValueError, match=r"one row per sample; this one gets \(2, 4, 3\)"):
        fit_head(
            nn.Sequential(nn.Identity(), nn.Linear(3, 2)), [({"input": torch.rand(2, 4, 3)}, torch.tensor([0, 1]))]
        )


def test_a_student_taught_without_labels_does_the_task(tmp_path):
    data = Images(96)
    trainer = make_trainer(tmp_path, data=data, eval_data=data, task_weight=0.0, max_steps=4)
    trainer.train()
    before = trainer.evaluate()["eval_loss"]
    backbone = {name: value for name, value in weights_of(trainer.model).items() if "classifier" not in name}
    fit = trainer.fit_head()
    assert fit == trainer.head_fit
    assert fit.samples == 96
    assert trainer.evaluate()["eval_loss"] < before
    assert all(torch.equal(value, weights_of(trainer.model)[name]) for name, value in backbone.items())
    few = trainer.fit_head(Images(30))
    assert few.samples == 30
    trainer.save_model()
    record = json.loads((tmp_path / "transfer.json").read_text())
    assert record["head"]["samples"] == 30
    assert "by logistic regression on 30 labelled samples" in rebuild_card(tmp_path).read_text()
    with pytest.raises(ValueError, match="no labels"):
        trainer.fit_head(Images(8, labelled=False))
    shares = trainer.fit_head(Images(96), samples=12)
    assert shares.samples == 12


def test_training_starts_from_a_head_that_was_fitted_first(tmp_path):
    data = Images(96)
    trainer = make_trainer(tmp_path, data=data, eval_data=data, learning_rate=1e-4, max_steps=2)
    new = trainer.evaluate()["eval_loss"]
    trainer.fit_head()
    head = trainer.model.classifier
    probe, probed = copy.deepcopy(head), trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(probed, abs=0.1)
    assert probed < new - 0.3
    torch.testing.assert_close(head.state_dict(), probe.state_dict(), atol=1e-2, rtol=0)
    assert trainer.head_fit is None  # it was trained on: the card speaks of no fitted head
    trainer.save_model()
    assert "logistic regression" not in rebuild_card(tmp_path).read_text()


def _coloured(n: int, *, labelled: bool = True) -> Dataset:
    """Plain images whose brightest colour is their class."""
    draw = np.random.default_rng(n)
    labels = [i % 3 for i in range(n)]
    pixels = draw.integers(0, 60, (n, 16, 16, 3))
    pixels[np.arange(n), :, :, labels] += 180
    columns = {"image": [PILImage.fromarray(p.astype(np.uint8)) for p in pixels]}
    if not labelled:
        return Dataset.from_dict(columns, features=Features({"image": Image()}))
    features = Features({"image": Image(), "label": ClassLabel(names=["red", "green", "blue"])})
    return Dataset.from_dict(columns | {"label": labels}, features=features)


def _accuracy(prediction):
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def _results(folder):
    content = ModelCard.load(folder / "README.md").data.to_dict()
    return [r for model in content.get("model-index", []) for r in model["results"]]


def test_images_without_labels_and_then_a_head_on_labelled_ones_in_other_columns(tmp_path):
    labelled = _coloured(30).rename_columns({"image": "photo", "label": "fine_label"})
    made = {"processing_class": processor(), "compute_metrics": _accuracy}
    trainer = make_trainer(
        tmp_path, data=_coloured(24, labelled=False), eval_data=_coloured(18), trainer=made, task_weight=0.0
    )
    trainer.train()
    fit = trainer.fit_head(labelled)
    assert fit.samples == 30
    trainer.create_model_card()
    text = (tmp_path / "README.md").read_text()
    assert "| Job | a representation learned without labels, then a head on labelled samples |" in text
    assert "It was not evaluated since its head was fitted" in text
    assert _results(tmp_path) == []
    measured = trainer.evaluate()["eval_accuracy"]
    assert measured > 0.9
    trainer.create_model_card()
    metrics = {m["type"]: m["value"] for r in _results(tmp_path) for m in r["metrics"]}
    assert metrics["accuracy"] == measured
    trainer.train()  # another representation: what was fitted is of no head that there is
    assert trainer.head_fit is None
    assert trainer.collect_record().job == "representation"


def test_every_set_has_its_own_result_and_other_data_has_none(tmp_path):
    sets = {"near": _coloured(9), "near_far": _coloured(12)}
    made = {"processing_class": processor(), "compute_metrics": _accuracy}
    trainer = make_trainer(tmp_path, data=_coloured(24), eval_data=sets, trainer=made)
    trainer.train()
    trainer.fit_head()
    own = trainer.evaluate()
    red = _coloured(12).filter(lambda row: row["label"] == 0)
    trainer.evaluate(red)
    trainer.create_model_card()
    found = {r["dataset"]["name"]: {m["type"]: m["value"] for m in r["metrics"]} for r in _results(tmp_path)}
    assert set(found) == {"near", "near_far"}
    for name, metrics in found.items():
        assert metrics["accuracy"] == own[f"eval_{name}_accuracy"]
        assert set(metrics) == {"accuracy", "loss"}


def test_a_recipe_fits_the_head_to_some_samples(tmp_path):
    data = photos(36).cast_column("label", ClassLabel(names=["a", "b", "c"]))
    data.save_to_disk(str(tmp_path / "data"))
    student = vit()
    student.save_pretrained(tmp_path / "student")
    processor().save_pretrained(tmp_path / "student")
    resnet(seed=1).save_pretrained(tmp_path / "teacher")
    settings = {
        **{"student": tmp_path / "student", "teacher": tmp_path / "teacher", "dataset": tmp_path / "data"},
        **{"output_dir": tmp_path / "out", "max_steps": 2, "task_weight": 0, "use_cpu": "true", "report_to": "none"},
        **{"fit_head": "true", "head_samples": 12, "disable_tqdm": "true"},
    }
    arguments = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    result = run_recipe(*parse_recipe(arguments))
    assert result.trainer.head_fit.samples == 12
    assert json.loads((tmp_path / "out" / "transfer.json").read_text())["head"]["samples"] == 12
    del arguments[arguments.index("--fit_head") :][:2]
    rest = [a for a in arguments if a not in ("--fit_head", "true")]
    with pytest.raises(ValueError, match="set fit_head"):
        run_recipe(*parse_recipe([*rest[: rest.index("--use_cpu")], "--head_samples", "12"]))
