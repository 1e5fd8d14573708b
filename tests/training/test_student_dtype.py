"""A student in half precision is trained in float32, unless someone asks for its own data type."""

import pytest
import torch
from torch.testing import assert_close

from tests.toy_models import vit
from tests.training.runs import make_config, make_trainer, weights_of

SMALL_STEPS = {"learning_rate": 1e-5, "optim": "adamw_torch", "max_steps": 2}


def half(dtype=torch.bfloat16):
    return vit().to(dtype)


def moved(before, after) -> float:
    """Share of numbers that differ."""
    changed = [(before[name].float() != after[name].float()).sum().item() for name in before]
    return sum(changed) / sum(value.numel() for value in before.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_it_is_trained_in_float32_and_that_is_said(tmp_path, caplog, dtype):
    student = half(dtype)
    before = weights_of(student)
    trainer = make_trainer(tmp_path, model=student, **SMALL_STEPS)
    name = str(dtype).removeprefix("torch.")
    assert f"weights are in {name}" in caplog.text
    assert "student_dtype='auto'" in caplog.text
    trainer.train()
    assert all(p.dtype == torch.float32 for p in trainer.model.parameters())
    assert moved(before, weights_of(trainer.model)) > 0.9


def test_steps_are_those_of_the_same_weights_in_float32(tmp_path):
    plain = make_trainer(tmp_path / "a", model=half().float(), **SMALL_STEPS)
    mended = make_trainer(tmp_path / "b", model=half(), **SMALL_STEPS)
    plain.train()
    mended.train()
    assert_close(dict(mended.model.state_dict()), dict(plain.model.state_dict()), rtol=0, atol=0)


def test_its_own_type_on_request(tmp_path, caplog):
    student = half()
    before = weights_of(student)
    trainer = make_trainer(tmp_path, model=student, student_dtype="auto", **SMALL_STEPS)
    trainer.train()
    assert "trainable weights are in" not in caplog.text
    assert all(p.dtype == torch.bfloat16 for p in trainer.model.parameters())
    assert moved(before, weights_of(trainer.model)) < 0.7  # what float32 is for


def test_another_type_on_request(tmp_path):
    trainer = make_trainer(tmp_path, student_dtype="bfloat16")
    assert trainer.model.dtype == torch.bfloat16


def test_a_student_that_is_made_later_too(tmp_path, caplog):
    trainer = make_trainer(tmp_path, model=False, trainer={"model_init": lambda: half()}, max_steps=1)
    assert trainer.model.dtype == torch.float32
    trainer.train()
    assert trainer.model.dtype == torch.float32
    assert "trainable weights are in bfloat16" in caplog.text


def test_frozen_and_quantised_weights_stay_as_they_are(tmp_path, caplog):
    from hf_reprot.models.precision import in_training_precision

    student = half()
    student.classifier.float()
    for name, parameter in student.named_parameters():
        parameter.requires_grad = name.startswith("classifier")
    in_training_precision(student)
    assert student.vit.embeddings.cls_token.dtype == torch.bfloat16
    quantised = half()
    quantised.is_quantized = True
    assert in_training_precision(quantised).dtype == torch.bfloat16
    assert caplog.text == ""


def test_a_type_that_there_is_not(tmp_path):
    with pytest.raises(ValueError, match=r"unknown student_dtype 'bf16'.*'bfloat16'"):
        make_config(tmp_path, student_dtype="bf16")
