"""The teacher: frozen, in evaluation mode, in nothing that is trained, counted, evaluated or saved."""

import pytest
import torch
from safetensors.torch import load_file

from hf_reprot import Teacher
from tests.toy_models import Images, resnet, vit
from tests.training.runs import make_trainer, weights_of


def test_is_in_nothing_that_is_trained_counted_or_saved(tmp_path):
    student, teacher = vit(), resnet(seed=1)
    before, parameters = weights_of(teacher), sum(p.numel() for p in student.parameters())
    trainer = make_trainer(tmp_path, model=student, teacher=teacher, save_strategy="steps", save_steps=1)
    trainer.train()
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, before[name]), name  # batch statistics too
    assert not teacher.training
    assert sum(p.numel() for p in trainer.model.parameters()) == parameters
    ours = {id(p) for p in teacher.parameters()}
    assert not any(id(p) in ours for group in trainer.optimizer.param_groups for p in group["params"])
    assert not any(model is teacher for model in trainer.accelerator._models)
    saved = load_file(tmp_path / "checkpoint-1" / "model.safetensors")
    assert sum(t.numel() for t in saved.values()) == parameters
    assert not any("resnet" in name or "teacher" in name for name in saved)
    held = sum(t.numel() for f in (tmp_path / "checkpoint-1").glob("*.safetensors") for t in load_file(f).values())
    assert held - parameters < 100  # beside the weights, sums for the log


def test_does_not_run_in_evaluation_and_no_graph_is_kept(tmp_path):
    teacher = resnet(seed=1)
    calls = []
    teacher.register_forward_hook(lambda *_: calls.append(1))
    trainer = make_trainer(tmp_path, teacher=teacher, eval_data=Images(16, seed=3), eval_strategy="no")
    calls.clear()
    trainer.evaluate()
    trainer.predict(Images(8))
    assert not calls
    assert trainer.transfer.student_taps._store.caught == {}
    trainer.train()
    assert len(calls) == 2
    assert trainer.evaluate()["eval_loss"] > 0
    assert len(calls) == 2


def test_evaluates_as_the_stock_trainer_does(tmp_path):
    from transformers import Trainer

    student, data = vit(), Images(16, seed=3)
    trainer = make_trainer(tmp_path, model=student, eval_data=data)
    stock = Trainer(model=student, args=trainer.args, eval_dataset=data)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(stock.evaluate()["eval_loss"], rel=1e-6)
    assert (trainer.predict(data).predictions == stock.predict(data).predictions).all()


def test_unfrozen_after_loading_is_refused(tmp_path):
    teacher = Teacher(resnet(seed=1))
    teacher.model.requires_grad_(True)
    with pytest.raises(ValueError, match="trainable parameter"):
        make_trainer(tmp_path, teacher=teacher)


def test_sharing_weights_with_the_student_is_refused(tmp_path):
    model = vit()
    with pytest.raises(ValueError, match="shares weights with the student"):
        make_trainer(tmp_path, model=model, teacher=model)


def test_columns_meant_for_the_teacher_go_to_it_alone(tmp_path):
    class Two(Images):
        def __getitem__(self, index):
            return super().__getitem__(index) | {"teacher_pixel_values": torch.ones(3, 16, 16) * index}

    seen = []
    teacher = resnet(seed=1)
    teacher.register_forward_pre_hook(lambda _m, _a, kw: seen.append(kw["pixel_values"]), with_kwargs=True)
    trainer = make_trainer(tmp_path, teacher=teacher, data=Two(), max_steps=1, eval_data=Two(8))
    seen.clear()
    trainer.train()
    assert (seen[0] == seen[0].flatten(1)[:, :1, None, None]).all()
    assert trainer.evaluate()["eval_loss"] > 0


def test_several_teachers(tmp_path):
    trainer = make_trainer(tmp_path, teacher=[resnet(seed=1), vit(width=16, seed=2)], kd_weight=1.0)
    trainer.train()
    (entry, *_) = [e for e in trainer.state.log_history if "loss" in e]
    names = [name for name in entry if name.startswith("ot_loss/")]
    assert [name for name in names if "=" not in name] == [
        "ot_loss/ResNetForImageClassification",
        "ot_loss/ViTForImageClassification",
    ]
    assert [name[-2:] for name in names if "=" in name] == ["@0", "@1"]
