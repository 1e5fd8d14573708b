"""Images and labels from everywhere into batches: data sets, columns, decoding, augmentation."""

import io

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value
from PIL import Image as PILImage

from hf_reprot.data.dataset_columns import image_columns, is_transformed
from hf_reprot.data.datasets import load_image_dataset
from hf_reprot.data.digits import load_digits_dataset
from hf_reprot.data.images import open_image
from hf_reprot.data.labels import label_names


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """No test asks the Hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)


def picture(value: int = 100, size: tuple[int, int] = (8, 8)) -> PILImage.Image:
    return PILImage.new("RGB", size, (value, value // 2, 0))


# ---- the embedded data set ----


def test_digits_are_stratified_fixed_and_disjoint():
    data = load_digits_dataset()
    assert {name: len(split) for name, split in data.items()} == {"train": 1197, "validation": 300, "test": 300}
    assert data["train"].features == Features(
        {"image": Image(), "label": ClassLabel(names=[str(digit) for digit in range(10)])}
    )
    for split in data.values():
        share = np.bincount(split["label"], minlength=10) / len(split)
        assert share.min() > 0.09
        assert share.max() < 0.11
    first = data["train"][0]["image"]
    assert (first.mode, first.size) == ("L", (8, 8))
    assert max(np.asarray(image).max() for image in data["train"][:50]["image"]) == 255
    again = load_digits_dataset()
    other = load_digits_dataset(seed=1)
    assert again["test"]["label"] == data["test"]["label"]
    assert other["test"]["label"] != data["test"]["label"]
    rows = [np.asarray(image).tobytes() for split in data.values() for image in split["image"]]
    assert len(set(rows)) == len({np.asarray(i).tobytes() for s in other.values() for i in s["image"]})


def test_digits_refuse_sizes_that_leave_nothing():
    with pytest.raises(ValueError, match="validation=1700"):
        load_digits_dataset(validation=1700)


# ---- loading ----


def test_a_folder_of_classes(tmp_path):
    for name in ("cat", "train", "zebra"):  # a class may be called like a split
        (tmp_path / name / "more").mkdir(parents=True)
        picture().save(tmp_path / name / "1.png")
        picture().save(tmp_path / name / "more" / "2.jpg")
        (tmp_path / name / "notes.txt").write_text("no image")
    data = load_image_dataset(tmp_path)
    assert list(data) == ["train"]
    assert label_names(data["train"], "label") == ["cat", "train", "zebra"]
    assert data["train"]["label"] == [0, 0, 1, 1, 2, 2]
    assert data["train"][0]["image"].size == (8, 8)


def test_a_folder_of_splits_numbers_classes_alike(tmp_path):
    for split, names in {"train": ("b", "c"), "val": ("a", "c"), "test": ("c",)}.items():
        for name in names:
            (tmp_path / split / name).mkdir(parents=True)
            picture().save(tmp_path / split / name / "1.png")
    data = load_image_dataset(tmp_path)
    assert set(data) == {"train", "validation", "test"}
    assert label_names(data["test"], "label") == ["a", "b", "c"]
    assert {name: split["label"][:] for name, split in data.items()} == {
        "train": [1, 2],
        "validation": [0, 2],
        "test": [2],
    }


def test_images_without_classes_have_no_labels(tmp_path):
    picture().save(tmp_path / "1.png")
    assert image_columns(load_image_dataset(tmp_path)["train"]) == ("image", None)
    (tmp_path / "cat").mkdir()
    picture().save(tmp_path / "cat" / "1.png")
    with pytest.raises(ValueError, match=r"1\.png lies beside"):
        load_image_dataset(tmp_path)


def test_saved_data_sets(tmp_path):
    data = Dataset.from_dict({"image": [picture()]}, features=Features({"image": Image()}))
    data.save_to_disk(tmp_path / "one")
    DatasetDict({"test": data}).save_to_disk(tmp_path / "several")
    assert list(load_image_dataset(tmp_path / "one")) == ["train"]
    assert list(load_image_dataset(tmp_path / "several")) == ["test"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("org/none", "'org/none' cannot be loaded"),
        ("org/none@v1", "at revision 'v1'"),
        ("/no/folder", "there is no folder"),
    ],
)
def test_what_does_not_exist_is_named(source, message):
    with pytest.raises(ValueError, match=message):
        load_image_dataset(source)


def test_chosen_columns(tmp_path):
    rows = {"image": [picture()] * 3, "photo": [picture(7)] * 3, "kind": ["b", "a", None], "label": [0, 0, 0]}
    features = {"image": Image(), "photo": Image(), "kind": Value("string"), "label": ClassLabel(names=["x"])}
    other = rows | {"kind": ["c", "c", "c"]}
    DatasetDict(
        {
            "train": Dataset.from_dict(rows, features=Features(features)),
            "test": Dataset.from_dict(other, features=Features(features)),
        }
    ).save_to_disk(tmp_path)
    data = load_image_dataset(tmp_path, image_column="photo", label_column="kind")
    assert image_columns(data["train"]) == ("photo", "kind")
    assert label_names(data["test"], "kind") == ["a", "b", "c"]
    assert data["train"]["kind"] == [1, 0, None]
    assert data["test"]["kind"] == [2, 2, 2]
    assert image_columns(load_image_dataset(tmp_path)["train"]) == ("image", "label")
    with pytest.raises(ValueError, match=r"no column 'fotos'.*Did you mean 'photo'"):
        load_image_dataset(tmp_path, image_column="fotos")
    with pytest.raises(ValueError, match="holds no images"):
        load_image_dataset(tmp_path, image_column="label")


def test_paths_become_images(tmp_path):
    picture(50).save(tmp_path / "a.png")
    Dataset.from_dict({"file": [str(tmp_path / "a.png")], "y": [5]}).save_to_disk(tmp_path / "data")
    data = load_image_dataset(tmp_path / "data", image_column="file", label_column="y")["train"]
    assert data[0]["image" if "image" in data.column_names else "file"].getpixel((0, 0)) == (50, 25, 0)
    assert label_names(data, "y") == ["5"]
    with pytest.raises(ValueError, match=r"no column of images: it has file \(string\), y \(int64\)"):
        load_image_dataset(tmp_path / "data")


# ---- columns ----


def test_columns_are_found_by_type():
    def columns(features, **rows):
        return image_columns(Dataset.from_dict(rows, features=Features(features)))

    images, names = [picture()], ClassLabel(names=["a"])
    assert columns({"photo": Image(), "y": names}, photo=images, y=[0]) == ("photo", "y")
    two = {"coarse_label": names, "fine_label": names, "image": Image(), "mask": Image()}
    assert columns(two, coarse_label=[0], fine_label=[0], image=images, mask=images) == ("image", "fine_label")
    assert columns({"image": Image(), "label": Value("int64")}, image=images, label=[3]) == ("image", "label")
    assert columns({"image": Image(), "label": Value("string")}, image=images, label=["3"]) == ("image", "label")
    assert columns({"image": Image(), "pixel_values": Value("int64")}, image=images, pixel_values=[1]) is None
    assert columns({"text": Value("string")}, text=["a"]) is None
    assert image_columns([1, 2]) is None
    assert image_columns(None) is None


def test_transformed_data_sets():
    data = load_digits_dataset()["test"]
    assert not is_transformed(data)
    assert not is_transformed(data.with_format("torch"))
    changed = data.with_transform(lambda rows: {"pixel_values": rows["image"]})
    assert is_transformed(changed)
    assert image_columns(changed) is None
    assert not is_transformed([1])


def test_names_of_classes():
    data = Dataset.from_dict({"n": [0, 3], "f": [0.5, 0.5]})
    assert label_names(data, "n") == ["0", "1", "2", "3"]
    with pytest.raises(ValueError, match="not of classes"):
        label_names(data, "f")


# ---- images ----


def test_transparent_images_lie_on_white():
    clear = PILImage.new("RGBA", (2, 1), (10, 20, 30, 0))
    clear.putpixel((1, 0), (10, 20, 30, 255))
    for image in (clear, _reread(clear), clear.convert("RGBa")):
        assert list(np.asarray(open_image(image))[0].tolist()) == [[255, 255, 255], [10, 20, 30]]
    palette = clear.convert("RGB").quantize(2)
    palette.info["transparency"] = palette.getpixel((1, 0))
    assert open_image(palette).getpixel((1, 0)) == (255, 255, 255)
    assert open_image(PILImage.new("LA", (1, 1), (0, 0))).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr", "HSV", "LAB"])
def test_every_mode_becomes_rgb(mode):
    image = open_image(picture().convert("RGB").convert(mode) if mode != "LAB" else PILImage.new("LAB", (8, 8)))
    assert (image.mode, image.size) == ("RGB", (8, 8))
    assert open_image(image, "L").mode == "L"


def test_sixteen_bits_floats_and_arrays():
    deep = PILImage.fromarray(np.full((2, 2), 32768, dtype=np.uint16))
    assert deep.mode == "I;16"
    assert open_image(_reread(deep)).getpixel((0, 0)) == (128, 128, 128)
    assert open_image(PILImage.new("F", (2, 2), 0.5)).getpixel((0, 0)) == (128, 128, 128)
    assert open_image(torch.full((3, 5, 7), 9, dtype=torch.uint8)).size == (7, 5)
    assert open_image(np.full((5, 7, 3), 0.2)).getpixel((0, 0)) == (51, 51, 51)
    assert open_image(np.array([[True]])).getpixel((0, 0)) == (255, 255, 255)
    for wrong in (np.zeros((2, 5)), np.zeros((2, 5, 7, 3)), np.full((2, 2), np.nan), "text", None):
        if not isinstance(wrong, np.ndarray) or wrong.ndim != 2 or np.isnan(wrong).any():
            with pytest.raises(ValueError, match="is no image"):
                open_image(wrong)


def test_rotation_in_the_file_is_applied_to_encoded_images():
    exif = PILImage.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    buffer = io.BytesIO()
    picture(size=(8, 4)).save(buffer, "jpeg", exif=exif)
    assert open_image({"bytes": buffer.getvalue(), "path": None}).size == (4, 8)


def _reread(image: PILImage.Image) -> PILImage.Image:
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return PILImage.open(io.BytesIO(buffer.getvalue()))
