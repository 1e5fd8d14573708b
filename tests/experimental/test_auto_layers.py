"""`layer_pairs="auto"`: found before the first step, anew every so often, and the same after a resume."""

import copy

import pytest
import torch
from safetensors.torch import load_file

from hf_reprot.experimental.auto_layers import AutoLayersTransport
from hf_reprot.hub.card import rebuild_card
from hf_reprot.hub.record import RunRecord
from tests.toy_models import Images, resnet, vit
from tests.training.runs import make_trainer, training_logs, weights_of
from tests.training.test_resume import RUN, assert_same_run, reshuffled

AUTO = {"layer_pairs": "auto", "layer_samples": 16, "max_steps": 4}


def permuted_vit(model, seed=5):
    """The same function with the neurons of the residual stream in another order."""
    model, order = copy.deepcopy(model), torch.randperm(24, generator=torch.Generator().manual_seed(seed))
    for name, parameter in model.named_parameters():
        for axis, size in enumerate(parameter.shape):
            stream = size == 24 and not any(part in name for part in ("q_proj", "k_proj", "v_proj", "o_proj"))
            inner = size == 24 and (
                (any(part in name for part in ("q_proj.weight", "k_proj.weight", "v_proj.weight")) and axis == 1)
                or ("o_proj.weight" in name and axis == 0)
                or "o_proj.bias" in name
            )
            if stream or inner:
                parameter.data = parameter.data.index_select(axis, order)
    return model


def test_a_permuted_copy_is_matched_layer_by_layer(tmp_path):
    teacher = vit(layers=3, seed=1)
    student = permuted_vit(teacher)
    pixels = Images(4).pixels
    torch.testing.assert_close(student(pixels).logits, teacher(pixels).logits, rtol=0, atol=1e-5)
    trainer = make_trainer(tmp_path, model=student, teacher=teacher, learning_rate=0.0, **{**AUTO, "layer_samples": 32})
    trainer.train()
    assert [(pair.student, pair.teacher) for pair in trainer.transfer.pairs] == [
        (name, name) for name in ("vit.layers.0", "vit.layers.1", "vit.layers.2", "classifier:input")
    ]
    log = training_logs(trainer)[-1]
    assert log["layers_depth_correlation"] == pytest.approx(1)
    assert log["layers_entropy"] == pytest.approx(0)
    assert log["layers_value"] < 0.05
    assert len([name for name in log if name.startswith("ot_loss/")]) == 4


def test_plans_are_made_when_they_are_due(tmp_path, monkeypatch):
    steps = []
    trainer = make_trainer(tmp_path, gradient_accumulation_steps=2, layer_refresh_steps=3, **{**AUTO, "max_steps": 7})
    solve = trainer.transfer.find(AutoLayersTransport).auto.solve

    def counted(*tables):
        steps.append(trainer.state.global_step)
        assert len(tables[0][0]) == 16
        solve(*tables)

    monkeypatch.setattr(trainer.transfer.find(AutoLayersTransport).auto, "solve", counted)
    trainer.train()
    assert steps == [0, 3, 6]


def test_measuring_changes_nothing_but_the_pairs(tmp_path):
    """Data, dropout and running averages are those of a run that names the same pairs."""
    settings = {"plan_momentum": 0.9, "max_steps": 3, "layer_samples": 16}

    def student():
        model = resnet(seed=3)
        model.classifier.insert(1, torch.nn.Dropout(0.3))
        return model

    auto = make_trainer(tmp_path / "a", model=student(), teacher=vit(), layer_pairs="auto", **settings)
    auto.train()
    pairs = [{"student": p.student, "teacher": p.teacher, "weight": p.weight} for p in auto.transfer.pairs]
    named = make_trainer(tmp_path / "b", model=student(), teacher=vit(), layer_pairs=pairs, **settings)
    named.train()
    for name, value in weights_of(named.model).items():
        torch.testing.assert_close(auto.model.state_dict()[name], value, msg=name)


def test_carried_moments_of_pairs_that_stay_go_on(tmp_path):
    trainer = make_trainer(tmp_path, plan_momentum=0.9, **{**AUTO, "max_steps": 2})
    trainer.train()
    layers, term = trainer.transfer.layers, trainer.transfer.find(AutoLayersTransport)
    known, kept = term.running[0], layers.pairs[0]
    other = term.auto.first_pairs()[0]
    layers.replace([other, kept] if other != kept else [kept])
    assert term.running[-1] is known
    assert known.moments.count > 0


