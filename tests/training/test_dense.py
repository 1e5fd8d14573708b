"""Students that answer with masks or boxes: columns found, targets through the own processor, mean IoU."""

import json

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as PILImage
from torch.testing import assert_close
from transformers import (
    EvalPrediction,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessor,
    ViTImageProcessor,
    YolosConfig,
    YolosForObjectDetection,
    YolosImageProcessor,
)

from hf_reprot.cli import main
from hf_reprot.commands.train import parse_recipe, run_recipe
from hf_reprot.data.dense import DetectionCollator, SegmentationCollator
from hf_reprot.training.dense_metrics import MeanIoU, confusion
from tests.toy_models import resnet
from tests.training.runs import make_trainer, training_logs

SIZE = 32


def segformer(labels=3, seed=0):
    torch.manual_seed(seed)
    small = {"depths": [1, 1], "sr_ratios": [2, 1], "hidden_sizes": [8, 12], "num_attention_heads": [1, 1]}
    small |= {"patch_sizes": [3, 3], "strides": [2, 2], "mlp_ratios": [1, 1], "decoder_hidden_size": 8}
    return SegformerForSemanticSegmentation(SegformerConfig(num_encoder_blocks=2, num_labels=labels, **small))


def yolos():
    torch.manual_seed(0)
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    more = {"image_size": [SIZE, SIZE], "patch_size": 8, "num_detection_tokens": 4, "num_labels": 3}
    return YolosForObjectDetection(YolosConfig(**small, **more))


def seg_processor(**more):
    return SegformerImageProcessor(size={"height": SIZE, "width": SIZE}, **more)


def box_processor():
    return YolosImageProcessor(size={"height": SIZE, "width": SIZE})


def scenes(count=8):
    """Images whose halves are red and blue, in columns named as scene_parse has them; class 2 never occurs."""
    rng = np.random.default_rng(0)
    images, masks = [], []
    for _ in range(count):
        mask = np.zeros((SIZE, SIZE), np.uint8)
        mask[:, rng.integers(8, 24) :] = 1
        image = np.zeros((SIZE, SIZE, 3), np.uint8)
        image[mask == 0, 0], image[mask == 1, 2] = 250, 250
        images.append(PILImage.fromarray(image))
        masks.append(PILImage.fromarray(mask))
    rows = {"image": images, "annotation": masks, "scene_category": [1] * count}
    kinds = Features({"image": Image(), "annotation": Image(), "scene_category": Value("int64")})
    return Dataset.from_dict(rows, features=kinds)


def things(count=8):
    boxes = [[[2.0, 4.0, 10.0, 6.0], [16.0, 16.0, 8.0, 8.0]]] * count
    rows = {"image": scenes(count)["image"], "objects": [{"bbox": b, "category": [0, 2]} for b in boxes]}
    objects = {"bbox": List(List(Value("float32"))), "category": List(Value("int64"))}
    return Dataset.from_dict(rows, features=Features({"image": Image(), "objects": objects}))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("dense")
    segformer().save_pretrained(place / "student")
    seg_processor().save_pretrained(place / "student")
    scenes().save_to_disk(place / "scenes")
    return place


def test_segformer_by_command_line_with_mean_iou(folders, tmp_path):
    arguments = ["--student", str(folders / "student"), "--dataset", str(folders / "scenes"), "--eval_split", "train"]
    arguments += ["--output_dir", str(tmp_path), "--max_steps", "24", "--learning_rate", "0.02", "--use_cpu", "true"]
    arguments += ["--ot_weight", "0", "--report_to", "none", "--disable_tqdm", "true", "--save_strategy", "no"]
    result = run_recipe(*parse_recipe(arguments))
    assert set(result.metrics) >= {"eval_mean_iou", "eval_mean_accuracy", "eval_pixel_accuracy", "eval_loss"}
    assert result.metrics["eval_mean_iou"] > 0.6  # red and blue halves; one class for all is 0.25
    again = SegformerForSemanticSegmentation.from_pretrained(tmp_path)
    batch = SegmentationCollator(seg_processor(), "none", "image", "annotation")([scenes()[i] for i in range(8)])
    with torch.no_grad():
        counts = confusion(again(batch["pixel_values"]).logits, batch["labels"], 3).sum(0)
    accuracy = float(counts.diagonal().sum() / counts.sum())
    assert result.metrics["eval_pixel_accuracy"] == pytest.approx(accuracy, abs=1e-6)


def test_a_new_number_of_classes_and_mistakes(folders, tmp_path, capsys):
    start = ["train", "--student", str(folders / "student"), "--output_dir", str(tmp_path), "--max_steps", "1"]
    start += ["--ot_weight", "0", "--use_cpu", "true", "--report_to", "none", "--dataset", str(folders / "scenes")]
    for wrong, told in {
        (
            "--augmentation",
            "randaugment",
        ): "would change the images and not their masks or boxes: choose 'none'",
        (
            "--label_column",
            "anotation",
        ): "label_column='anotation' holds no masks (images of class numbers)",
        ("--fit_head", "true"): "fit_head and student_head are for classifiers",
        ("--mixup_alpha", "0.2"): "mix the labels of classes, and the labels are masks of SegformerForSemantic",
    }.items():
        with pytest.raises(SystemExit) as ended:
            main([*start, *wrong])
        assert ended.value.code == 2
        assert told in capsys.readouterr().err
    changed = [*start[1:], "--student_model_args", '{"num_labels": 5}', "--save_strategy", "no"]
    trained = run_recipe(*parse_recipe(changed)).trainer
    assert trained.model.decode_head.classifier.out_channels == 5


