"""A head fitted to a representation that stays as it is."""

import json

import numpy as np
import pytest
import torch
from datasets import ClassLabel
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from hf_reprot.commands.train import parse_recipe, run_recipe
from hf_reprot.hub import rebuild_card
from hf_reprot.models.head import fit_head, linear_head, write_head
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
def test_it_is_the_regression_on_standardised_features(classes, bias):
    features, labels = _features(classes)
    layer = nn.Linear(features.shape[1], classes, bias=bias).double()
    fit = write_head(layer, features, labels, None)
    scale = StandardScaler(with_mean=bias)
    model = make_pipeline(scale, LogisticRegression(C=fit.strength, fit_intercept=bias, max_iter=1000))
    model.fit(features, labels)
    found = torch.softmax(layer(torch.from_numpy(features)), -1).detach().numpy()
    np.testing.assert_allclose(found, model.predict_proba(features), atol=1e-6)
    assert fit.samples == 120
    assert fit.accuracy > 1.5 / classes


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
        (lambda x, y: (x[y < 2], y[y < 2]), "1 of 3 classes have no labelled sample: cup"),
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
    with pytest.raises(ValueError, match=r"one row a sample; this one gets \(2, 4, 3\)"):
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
