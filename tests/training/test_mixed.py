"""Mixup and CutMix in a trainer: loss, teacher, accumulation, resuming, and what they do not go with."""

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close
from torchvision.transforms import v2
from transformers import ViTConfig, ViTForImageClassification

from hf_reprot.data.collator import ImageCollator
from hf_reprot.data.mixing import MIXED
from hf_reprot.models.teacher import Teacher
from tests.cache.samples import build, cached_trainer, photos, processor
from tests.toy_models import Images, resnet, vit
from tests.training.runs import make_trainer, training_logs, weights_of

MIX = {"mixup_alpha": 0.4, "cutmix_alpha": 1.0, "learning_rate": 1e-2}


def first_batch(trainer):
    return next(iter(trainer.get_train_dataloader()))


def test_the_task_is_cross_entropy_of_the_mixed_labels_and_the_teacher_sees_the_mixed_images(tmp_path, monkeypatch):
    teacher = resnet(seed=1).eval()
    trainer = make_trainer(
        tmp_path, teacher=teacher, kd_weight=1.0, max_steps=1, label_smoothing_factor=0.1, mixup_alpha=0.4
    )
    seen, given = [], Teacher.inputs_for
    monkeypatch.setattr(Teacher, "inputs_for", lambda *a, **k: seen.append(given(*a, **k)) or seen[-1])
    start = vit()
    trainer.train()
    pixels = seen[-1]["pixel_values"]
    source = Images()
    known = {tuple(image.flatten().tolist()) for image in source.pixels}
    assert all(tuple(image.flatten().tolist()) not in known for image in pixels)
    with torch.no_grad():
        ours, theirs = start(pixels).logits, teacher(pixels).logits
    log = training_logs(trainer)[0]
    kd = 4 * F.kl_div(F.log_softmax(ours / 2, -1), F.softmax(theirs / 2, -1), reduction="batchmean")
    assert log["kd_loss"] == pytest.approx(float(kd), rel=1e-3)
    # The share of each image in each mixed one, by least squares, gives the labels anew.
    shares = torch.linalg.lstsq(source.pixels.flatten(1).T, pixels.flatten(1).T).solution.T
    soft = shares @ F.one_hot(source.labels, 3).float()
    task = F.cross_entropy(ours, soft, label_smoothing=0.1)
    assert log["task_loss"] == pytest.approx(float(task), rel=1e-3)


def test_evaluation_is_of_images_as_they_are(tmp_path):
    metrics = make_trainer(
        tmp_path,
        eval_data=Images(8, seed=3),
        trainer={"compute_metrics": lambda p: {"labels": len(p.label_ids.shape)}},
        **MIX,
    ).evaluate()
    assert metrics["eval_labels"] == 1


def test_resumes_exactly(tmp_path):
    data = photos(24)
    settings = {**MIX, "max_steps": 4, "save_strategy": "steps", "save_steps": 2, "per_device_train_batch_size": 4}

    def trainer(folder):
        more = {"trainer": {"processing_class": processor()}, "augmentation": "randaugment+flip"}
        return make_trainer(folder, data=data, **more, **settings)

    whole = trainer(tmp_path / "whole")
    whole.train()
    resumed = trainer(tmp_path / "resumed")
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    for name, value in weights_of(whole.model).items():
        assert torch.equal(value, weights_of(resumed.model)[name]), name


def test_a_loss_of_the_users_own_gets_the_mixed_labels(tmp_path):
    seen = []

    def loss(outputs, labels, num_items_in_batch=None):
        seen.append((labels, num_items_in_batch))
        return F.cross_entropy(outputs["logits"], labels, reduction="sum") / num_items_in_batch

    own = make_trainer(
        tmp_path / "a", trainer={"compute_loss_func": loss}, gradient_accumulation_steps=2, max_steps=1, **MIX
    )
    own.train()
    assert all(labels.shape == (8, 3) and float(items) == 16 for labels, items in seen)
    stock = make_trainer(tmp_path / "b", gradient_accumulation_steps=2, max_steps=1, **MIX)
    stock.train()
    assert training_logs(own)[0]["task_loss"] == pytest.approx(training_logs(stock)[0]["task_loss"], rel=1e-4)
    assert_close(weights_of(own.model), weights_of(stock.model), atol=1e-5, rtol=1e-4)


