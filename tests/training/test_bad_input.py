"""A user's mistakes end at construction, with the value, what is legal, and what is nearest."""

import pytest
import timm
import torch

from hf_reprot import OTTransferConfig, OTTransferTrainer
from hf_reprot.models.student import create_timm_student
from tests.toy_models import Images, resnet, vit
from tests.training.runs import make_config, make_trainer, training_logs


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layer_pairs": "encoder.stage.1=encoder.stages.1"}, r"encoder\.stage\.1"),
        ({"layer_pairs": "vit.layers.7=encoder.stages.1"}, r"vit\.layers\.1"),
        ({"layer_pairs": "lst"}, "Did you mean 'last'"),
        ({"layer_pairs": []}, "layer_pairs is empty"),
        ({"ot_method": "sinkhon"}, "Did you mean 'sinkhorn'"),
        ({"ot_method": "identity"}, "24 student and 12 teacher neurons"),
        ({"ot_cost": "cosine"}, "'sqeuclidean'"),
        ({"ot_positions": "every"}, "'pooled', 'all'"),
        ({"ot_tokens": "cls"}, "'class'"),
        ({"ot_tokens": "class", "ot_positions": "all"}, "ot_positions='pooled'"),
        ({"ot_weight": -1.0}, "ot_weight must be a finite number at least 0, got -1.0"),
        ({"task_weight": float("nan")}, "task_weight"),
        ({"kd_weight": -0.1}, "kd_weight"),
        ({"l2sp_weight": -0.1}, "l2sp_weight"),
        ({"kd_temperature": 0.0}, "kd_temperature"),
        ({"plan_momentum": 1.0}, r"plan_momentum must lie in \[0, 1\)"),
        ({"ot_relative_epsilon": 0.0}, "ot_relative_epsilon"),
        ({"ot_max_iterations": 0}, "ot_max_iterations"),
        ({"ot_debiased": True, "ot_method": "exact"}, "ot_debiased"),
        ({"task_weight": 0.0, "ot_weight": 0.0}, "nothing to learn from"),
        ({"per_device_train_batch_size": 1}, "per_device_train_batch_size to 2"),
    ],
)
def test_settings(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, **settings)


def test_logits_that_do_not_fit(tmp_path):
    with pytest.raises(ValueError, match="5 classes and the student 3"):
        make_trainer(tmp_path, teacher=resnet(labels=5), kd_weight=1.0)
    with pytest.raises(ValueError, match="no head"):
        make_trainer(tmp_path, teacher=timm.create_model("resnet10t", num_classes=0), kd_weight=1.0)


def test_no_teacher(tmp_path):
    with pytest.raises(ValueError, match="give teacher_model"):
        OTTransferTrainer(model=vit(), args=make_config(tmp_path), train_dataset=Images())
    OTTransferTrainer(model=vit(), args=make_config(tmp_path, ot_weight=0.0), train_dataset=Images()).train()


def test_a_hub_id_that_does_not_exist(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="nobody/no-such-model"):
        make_trainer(tmp_path, teacher="nobody/no-such-model")
    with pytest.raises(ValueError, match="no-such-folder"):
        make_trainer(tmp_path, teacher=str(tmp_path / "no-such-folder"))
    with pytest.raises(TypeError, match="int"):
        make_trainer(tmp_path, teacher=3)


def test_an_image_size_that_the_teacher_cannot_take(tmp_path):
    from hf_reprot import Teacher

    teacher = Teacher(vit(seed=1, image=32), resize=False)
    with pytest.raises(ValueError, match="16"):
        make_trainer(tmp_path, teacher=teacher)


def test_a_frozen_layer_that_nothing_could_train(tmp_path):
    student = vit()
    student.vit.requires_grad_(False)
    with pytest.raises(RuntimeError, match="classifier:input"):
        make_trainer(tmp_path, model=student)


def test_settings_of_another_kind(tmp_path):
    from transformers import TrainingArguments

    with pytest.raises(TypeError, match="OTTransferConfig"):
        OTTransferTrainer(model=vit(), teacher_model=resnet(), args=TrainingArguments(output_dir=str(tmp_path)))
    with pytest.raises(TypeError):
        OTTransferConfig(output_dir=str(tmp_path), ot_wieght=1.0)


def test_a_small_batch_is_warned_about(tmp_path, caplog):
    make_trainer(tmp_path)
    assert "plan_momentum" in caplog.text
    caplog.clear()
    make_trainer(tmp_path, plan_momentum=0.9)
    make_trainer(tmp_path, ot_method="random")
    assert "plan_momentum" not in caplog.text


def test_a_ragged_last_batch_of_one_is_skipped_and_counted(tmp_path):
    trainer = make_trainer(tmp_path, data=Images(9), max_steps=-1, num_train_epochs=1, logging_steps=1)
    trainer.train()
    assert [entry["ot_skipped"] for entry in training_logs(trainer)] == [0, 1]
    assert training_logs(trainer)[1]["ot_loss"] == pytest.approx(0, abs=1e-30)


def test_every_setting_has_a_help_text():
    from dataclasses import fields

    for f in fields(OTTransferConfig):
        if f.name in OTTransferConfig.transfer_fields():
            assert len(f.metadata.get("help", "")) > 10, f.name


def _poison(module, value):
    def hook(_module, _args, output):
        output = output[0] if isinstance(output, tuple) else output
        return output + torch.full_like(output, value)

    return module.register_forward_hook(hook)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_never_reaches_the_weights(tmp_path, value):
    """The teacher's first of two layers is poisoned: that pair is dropped, the other one trains on."""
    teacher, student = resnet(seed=1), vit()
    pairs = ["vit.layers.0=resnet.encoder.stages.0", "vit.layers.1=resnet.embedder"]
    trainer = make_trainer(tmp_path, model=student, teacher=teacher, layer_pairs=pairs, max_steps=3)
    handle = _poison(teacher.resnet.encoder.stages[0].layers[-1], value)
    trainer.train()
    handle.remove()
    assert all(torch.isfinite(p).all() for p in student.parameters())
    for entry in training_logs(trainer):
        assert entry["ot_dropped"] == 1
        assert entry[f"ot_loss/{pairs[0]}"] == 0
        assert entry[f"ot_loss/{pairs[1]}"] > 0


def test_again_and_again_not_finite_stops_the_run_and_names_the_layers(tmp_path):
    teacher = resnet(seed=1)
    pair = "vit.layers.0=resnet.encoder.stages.0"
    trainer = make_trainer(tmp_path, teacher=teacher, layer_pairs=[pair], max_steps=9, ot_nonfinite_limit=3)
    _poison(teacher.resnet.encoder.stages[0].layers[-1], float("nan"))
    with pytest.raises(FloatingPointError, match=r"vit\.layers\.0=resnet\.encoder\.stages\.0"):
        trainer.train()
    assert trainer.state.global_step == 2


@pytest.mark.parametrize("samples", [1, 9])
def test_batch_normalisation_and_a_batch_of_one_sample(tmp_path, samples):
    """The only sample, or the last of an epoch: torch would speak of values per channel."""
    student = create_timm_student("resnet10t", ["a", "b", "c"], pretrained_cfg={"input_size": (3, 16, 16)})
    trainer = make_trainer(tmp_path, model=student, data=Images(samples), ot_weight=0.0, max_steps=4)
    with pytest.raises(ValueError, match=r"one sample: give at least two samples.*dataloader_drop_last=True"):
        trainer.train()
