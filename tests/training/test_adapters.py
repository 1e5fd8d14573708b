"""A saved adapter is the student that was trained, or is refused before training."""

import ast
import copy
import logging

import pytest
import torch
from transformers import ViTForImageClassification

from hf_reprot import OTTransferConfig, OTTransferTrainer
from hf_reprot.models.student import create_timm_student
from tests.tiny_models import transformers_model

peft = pytest.importorskip("peft")

LABELS = ["a", "b", "c"]
IMAGES = 2 * torch.randn(12, 3, 32, 32, generator=torch.Generator().manual_seed(0)) + 1
DATA = [{"pixel_values": image, "labels": i % 3} for i, image in enumerate(IMAGES)]
VIT = {"target_modules": ["q_proj", "v_proj"]}


def vit(**changes):
    return transformers_model("ViT", "ForImageClassification", num_labels=3, **changes)


def resnet():
    return transformers_model("ResNet", "ForImageClassification", num_labels=3)


def timm_resnet():
    torch.manual_seed(0)
    return create_timm_student("resnet10t", LABELS)


def build(student, folder, **settings):
    base = {"max_steps": 3, "learning_rate": 1e-2, "per_device_train_batch_size": 4, "use_cpu": True}
    base |= {"report_to": "none", "save_strategy": "no", "disable_tqdm": True}
    args = OTTransferConfig(str(folder / "run"), **(base | settings))
    return OTTransferTrainer(
        model=student, teacher_model=transformers_model("ViT", "Model"), args=args, train_dataset=DATA
    )


def logits(model):
    with torch.no_grad():
        return model.eval()(pixel_values=IMAGES).logits


def statistics(model):
    names = ("running_mean", "running_var")
    return {name: b.clone() for name, b in model.named_buffers() if name.endswith(names) and "original" not in name}


SETTINGS = [
    (timm_resnet, lambda: peft.LoraConfig(r=2, target_modules=["conv2"], modules_to_save=["fc"])),
    (
        resnet,
        lambda: peft.IA3Config(
            target_modules=["layer.0.convolution"], feedforward_modules=[], modules_to_save=["classifier"]
        ),
    ),
    (resnet, lambda: peft.LoHaConfig(r=2, target_modules=["layer.1.convolution"], modules_to_save=["classifier"])),
]


@pytest.mark.parametrize(("make", "config"), SETTINGS)
def test_running_statistics_stand_still_and_a_loaded_adapter_is_the_trained_student(make, config, tmp_path, caplog):
    base = make()
    start, student = copy.deepcopy(base), peft.get_peft_model(base, config())
    before, first = statistics(student), logits(student)
    with caplog.at_level(logging.WARNING, logger="hf_reprot"):
        trainer = build(student, tmp_path)
    assert "An adapter does not hold running statistics" in caplog.text
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    for name, value in statistics(student).items():
        assert torch.equal(value, before[name]), name
    again = peft.PeftModel.from_pretrained(start, tmp_path / "saved")
    assert not torch.allclose(logits(student), first)
    torch.testing.assert_close(logits(again), logits(student))


def test_batch_norms_in_the_adapter_train_and_are_saved(tmp_path, caplog):
    base = resnet()
    config = peft.LoraConfig(
        r=2, target_modules=["layer.0.convolution"], modules_to_save=["classifier", "normalization"]
    )
    start, student = copy.deepcopy(base), peft.get_peft_model(base, config)
    before = statistics(student)
    with caplog.at_level(logging.WARNING, logger="hf_reprot"):
        trainer = build(student, tmp_path)
    assert "running statistics" not in caplog.text
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    assert before
    assert all(not torch.equal(value, before[name]) for name, value in statistics(student).items())
    torch.testing.assert_close(logits(peft.PeftModel.from_pretrained(start, tmp_path / "saved")), logits(student))


def test_the_suggestion_about_running_statistics_can_be_written(tmp_path, caplog):
    student = peft.get_peft_model(timm_resnet(), SETTINGS[0][1]())
    with caplog.at_level(logging.WARNING, logger="hf_reprot"):
        build(student, tmp_path)
    names = ast.literal_eval(caplog.text.partition("modules_to_save=")[2].partition("]")[0] + "]")
    config = peft.LoraConfig(r=2, target_modules=["conv2"], modules_to_save=["fc", *names])
    assert build(peft.get_peft_model(timm_resnet(), config), tmp_path)._still == []


def test_a_whole_student_counts_as_ever(tmp_path):
    student = resnet()
    before = statistics(student)
    build(student, tmp_path).train()
    assert all(not torch.equal(value, before[name]) for name, value in statistics(student).items())


@pytest.mark.parametrize(
    ("make", "config", "wanted"),
    [
        (vit, lambda: peft.LoraConfig(r=2, **VIT), "classifier"),
        (vit, lambda: peft.LoraConfig(r=2, target_modules="all-linear"), "classifier"),
        (vit, lambda: peft.IA3Config(target_modules=["q_proj"], feedforward_modules=[]), "classifier"),
        (vit, lambda: peft.LoKrConfig(r=2, **VIT), "classifier"),
        (timm_resnet, lambda: peft.LoraConfig(r=2, target_modules=["conv2"]), "fc"),
    ],
)
def test_a_new_head_outside_the_adapter_is_refused(make, config, wanted, tmp_path):
    student = peft.get_peft_model(make(), config())
    with pytest.raises(ValueError, match=rf"modules_to_save=\['{wanted}'\]"):
        build(student, tmp_path)
    build(student, tmp_path, task_weight=0.0)  # its logits are not used


def test_a_head_that_the_base_checkpoint_holds_is_taken(tmp_path):
    vit().save_pretrained(tmp_path / "base")
    base = ViTForImageClassification.from_pretrained(tmp_path / "base")
    student = peft.get_peft_model(base, peft.LoraConfig(r=2, **VIT))
    trainer = build(student, tmp_path)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    start = ViTForImageClassification.from_pretrained(tmp_path / "base")
    torch.testing.assert_close(logits(peft.PeftModel.from_pretrained(start, tmp_path / "saved")), logits(student))


def test_a_head_of_another_size_than_the_checkpoints_is_new(tmp_path):
    vit().save_pretrained(tmp_path / "base")
    base = ViTForImageClassification.from_pretrained(tmp_path / "base", num_labels=5, ignore_mismatched_sizes=True)
    with pytest.raises(ValueError, match=r"modules_to_save=\['classifier'\]"):
        build(peft.get_peft_model(base, peft.LoraConfig(r=2, **VIT)), tmp_path)


def test_a_backbone_checkpoint_holds_no_head(tmp_path):
    transformers_model("ViT", "Model").save_pretrained(tmp_path / "base")
    base = ViTForImageClassification.from_pretrained(tmp_path / "base", num_labels=3)
    with pytest.raises(ValueError, match=r"modules_to_save=\['classifier'\]"):
        build(peft.get_peft_model(base, peft.LoraConfig(r=2, **VIT)), tmp_path)