def test_several_labels_and_none(tmp_path):
    several = [{**row, "labels": F.one_hot(row["labels"], 3).float()} for row in Images()]
    student = vit()
    student.config.problem_type = "multi_label_classification"
    trainer = make_trainer(tmp_path / "a", model=student, data=several, **MIX)
    batch = first_batch(trainer)
    assert MIXED not in batch
    assert ((batch["labels"] > 0) & (batch["labels"] < 1)).any()
    trainer.train()
    free = make_trainer(tmp_path / "b", task_weight=0.0, data=Images(labelled=False), **MIX)
    assert set(first_batch(free)) == {"pixel_values"}
    free.train()


def test_what_they_do_not_go_with(tmp_path):
    def refused(told, **settings):
        with pytest.raises(ValueError, match=told):
            make_trainer(tmp_path, **{**MIX, **settings})

    regression = ViTForImageClassification(
        ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=16, patch_size=8, num_labels=1)
    )
    refused("problem_type is 'regression' of ViTForImageClassification: set both to 0", model=regression)
    refused("kd_method='dkd' needs one for each", kd_method="dkd", kd_weight=1.0)
    refused("select_by='task' needs one for each", select_k=4)
    refused("a teacher of some classes needs one", teacher=Teacher(resnet(2, seed=1), classes=[0, 2]), kd_weight=1.0)
    refused("mixup_alpha must be a finite number at least 0, got -1", mixup_alpha=-1)
    with pytest.raises(
        ValueError, match=r"the feature cache .* holds each one alone: set both to 0, or give the teacher"
    ):
        cached_trainer(tmp_path, build(tmp_path / "c"), **MIX)


def test_augmentation_by_a_setting_is_carried_out_or_refused(tmp_path):
    named = make_trainer(
        tmp_path, data=photos(8), trainer={"processing_class": processor()}, augmentation="TrivialAugment"
    )
    assert named.data_collator.augmentation == "trivialaugment"
    assert named.collect_record().transfer["augmentation"] == "trivialaugment"
    own = ImageCollator(processor(), v2.RandomGrayscale(p=0.5))
    with pytest.raises(ValueError, match=r"the data_collator makes the images \(RandomGrayscale\(p=0.5\)\)"):
        make_trainer(tmp_path, data=photos(8), trainer={"data_collator": own}, augmentation="flip")
    with pytest.raises(ValueError, match="the run has no raw images"):
        make_trainer(tmp_path, augmentation="flip")
    given = make_trainer(tmp_path, data=photos(8), trainer={"data_collator": own, "processing_class": processor()})
    assert given.collect_record().transfer["augmentation"] == "RandomGrayscale(p=0.5)"


def test_any_augmentation_is_cached_by_epochs(tmp_path):
    data, policy = photos(16), ImageCollator(processor(), "random-resized-crop+randaugment")
    cache = build(tmp_path / "c", data=data, collator=policy, epochs=1)
    more = {"processing_class": processor(), "data_collator": policy}
    whole = {"num_train_epochs": 1, "max_steps": -1, "seed": 42}
    trainer = cached_trainer(tmp_path / "cached", cache, data=data, trainer=more, **whole)
    trainer.train()
    live = make_trainer(tmp_path / "live", data=data, trainer=more, layer_pairs="stages", **whole)
    live.train()
    assert [e["loss"] for e in training_logs(trainer)] == pytest.approx(
        [e["loss"] for e in training_logs(live)], rel=1e-3
    )
