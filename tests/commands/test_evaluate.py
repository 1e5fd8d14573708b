"""A frozen model on labelled images, by command line."""

import json

import pytest
import torch
from transformers import ViTImageProcessor

from hf_reprot.cli import main
from hf_reprot.commands.evaluate import evaluate_model
from hf_reprot.data.digits import load_digits_dataset
from hf_reprot.models.probing import measure_features
from tests.toy_models import resnet, vit


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A classifier of digits, whose classes are in another order, and a backbone."""
    place = tmp_path_factory.mktemp("models")
    processor = ViTImageProcessor(size={"height": 16, "width": 16})
    student = vit(labels=10)
    student.config.id2label = {i: str(9 - i) for i in range(10)}
    student.config.label2id = {str(9 - i): i for i in range(10)}
    for name, model in (("student", student), ("backbone", resnet(labels=10).base_model)):
        model.save_pretrained(place / name)
        processor.save_pretrained(place / name)
    return place


def test_the_numbers_are_those_of_the_features_and_of_the_head(folder):
    found = evaluate_model(folder / "student", "digits", samples=60)
    rows = load_digits_dataset()["test"].shuffle(seed=0).select(range(60))
    labels = torch.tensor(rows["label"])
    processor, model = ViTImageProcessor.from_pretrained(folder / "student"), vit(labels=10)
    pixels = processor([image.convert("RGB") for image in rows["image"]], return_tensors="pt")["pixel_values"]
    model.eval()
    with torch.no_grad():
        features = model.base_model(pixels).last_hidden_state[:, 0]
        answers = 9 - model(pixels).logits.argmax(1)
    expected = measure_features(features, labels)
    assert found.metrics["knn_accuracy"] == pytest.approx(expected.knn_accuracy)
    assert found.metrics["neighbour_purity"] == pytest.approx(expected.neighbour_purity)
    assert found.metrics["accuracy"] == pytest.approx((answers == labels).double().mean().item())
    assert (found.samples, found.width, found.split) == (60, 24, "test")


def test_two_models_side_by_side(folder, tmp_path, capsys):
    arguments = ["--dataset", "digits", "--samples", "40", "--teacher", str(folder / "backbone")]
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", str(folder / "student"), *arguments, "--output", str(tmp_path / "found.json")])
    assert ended.value.code == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert {"knn_accuracy", "neighbour_purity", "probe_accuracy", "accuracy"} == set(found["metrics"])
    shown = capsys.readouterr().out
    row = next(line for line in shown.splitlines() if " accuracy" in line)
    assert "-" in row  # a backbone has no head


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "tset"}, "has no split 'tset'"),
        ({"samples": 2}, "samples must be at least 3"),
        ({"neighbours": 40}, "k must be from 1 to 39"),
        ({"label_column": "lable"}, "no column 'lable'"),
    ],
)
def test_mistakes_are_one_line(folder, change, message):
    with pytest.raises(ValueError, match=message):
        evaluate_model(folder / "backbone", "digits", **{"samples": 40} | change)
