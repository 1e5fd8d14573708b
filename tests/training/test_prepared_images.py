"""Images that the caller prepared: nobody says how, and so nothing changes them."""

import logging

import pytest
import timm
import torch
from datasets import Dataset
from torch.testing import assert_close

from hf_reprot.data.preprocessing import Preprocessing
from hf_reprot.models.student import as_student
from hf_reprot.models.teacher import Teacher
from tests.toy_models import IMAGE, Images, resnet, timm_vit, vit
from tests.training.runs import make_trainer

HALF = Preprocessing(mean=(0.5,) * 3, std=(0.5,) * 3, size=(IMAGE, IMAGE))


def bare_timm():
    torch.manual_seed(0)
    return timm.create_model("test_vit2.r160_in1k", num_classes=3, img_size=IMAGE, patch_size=4)


def as_mapped(images: Images) -> Dataset:
    return Dataset.from_dict({"pixel_values": images.pixels.numpy(), "labels": images.labels.numpy()}).with_format(
        "torch"
    )


def collate(rows):
    return {
        "pixel_values": torch.stack([r["pixel_values"] for r in rows]),
        "labels": torch.stack([r["labels"] for r in rows]),
    }


@pytest.mark.parametrize("student", [vit, timm_vit, bare_timm])
@pytest.mark.parametrize(("data", "collator"), [(Images, None), (lambda: as_mapped(Images()), collate)])
def test_they_reach_the_teacher_as_they_are_and_it_is_said(tmp_path, caplog, student, data, collator):
    teacher = Teacher(resnet(seed=1), preprocessing=HALF)
    with caplog.at_level(logging.WARNING):
        trainer = make_trainer(
            tmp_path,
            model=student(),
            teacher=teacher,
            data=data(),
            trainer={"data_collator": collator},
            kd_weight=1.0,
        )
    assert caplog.text.count("normalised is not known") == 1
    assert "processing_class" in caplog.text
    batch = next(iter(trainer.get_train_dataloader()))
    given = teacher.inputs_for(dict(batch), trainer.preprocessing)["pixel_values"]
    assert_close(given, batch["pixel_values"], atol=0, rtol=0)


def test_a_timm_teacher_and_a_timm_student_of_another_normalisation(tmp_path):
    teacher = Teacher(timm_vit(seed=1), preprocessing=HALF)
    trainer = make_trainer(tmp_path, model=timm_vit(), teacher=teacher, layer_pairs="last")
    batch = next(iter(trainer.get_train_dataloader()))
    assert_close(teacher.inputs_for(dict(batch), trainer.preprocessing)["pixel_values"], batch["pixel_values"])
    # where somebody says how they were made, they are converted
    said = Preprocessing(mean=(0.0,) * 3, std=(1.0,) * 3)
    assert_close(teacher.inputs_for(dict(batch), said)["pixel_values"], batch["pixel_values"] * 2 - 1)


def test_the_size_and_the_channels_of_the_student_are_still_known(tmp_path):
    torch.manual_seed(0)
    grey = as_student(timm.create_model("resnet10t", num_classes=3, in_chans=1))
    teacher = Teacher(timm.create_model("resnet10t", num_classes=3), preprocessing=HALF)
    images = Images()
    images.pixels = images.pixels[:, :1]
    trainer = make_trainer(tmp_path, model=grey, teacher=teacher, data=images, max_steps=1)
    assert trainer.preprocessing == Preprocessing(size=Preprocessing.of(grey).size)
    batch = next(iter(trainer.get_train_dataloader()))
    given = teacher.inputs_for(dict(batch), trainer.preprocessing)["pixel_values"]
    assert_close(given, batch["pixel_values"].expand(-1, 3, -1, -1))
