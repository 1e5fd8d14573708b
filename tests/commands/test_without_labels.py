"""Images without labels by command line: a new backbone, a head on other data that have labels."""

import numpy as np
import pytest
from datasets import ClassLabel
from PIL import Image
from transformers import AutoModelForImageClassification, TimmWrapperModel, ViTImageProcessor

from hf_reprot.commands.train import parse_recipe, prepare, run_recipe
from hf_reprot.data.datasets import load_image_dataset
from hf_reprot.hub.record import RunRecord
from tests.toy_models import resnet


def _images(folder, count=8, shade=0):
    folder.mkdir(parents=True)
    draw = np.random.default_rng(len(str(folder)))
    for i in range(count):
        pixels = draw.integers(0, 100, (20, 20, 3), dtype=np.uint8) + np.uint8(shade)
        Image.fromarray(pixels).save(folder / f"{i}.png")


@pytest.fixture
def flags(tmp_path):
    _images(tmp_path / "flat")
    _images(tmp_path / "labelled" / "dark")
    _images(tmp_path / "labelled" / "light", shade=150)
    resnet(labels=7).save_pretrained(tmp_path / "teacher")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "teacher")

    def make(*more, student="resnet10t"):
        base = {
            "student": student,
            "image_size": 32,
            "teacher": tmp_path / "teacher",
            "dataset": tmp_path / "flat",
            "task_weight": 0,
            "max_steps": 1,
            "per_device_train_batch_size": 4,
            "use_cpu": "true",
            "report_to": "none",
            "disable_tqdm": "true",
            "output_dir": tmp_path / "out",
        }
        return [part for name, value in base.items() for part in (f"--{name}", str(value))] + list(map(str, more))

    return make


def test_a_flat_folder_makes_a_new_backbone(flags):
    result = run_recipe(*parse_recipe(flags()))
    assert type(result.trainer.model) is TimmWrapperModel
    record = RunRecord.load(result.folder)
    assert (record.classes, record.task) == (None, "image-feature-extraction")


def test_a_head_is_fitted_to_another_data_set(flags, tmp_path):
    more = ("--fit_head", "true", "--head_dataset", tmp_path / "labelled", "--head_samples", 6)
    result = run_recipe(*parse_recipe(flags(*more)))
    assert result.trainer.head_fit.samples == 6
    student = AutoModelForImageClassification.from_pretrained(result.folder)
    assert student.config.id2label == {0: "dark", 1: "light"}
    record = RunRecord.load(result.folder)
    assert (record.job, record.head_data.name) == ("representation-and-head", "labelled")


def test_a_head_is_fitted_to_another_split(flags, tmp_path):
    _images(tmp_path / "both" / "train")
    for split, count in (("validation", 5), ("test", 3)):
        _images(tmp_path / "both" / split / "dark", count)
        _images(tmp_path / "both" / split / "light", count, shade=150)
    more = ("--dataset", tmp_path / "both", "--fit_head", "true", "--head_split", "validation")
    prepared = prepare(*parse_recipe(flags(*more)))
    assert prepared.names == ["dark", "light"]
    assert (len(prepared.train), len(prepared.labelled), len(prepared.evaluation)) == (8, 10, 6)  # not what it is from
    with pytest.raises(ValueError, match="fitted to what it is evaluated on, the split 'validation'"):
        prepare(*parse_recipe(flags(*more, "--eval_split", "validation")))


def test_a_student_of_logits_alone_has_the_teachers_classes(flags):
    prepared = prepare(*parse_recipe(flags("--kd_weight", "1")))
    assert prepared.student.config.num_labels == 7


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--fit_head", "true"), r"flat has none .*Give head_dataset or head_split"),
        (("--head_split", "test"), "head_split says what the head is fitted to: set fit_head, too"),
        (("--fit_head", "true", "--head_split", "tset"), "flat has no split 'tset': it has train"),
        (("--kd_weight", "1", "--student_head", "false"), "student_head is false"),
    ],
)
def test_what_cannot_be_is_one_line(flags, more, message):
    with pytest.raises(ValueError, match=message):
        prepare(*parse_recipe(flags(*more)))


def test_a_split_without_labels_stands_beside_one_with(tmp_path):
    _images(tmp_path / "d" / "train")
    _images(tmp_path / "d" / "test" / "dark", 2)
    _images(tmp_path / "d" / "test" / "light", 2)
    data = load_image_dataset(tmp_path / "d", label_column="label")
    assert data["train"].column_names == ["image"]
    assert isinstance(data["test"].features["label"], ClassLabel)


@pytest.mark.parametrize("head", [None, True])
def test_a_backbone_of_the_hub_stays_one_where_no_term_needs_a_head(flags, tmp_path, head):
    resnet().base_model.save_pretrained(tmp_path / "backbone")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "backbone")
    more = ("--dataset", tmp_path / "labelled", *(() if head is None else ("--student_head", "true")))
    prepared = prepare(*parse_recipe(flags(*more, student=tmp_path / "backbone")))
    assert type(prepared.student).__name__ == ("ResNetModel" if head is None else "ResNetForImageClassification")
    assert prepared.names == (None if head is None else ["dark", "light"])
