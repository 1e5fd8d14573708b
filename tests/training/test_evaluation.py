"""An evaluation of a run without labels says how good the representation is."""

import copy

import pytest
import torch

from hf_reprot.features.activations import pooled_neurons
from hf_reprot.features.architecture import last_layer
from hf_reprot.features.taps import Taps
from hf_reprot.hub.record import RunRecord
from hf_reprot.losses import GaussianTransport
from hf_reprot.models.probing import measure_features
from tests.toy_models import Images, resnet, vit
from tests.training.runs import make_trainer

WITHOUT = {"task_weight": 0.0, "ot_weight": 1.0}


def _features(model, data):
    taps = Taps(model, [last_layer(model)])
    model.eval()
    with torch.no_grad(), taps.recording():
        model(data.pixels)
    (layer,) = taps.take().values()
    taps.close()
    return pooled_neurons(layer)


def test_the_measures_are_those_of_the_frozen_student_and_teacher(tmp_path):
    data, student, teacher = Images(50, seed=3), vit(), resnet(seed=1)
    trainer = make_trainer(tmp_path, model=student, teacher=teacher, eval_data=data, **WITHOUT)
    metrics = trainer.evaluate()
    ours, theirs = _features(student, data), _features(teacher, data)
    expected = measure_features(ours, data.labels).metrics()
    expected |= {f"teacher_{name}": v for name, v in measure_features(theirs, data.labels).metrics().items()}
    expected["ot_loss"] = float(GaussianTransport()(ours, theirs).loss)
    for name, value in expected.items():
        assert metrics[f"eval_{name}"] == pytest.approx(value, abs=1e-4), name
    assert trainer.state.log_history[-1]["eval_knn_accuracy"] == metrics["eval_knn_accuracy"]


def test_nothing_of_the_model_or_of_the_run_changes(tmp_path):
    runs = []
    for steps in (None, 1):
        trainer = make_trainer(
            tmp_path / str(steps),
            eval_data=Images(20, seed=3),
            plan_momentum=0.9,
            max_steps=3,
            **({"eval_strategy": "steps", "eval_steps": 1} if steps else {}),
            **WITHOUT,
        )
        trainer.train()
        runs.append(trainer)
    for a, b in zip(*(run.model.state_dict().values() for run in runs), strict=True):
        assert torch.equal(a, b)
    assert not any(module._forward_hooks for module in runs[1].model.modules())


def test_the_best_checkpoint_is_the_one_with_the_best_neighbours(tmp_path):
    settings = {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 1, "save_steps": 1, "max_steps": 3}
    trainer = make_trainer(tmp_path, eval_data=Images(40, seed=3), load_best_model_at_end=True, **settings, **WITHOUT)
    assert (trainer.args.metric_for_best_model, trainer.args.greater_is_better) == ("knn_accuracy", True)
    trainer.train()
    found = [e["eval_knn_accuracy"] for e in trainer.state.log_history if "eval_knn_accuracy" in e]
    assert len(found) == 3
    assert trainer.state.best_metric == max(found)
    unlabelled = make_trainer(
        tmp_path / "u", eval_data=Images(8, labelled=False), load_best_model_at_end=True, **settings, **WITHOUT
    )
    assert (unlabelled.args.metric_for_best_model, unlabelled.args.greater_is_better) == ("ot_loss", False)
    unlabelled.train()
    assert unlabelled.state.best_metric > 0


def test_a_best_checkpoint_that_nothing_tells_is_refused(tmp_path):
    settings = {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 1, "save_steps": 1}
    with pytest.raises(ValueError, match="load_best_model_at_end needs a metric, and nothing is measured"):
        make_trainer(
            tmp_path,
            eval_data=Images(8, labelled=False),
            load_best_model_at_end=True,
            evaluate_representation=False,
            **settings,
            **WITHOUT,
        )


