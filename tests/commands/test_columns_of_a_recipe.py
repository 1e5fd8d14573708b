"""The command line makes the student that the labels of the data ask for."""

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, List, Value
from PIL import Image as PILImage

from hf_reprot.commands.train import parse_recipe, prepare

CLASSES = ClassLabel(names=["a", "b", "c"])


@pytest.fixture
def prepared(tmp_path):
    def prepare_data(feature, values, *flags, column="label"):
        pixels = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
        rows = {"image": [PILImage.fromarray(p) for p in pixels], column: values, "caption": ["x"] * 4}
        features = Features({"image": Image(), column: feature, "caption": Value("string")})
        Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "data")
        base = (
            "--student",
            "resnet10t",
            "--image_size",
            "32",
            "--dataset",
            str(tmp_path / "data"),
            "--use_cpu",
            "true",
        )
        recipe, config = parse_recipe([*base, "--output_dir", str(tmp_path / "out"), *flags])
        found = prepare(recipe, config)
        return found, found.collator([found.train[i] for i in range(4)])["labels"]

    return prepare_data


@pytest.mark.parametrize(
    ("feature", "values", "problem", "names", "labels"),
    [
        (Value("string"), ["z", "k", "k", "z"], "single_label_classification", ["k", "z"], [1, 0, 0, 1]),
        (Value("bool"), [True, False, False, True], "single_label_classification", ["False", "True"], [1, 0, 0, 1]),
        (Value("int64"), [2, 0, 0, 1], "single_label_classification", ["0", "1", "2"], [2, 0, 0, 1]),
        (Value("float32"), [0.5, 1.5, -1.0, 0.0], "regression", ["label"], [0.5, 1.5, -1.0, 0.0]),
        (
            List(CLASSES),
            [[0], [], [2, 1], [1]],
            "multi_label_classification",
            ["a", "b", "c"],
            [[1.0, 0, 0], [0, 0, 0], [0, 1, 1], [0, 1, 0]],
        ),
        (List(Value("int64")), [[0, 1]] * 4, "multi_label_classification", ["0", "1"], [[0.0, 1.0]] * 4),
    ],
)
def test_a_new_student_fits_the_labels(prepared, feature, values, problem, names, labels):
    found, batch = prepared(feature, values)
    assert found.names == names
    assert list(found.student.config.id2label.values()) == names
    assert found.student.config.problem_type == problem
    assert torch.equal(batch, torch.tensor(labels))


def test_a_chosen_column_of_an_unusual_name(prepared):
    found, batch = prepared(Value("float32"), [1.0, 2.0, 3.0, 4.0], "--label_column", "age", column="age")
    assert found.student.config.problem_type == "regression"
    assert batch.tolist() == [1.0, 2.0, 3.0, 4.0]


def test_no_labels_are_refused_with_the_columns(prepared):
    with pytest.raises(ValueError, match=r"age \(float32\), caption \(string\).*label_column"):
        prepared(Value("float32"), [1.0] * 4, column="age")