@pytest.mark.parametrize("step", [3, 6])  # in between, and where a new plan is due
def test_resumes_exactly(tmp_path, step):
    settings = {**RUN, **AUTO, "layer_refresh_steps": 2, "max_steps": 7, "l2sp_weight": 0.0}
    whole = make_trainer(tmp_path / "whole", model=vit(layers=3), **settings)
    whole.train()
    resumed = make_trainer(tmp_path / "resumed", model=reshuffled(vit(layers=3)), **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
    assert_same_run(resumed, whole)
    assert resumed.transfer.pairs == whole.transfer.pairs
    plan = load_file(tmp_path / "whole" / f"checkpoint-{step}" / "transfer_state.safetensors")["layers.0.plan"]
    assert plan.sum().item() == pytest.approx(1)


def test_a_checkpoint_of_other_layers_is_refused(tmp_path):
    make_trainer(tmp_path / "auto", save_strategy="steps", save_steps=2, **AUTO).train()
    trainer = make_trainer(tmp_path, teacher=resnet(seed=1, widths=(8, 12, 12)), **AUTO)
    with pytest.raises(ValueError, match="between other layers"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "auto" / "checkpoint-2"))
    make_trainer(tmp_path / "last", save_strategy="steps", save_steps=2).train()
    with pytest.raises(ValueError, match="holds no plan between layers"):
        make_trainer(tmp_path, **AUTO).train(resume_from_checkpoint=str(tmp_path / "last" / "checkpoint-2"))


def test_frozen_layers_take_no_part(tmp_path):
    student = vit(layers=3)
    for part in (student.vit.embeddings, student.vit.layers[0]):
        part.requires_grad_(False)
    trainer = make_trainer(tmp_path, model=student, **AUTO)
    trainer.train()
    assert trainer.transfer.find(AutoLayersTransport).auto.student_layers == [
        "vit.layers.1",
        "vit.layers.2",
        "classifier:input",
    ]
    assert "vit.layers.0" not in {pair.student for pair in trainer.transfer.pairs}


def test_settings_reach_the_plan(tmp_path):
    teachers = [resnet(seed=1), vit(layers=5, seed=2)]
    settings = {**AUTO, "max_steps": 1, "layer_keep": 1}
    trainer = make_trainer(tmp_path, model=vit(layers=3), teacher=teachers, layer_order_prior=50.0, **settings)
    trainer.train()
    pairs = trainer.transfer.pairs
    assert [sum(pair.teacher_index == i for pair in pairs) for i in (0, 1)] == [4, 4]
    assert all(plan.depth_correlation > 0.9 for plan in trainer.transfer.layer_plans)
    assert sum(pair.weight for pair in pairs) == pytest.approx(2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layer_pairs": ["auto", "last"]}, "stands alone"),
        ({"ot_method": "identity"}, "layers of all widths"),
        ({"ot_cost": "learned"}, "ot_cost='learned'"),
        ({"select_k": 3}, "select_k=3"),
        ({"feature_loss": "attention"}, "feature_loss='attention'"),
        ({"layer_refresh_steps": 0}, "layer_refresh_steps must be a finite number at least 1"),
        ({"layer_keep": 0}, "layer_keep"),
        ({"layer_order_prior": -1.0}, "layer_order_prior"),
        ({"layer_samples": 1}, "layer_samples"),
    ],
)
def test_what_it_does_not_go_with(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, **{**AUTO, **settings})


def test_a_sharded_student_is_refused(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, **AUTO)
    monkeypatch.setattr(trainer, "is_deepspeed_enabled", True)
    with pytest.raises(ValueError, match="FSDP and DeepSpeed"):
        trainer._build_objective()


def test_the_card_shows_the_plan(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_reprot.training.publishing.measure_speeds", lambda trainer: {})
    trainer = make_trainer(tmp_path, model=vit(layers=3), **AUTO)
    trainer.train()
    trainer.save_model()
    trainer.create_model_card()
    record = RunRecord.load(tmp_path)
    (facts,) = record.layer_plans
    torch.testing.assert_close(torch.tensor(facts.plan), trainer.transfer.layer_plans[0].plan)
    assert facts.student_layers[-1] == "classifier:input"
    assert sum(pair.picture is not None for pair in record.pairs) == min(4, len(record.pairs))
    assert sum(pair.weight for pair in record.pairs) == pytest.approx(1)
    (tmp_path / facts.picture).unlink()
    card = rebuild_card(tmp_path).read_text()
    assert f"({facts.picture})" in card
    assert (tmp_path / facts.picture).is_file()
    assert "found by transport between layers" in card