def test_a_teacher_is_measured_once_for_the_same_data(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, eval_data=Images(20, seed=3), **WITHOUT)
    calls = []
    from hf_reprot.training import evaluation

    monkeypatch.setattr(evaluation, "measure_features", lambda *a: calls.append(1) or measure_features(*a))
    first, second = trainer.evaluate(), trainer.evaluate()
    assert len(calls) == 3  # the student twice
    assert first["eval_teacher_knn_accuracy"] == second["eval_teacher_knn_accuracy"]
    other = trainer.evaluate(Images(20, seed=9))
    assert len(calls) == 5
    assert "eval_teacher_knn_accuracy" in other


def test_several_sets_and_several_teachers(tmp_path):
    sets = {"near": Images(20, seed=3), "far": Images(20, seed=4), "none": Images(8, labelled=False)}
    teachers = [resnet(seed=1), vit(seed=2)]
    trainer = make_trainer(tmp_path, teacher=teachers, eval_data=sets, **WITHOUT)
    metrics = trainer.evaluate()
    names = trainer.transfer.layers.teacher_names
    for part in ("near", "far"):
        assert {f"eval_{part}_teacher_knn_accuracy/{name}" for name in names} <= set(metrics)
        own = measure_features(_features(trainer.model, sets[part]), sets[part].labels)
        assert metrics[f"eval_{part}_knn_accuracy"] == pytest.approx(own.knn_accuracy)
    assert "eval_none_ot_loss" in metrics
    assert "eval_none_knn_accuracy" not in metrics
    record = trainer.collect_record()
    near = next(e for e in record.evaluations if e.data.name == "near")
    assert near.teachers[1]["knn_accuracy"] == metrics[f"eval_near_teacher_knn_accuracy/{names[1]}"]
    assert not any(name.startswith("teacher") for name in near.metrics)


def test_off_with_labels_and_on_by_request(tmp_path):
    data = Images(20, seed=3)
    assert "eval_knn_accuracy" not in make_trainer(tmp_path, eval_data=data).evaluate()
    assert "eval_knn_accuracy" in make_trainer(tmp_path, eval_data=data, evaluate_representation=True).evaluate()
    quiet = make_trainer(tmp_path, eval_data=data, evaluate_representation=False, **WITHOUT)
    assert "eval_ot_loss" not in quiet.evaluate()


def test_every_position_is_a_sample(tmp_path):
    trainer = make_trainer(tmp_path, eval_data=Images(20, seed=3), ot_positions="all", **WITHOUT)
    assert trainer.evaluate()["eval_ot_loss"] > 0


def test_the_card_shows_the_teacher_beside(tmp_path):
    trainer = make_trainer(tmp_path, eval_data=Images(20, seed=3), **WITHOUT)
    metrics = trainer.evaluate()
    trainer.save_model()
    trainer.create_model_card()
    assert RunRecord.load(tmp_path).evaluations[0].teachers[0]["knn_accuracy"] == metrics["eval_teacher_knn_accuracy"]
    text = (tmp_path / "README.md").read_text()
    row = next(line for line in text.splitlines() if "knn_accuracy |" in line)
    assert row.count("|") == 5
    assert f"{metrics['eval_teacher_knn_accuracy']:.4g}"[:5] in row


def test_a_backbone_trains_with_a_label_column(tmp_path):
    backbone = copy.deepcopy(vit().base_model)
    trainer = make_trainer(tmp_path, model=backbone, eval_data=Images(20, seed=3), **WITHOUT)
    before = copy.deepcopy(backbone.state_dict())
    trainer.train()
    assert any(not torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    assert trainer.evaluate()["eval_knn_accuracy"] >= 0
    for setting in ({"task_weight": 1.0}, {"task_weight": 0.0, "kd_weight": 1.0}):
        with pytest.raises(ValueError, match="ViTModel is a backbone: it has no"):
            make_trainer(tmp_path, model=backbone, **setting)