def test_a_family_that_cannot_be_a_student_is_refused(folders, tmp_path, capsys):
    (tmp_path / "other").mkdir()
    kind = {"architectures": ["Mask2FormerForUniversalSegmentation"], "model_type": "mask2former"}
    (tmp_path / "other" / "config.json").write_text(json.dumps(kind))
    with pytest.raises(SystemExit):
        main(["train", "--student", str(tmp_path / "other"), "--dataset", str(folders / "scenes"), "--use_cpu", "true"])
    told = "is a Mask2FormerForUniversalSegmentation, which this package does not train: legal are ...ForSemanticSeg"
    assert told in capsys.readouterr().err


def test_segmentation_with_a_teacher(tmp_path):
    trainer = make_trainer(
        tmp_path,
        model=segformer(),
        teacher=resnet(seed=1),
        data=scenes(),
        eval_data=scenes(4),
        trainer={"processing_class": seg_processor()},
        layer_pairs=["segformer.stages.0=resnet.encoder.stages.0"]
        if hasattr(segformer().segformer, "stages")
        else "last",
    )
    trainer.train()
    assert training_logs(trainer)[0]["ot_loss"] > 0
    assert 0 <= trainer.evaluate()["eval_mean_iou"] <= 1


def test_masks_are_mirrored_with_their_images_and_reduced_by_the_processor():
    data = scenes()
    rows = [data[i] for i in range(8)]
    collator = SegmentationCollator(seg_processor(), "flip", "image", "annotation")
    plain, mixed = collator.for_evaluation()(rows), collator(rows)
    for i in range(8):
        mirrored = bool((mixed["labels"][i] != plain["labels"][i]).any())
        expected = {name: value[i].flip(-1) if mirrored else value[i] for name, value in plain.items()}
        assert_close({name: value[i] for name, value in mixed.items()}, expected, atol=1e-5, rtol=1e-5)
    assert_close(plain["labels"][0], torch.from_numpy(np.array(rows[0]["annotation"])).long())
    collator.set_epoch(1, seed=3)
    assert_close(collator(rows), collator(rows), atol=0, rtol=0)
    reduced = SegmentationCollator(seg_processor(do_reduce_labels=True), "none", "image", "annotation")(rows)
    assert set(reduced["labels"].unique().tolist()) == {0, 255}
    with pytest.raises(ValueError, match=r"the mask of row 0 of the batch has the shape \(32, 32, 3\)"):
        collator([{"image": rows[0]["image"], "annotation": rows[0]["image"]}])


def test_a_detection_student(tmp_path):
    trainer = make_trainer(
        tmp_path,
        model=yolos(),
        teacher=[],
        data=things(),
        eval_data=things(4),
        trainer={"processing_class": box_processor()},
        ot_weight=0.0,
        max_steps=6,
        learning_rate=1e-3,
        optim="adamw_torch",
    )
    trainer.train()
    losses = [entry["task_loss"] for entry in training_logs(trainer)]
    assert losses[-1] < losses[0]
    assert trainer.evaluate()["eval_loss"] > 0


def test_boxes():
    rows = [things()[0]] * 12
    collator = DetectionCollator(box_processor(), "flip", "image", "objects")
    plain = collator.for_evaluation()(rows)["labels"][0]
    assert_close(plain["boxes"][0], torch.tensor([7 / 32, 7 / 32, 10 / 32, 6 / 32]))  # centre, width, height
    assert plain["class_labels"].tolist() == [0, 2]
    found = {round(float(labels["boxes"][0][0]), 4) for labels in collator(rows)["labels"]}
    assert found == {round(7 / 32, 4), round(25 / 32, 4)}
    as_list = {"image": rows[0]["image"], "objects": [{"bbox": [2, 4, 10, 6], "category": 0}]}
    assert_close(collator.for_evaluation()([as_list])["labels"][0]["boxes"][0], plain["boxes"][0])
    with pytest.raises(ValueError, match="has bbox: legal is a box"):
        collator([{"image": rows[0]["image"], "objects": {"bbox": [[1, 2, 3, 4]]}}])


def test_mean_iou_by_hand():
    labels = torch.tensor([[[0, 0], [1, 255]], [[0, 1], [1, 1]]])
    answers = torch.tensor([[[0, 1], [1, 0]], [[0, 1], [0, 1]]])
    logits = torch.nn.functional.one_hot(answers, 4).permute(0, 3, 1, 2).float()
    metric = MeanIoU(4)
    for i in range(2):
        part = EvalPrediction(metric.of_logits((logits[i : i + 1],), labels[i : i + 1]), labels[i : i + 1])
        found = metric(part, compute_result=i == 1)
    # class 0: 2 right of 4 in either; class 1: 3 of 5; classes 2 and 3 are in neither
    assert found == pytest.approx(
        {"mean_iou": (2 / 4 + 3 / 5) / 2, "mean_accuracy": (2 / 3 + 3 / 4) / 2, "pixel_accuracy": 5 / 7}
    )
    assert metric(EvalPrediction(metric.of_logits(logits, labels), labels)) == pytest.approx(found)  # begun anew


def test_a_processor_that_takes_no_masks_is_refused_before_training(tmp_path):
    alone = {"processing_class": ViTImageProcessor(size={"height": SIZE, "width": SIZE})}
    with pytest.raises(ValueError, match="ViTImageProcessor prepares images alone and takes no segmentation_maps"):
        make_trainer(tmp_path, model=segformer(), data=scenes(), trainer=alone)
    with pytest.raises(ValueError, match="takes no annotations"):
        make_trainer(tmp_path, model=yolos(), data=things(), trainer=alone)
