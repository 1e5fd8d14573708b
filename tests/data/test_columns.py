"""Which column holds images and which labels, and what labels mean: right, or refused before training."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Array3D, ClassLabel, Dataset, Features, Image, IterableDataset, List, Value
from PIL import Image as PILImage
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import Subset
from transformers import ViTImageProcessor

from hf_reprot.data.collator import ImageCollator
from hf_reprot.data.dataset_columns import find_columns, image_columns
from hf_reprot.data.datasets import leave_encoded
from hf_reprot.data.label_reader import LabelReader
from hf_reprot.data.labels import label_names
from tests.data.label_kinds import KINDS, table
from tests.toy_models import IMAGE, vit
from tests.training.runs import make_trainer

CLASSES = ClassLabel(names=["a", "b", "c"])
PROCESSOR = ViTImageProcessor(size={"height": IMAGE, "width": IMAGE})


def pictures(count: int) -> list[PILImage.Image]:
    draw = np.random.default_rng(0)
    return [PILImage.fromarray(draw.integers(0, 256, (12, 12, 3), dtype=np.uint8)) for _ in range(count)]


def data_of(rows: int = 8, **columns) -> Dataset:
    """A data set of columns given as (type, values), the values repeated; "image" is there unless it is given."""
    columns = {"image": (Image(), pictures(rows))} | columns
    features = Features({name: feature for name, (feature, _) in columns.items()})
    values = {name: [given[i % len(given)] for i in range(rows)] for name, (_, given) in columns.items()}
    return Dataset.from_dict(values, features=features)


def trainer_of(folder, data, *, student=None, evaluation=None, **settings):
    settings = {"ot_weight": 0.0, "max_steps": 1} | settings
    student = vit() if student is None else student
    given = {"processing_class": PROCESSOR, "eval_dataset": evaluation}
    return make_trainer(
        folder, model=student, data=data, eval_data=given.pop("eval_dataset"), trainer=given, **settings
    )


# ---- what labels mean ----


def student_of(kind):
    student = vit(labels=kind.outputs)
    student.config.problem_type = kind.problem
    if kind.names is not None:
        student.config.id2label = dict(enumerate(kind.names))
        student.config.label2id = {name: i for i, name in enumerate(kind.names)}
    return student


@pytest.mark.parametrize("kind", [k for k in KINDS if k.refused is None], ids=lambda k: f"{k.type} {k.becomes}")
def test_labels_become_what_the_loss_takes(tmp_path, kind):
    data = data_of(labels=(kind.feature, kind.values))
    trainer = trainer_of(tmp_path, data, student=student_of(kind))
    batch = next(iter(trainer.get_eval_dataloader(data)))
    wanted = torch.tensor([kind.labels[i % len(kind.labels)] for i in range(8)])
    assert torch.equal(batch["labels"], wanted)
    assert batch["labels"].dtype == (torch.int64 if isinstance(kind.labels[0], int) else torch.float32)
    assert np.isfinite(trainer.train().training_loss)


@pytest.mark.parametrize("kind", [k for k in KINDS if k.refused is not None], ids=lambda k: f"{k.type} {k.refused}")
def test_labels_that_do_not_fit_are_refused_before_training(tmp_path, kind):
    with pytest.raises(ValueError, match=kind.refused) as error:
        trainer_of(tmp_path, data_of(labels=(kind.feature, kind.values)), student=student_of(kind))
    assert "\n" not in str(error.value)
    assert "'labels'" in str(error.value)


def test_the_table_of_the_docs_is_this_one():
    assert table() in (Path(__file__).parents[2] / "docs" / "data.md").read_text("utf-8")


def test_texts_name_an_unnamed_student_and_the_order_is_said(tmp_path, caplog):
    student = vit(labels=2)
    with caplog.at_level(logging.WARNING):
        trainer_of(tmp_path, data_of(kind=(Value("string"), ["dog", "cat"])), student=student, label_column="kind")
    assert "in the order of the alphabet: cat, dog" in caplog.text
    assert student.config.id2label == {0: "cat", 1: "dog"}


def test_the_evaluation_set_is_read_as_the_training_set(tmp_path):
    train = data_of(label=(Value("string"), ["c", "a", "b"]))
    trainer = trainer_of(tmp_path, train, evaluation=data_of(label=(Value("string"), ["c", "b"])))
    batch = next(iter(trainer.get_eval_dataloader()))
    assert batch["labels"].tolist() == [2, 1] * 4
    with pytest.raises(ValueError, match=r"'d', which is none of the classes a, b, c"):
        list(trainer.get_eval_dataloader(data_of(label=(Value("string"), ["d"]))))


def test_missing_labels_of_every_kind():
    image = pictures(1)[0]
    for missing in (None, -1, float("nan"), np.nan, torch.tensor(-1)):
        assert "labels" not in ImageCollator(PROCESSOR)([{"image": image, "label": missing}])
    rows = [{"image": image, "label": 1.0}, {"image": image, "label": float("nan")}]
    with pytest.raises(ValueError, match="row 1 of the batch has no label"):
        ImageCollator(PROCESSOR)(rows)


def test_a_reader_refuses_other_forms():
    with pytest.raises(ValueError, match="form"):
        LabelReader("clas")
    for form, value in (("class", 0.5), ("value", "x"), ("vector", 1), ("set", ["x"])):
        with pytest.raises(ValueError, match="are no"):
            LabelReader(form, width=3)([value])
    with pytest.raises(ValueError, match="class 3, and the classes are 0 to 2"):
        LabelReader("set", width=3)([[3]])
    with pytest.raises(ValueError, match=r"lists of 2 numbers.*one has 3"):
        LabelReader("vector")([[1, 0], [1, 0, 1]])


# ---- which column ----


def test_a_usual_name_goes_before_a_type_and_names_have_an_order(caplog):
    def found(**columns):
        return image_columns(data_of(1, **columns))[1]

    source, number, text = (ClassLabel(names=["x"]), [0]), (Value("int64"), [1]), (Value("string"), ["a"])
    assert found(source=source, label=number) == "label"
    assert "from the column 'label' (int64), not from source (ClassLabel of 1)" in caplog.text
    assert found(target=number, **{"class": number}) == "class"
    assert found(fine_label=source, coarse_label=source) == "fine_label"
    assert found(coarse_label=source) == "coarse_label"
    assert found(labels=number, label=text) == "label"
    assert found(Label=number) == "Label"
    assert found(cls=number) == "cls"
    assert found(category=text, caption=text) == "category"
    assert found(id=number, caption=text, source=source) == "source"
    assert found(id=number, caption=text) is None
    # a usual name with a type that labels cannot have
    assert found(label=({"x": Value("int64")}, [{"x": 1}]), target=number) == "target"


def test_a_setting_wins(tmp_path):
    data = data_of(label=(CLASSES, [0]), y=(CLASSES, [2]), mask=(Image(), pictures(8)[::-1]))
    trainer = trainer_of(tmp_path, data, label_column="y", image_column="mask")
    assert trainer.data_collator.input_columns == ("mask", "y")
    assert next(iter(trainer.get_train_dataloader()))["labels"].tolist() == [2] * 8
    for settings, message in (
        ({"label_column": "lable"}, r"label_column is 'lable'.*no column.*label \(ClassLabel of 3\).*mean 'label'"),
        ({"image_column": "label"}, r"holds no images but ClassLabel of 3"),
        ({"label_column": "mask"}, r"type Image, which labels cannot have"),
    ):
        with pytest.raises(ValueError, match=message):
            trainer_of(tmp_path, data, **settings)


def test_what_stays_open_is_refused_with_all_columns(tmp_path):
    two = data_of(source=(CLASSES, [0]), place=(CLASSES, [1]))
    with pytest.raises(ValueError, match=r"several columns may be the labels \(source, place\).*Set label_column"):
        trainer_of(tmp_path, two)
    trainer_of(tmp_path, two, task_weight=0.0, ot_weight=1.0)  # no term needs them
    none = data_of(caption=(Value("string"), ["x"]), score_of=(Value("float32"), [0.5]))
    with pytest.raises(ValueError, match=r"image \(Image\), caption \(string\), score_of \(float32\)"):
        trainer_of(tmp_path, none)
    with pytest.raises(ValueError, match=r"several columns may be the images: left, right"):
        find_columns(data_of(1, left=(Image(), pictures(1)), right=(Image(), pictures(1))).remove_columns("image"))


def test_masks_and_nested_labels_are_named(tmp_path):
    scenes = data_of(annotation=(Image(), pictures(8)))
    with pytest.raises(ValueError, match=r"'annotation' holds images \(masks\).*annotation \(Image\)"):
        trainer_of(tmp_path, scenes)
    shards = data_of(json=({"label": Value("int64")}, [{"label": 1}])).rename_column("image", "jpg")
    with pytest.raises(ValueError, match=r"'json' has a field 'label': dataset.map"):
        trainer_of(tmp_path, shards)
    assert image_columns(shards.add_column("cls", [1] * 8)) == ("jpg", "cls")


def test_raw_images_without_a_processor_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"raw images \(column 'image'.*processing_class"):
        make_trainer(tmp_path, data=data_of(label=(CLASSES, [0])), ot_weight=0.0)


def test_empty_data_sets_are_refused(tmp_path):
    data = data_of(label=(CLASSES, [0]))
    with pytest.raises(ValueError, match="train_dataset is empty"):
        trainer_of(tmp_path, data.select([]))
    with pytest.raises(ValueError, match="eval_dataset 'b' is empty"):
        trainer_of(tmp_path, data, evaluation={"a": data, "b": data.select([])})


# ---- data sets that do not tell their types ----


class Pairs(TorchDataset):
    """What `torchvision.datasets.ImageFolder` is to those who read it."""

    classes = ("a", "b", "c")

    def __init__(self, tensors: bool = False):
        self.images, self.tensors = pictures(8), tensors

    def __len__(self):
        return 8

    def __getitem__(self, index):
        image = torch.zeros(3, 4, 4) if self.tensors else self.images[index]
        return image, index % 3


def test_streams_transforms_lists_and_pairs(tmp_path):
    labels = [i % 3 for i in range(8)]
    plain = data_of(label=(CLASSES, [0, 1, 2]))
    stream = IterableDataset.from_generator(lambda: iter(plain))
    assert stream.features is None
    turned = plain.with_transform(lambda rows: rows | {"image": [i.rotate(90) for i in rows["image"]]})
    for data in (stream, plain.to_iterable_dataset(), turned, list(plain), Pairs(), Subset(Pairs(), range(8))):
        assert image_columns(data) == ("image", "label")
        trainer = trainer_of(tmp_path, data)
        assert torch.cat([b["labels"] for b in trainer.get_eval_dataloader(data)]).tolist() == labels
        assert trainer.train().global_step == 1
    for data in (plain.to_iterable_dataset(), turned, Pairs(), Subset(Pairs(), range(8))):  # they tell the classes
        with pytest.raises(ValueError, match="num_labels=3"):
            trainer_of(tmp_path, data, student=vit(labels=2))
    assert image_columns(plain.with_transform(lambda rows: {"pixel_values": rows["image"]})) is None
    with pytest.raises(ValueError, match="leave ToTensor and Normalize out"):
        image_columns(Pairs(tensors=True))


def test_looking_at_the_first_row_draws_no_random_number():
    plain = data_of(label=(CLASSES, [0, 1, 2]))

    def turned(rows):
        angle = float(torch.rand(())) + np.random.rand()
        return rows | {"image": [image.rotate(angle) for image in rows["image"]]}

    data = plain.with_transform(turned)
    torch.manual_seed(0)
    np.random.seed(0)
    wanted = torch.rand(()), np.random.rand()
    torch.manual_seed(0)
    np.random.seed(0)
    assert image_columns(data) == ("image", "label")
    assert (torch.rand(()), np.random.rand()) == wanted


def test_texts_of_a_stream_need_the_students_names(tmp_path):
    stream = data_of(label=(Value("string"), ["c", "a", "b"])).to_iterable_dataset()
    with pytest.raises(ValueError, match="does not tell them all"):
        trainer_of(tmp_path, stream)
    student = vit()
    student.config.id2label = {0: "b", 1: "c", 2: "a"}
    trainer = trainer_of(tmp_path, stream, student=student)
    assert next(iter(trainer.get_eval_dataloader(stream)))["labels"].tolist() == [1, 2, 0, 1, 2, 0, 1, 2]


def test_a_head_is_fitted_by_the_columns_of_training_where_they_exist(tmp_path):
    chosen, other = [0, 1, 2, 2, 1, 0, 1, 2], [0] * 8
    data = data_of(label=(CLASSES, other), y=(CLASSES, chosen))
    trainer = trainer_of(tmp_path, data, label_column="y", task_weight=0.0, ot_weight=1.0)

    def seen(dataset):
        with trainer.reading_columns_of(dataset):
            return torch.cat([batch["labels"] for batch in trainer.get_eval_dataloader(dataset)]).tolist()

    assert seen(data) == chosen
    assert seen(data.remove_columns("y")) == other
    student = trainer.model
    student.config.id2label = {0: "c", 1: "b", 2: "a"}
    assert seen(data_of(kind=(Value("string"), ["a"]), label=(Value("string"), ["c", "a"]))) == [0, 2] * 4


# ---- images ----


def test_the_mode_of_the_images_is_kept(tmp_path):
    grey = Dataset.from_dict(
        {"image": pictures(4), "label": [0] * 4}, features=Features({"image": Image(mode="L"), "label": CLASSES})
    )
    assert leave_encoded(grey, "image").features["image"] == Image(mode="L")
    pixels = next(iter(trainer_of(tmp_path, grey).get_train_dataloader()))["pixel_values"]
    assert torch.equal(pixels[:, 0], pixels[:, 1])
    assert torch.equal(pixels[:, 0], pixels[:, 2])
    assert pixels.std() > 0.1


def test_encoded_images_and_arrays():
    encoded = [{"bytes": b"x", "path": None}]
    struct = {"bytes": Value("binary"), "path": Value("string")}
    for feature, value in (
        (struct, encoded),
        (Value("binary"), [b"x"]),
        (Array3D((4, 4, 3), "uint8"), [np.zeros((4, 4, 3), "uint8")]),
    ):
        data = Dataset.from_dict(
            {"image": value, "label": [0]}, features=Features({"image": feature, "label": CLASSES})
        )
        assert image_columns(data) == ("image", "label")
    assert image_columns(data_of(1, image=(Value("string"), ["a.png"]))) is None
    assert image_columns(data_of(1, image=(List(Image()), [pictures(1)]))) is None


def test_names_of_all_kinds():
    data = data_of(4, b=(Value("bool"), [True]), t=(Value("string"), ["z", "k"]), s=(List(CLASSES), [[1]]))
    assert label_names(data, "b") == ["False", "True"]
    assert label_names(data, "t") == ["k", "z"]
    assert label_names(data, "s") == ["a", "b", "c"]
    with pytest.raises(ValueError, match="a stream does not tell its classes"):
        label_names(data.to_iterable_dataset(), "t")
