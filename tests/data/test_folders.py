"""Data that people have: tables with images or paths, folders with metadata, files that are no pictures."""

import io

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as PILImage

from hf_reprot.data.datasets import load_image_dataset
from hf_reprot.data.folders import load_tables
from hf_reprot.data.images import open_image, raster_endings
from hf_reprot.hub.provenance import data_facts


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """Tables are read through a cache of `datasets`."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def save(path, value: int):
    path.parent.mkdir(parents=True, exist_ok=True)
    PILImage.new("RGB", (8, 8), (value, 0, 0)).save(path)


def reds(data) -> list[int]:
    return [open_image(image).getpixel((0, 0))[0] for image in data["image"]]


@pytest.mark.parametrize(("ending", "between"), [("csv", ","), ("tsv", "\t")])
def test_tables_of_paths_and_texts(tmp_path, ending, between):
    for value in (10, 20, 30):
        save(tmp_path / "pictures" / f"{value}.png", value)
    for split, rows in {"train": [(10, "dog"), (20, "cat")], "test": [(30, "dog")]}.items():
        lines = [between.join(("image_path", "label")), *(f"pictures/{v}.png{between}{name}" for v, name in rows)]
        (tmp_path / f"{split}.{ending}").write_text("\n".join(lines))
    data = load_image_dataset(tmp_path)
    assert reds(data["train"]) == [10, 20]
    assert reds(data["test"]) == [30]
    assert data["train"].features["label"] == ClassLabel(names=["cat", "dog"])
    assert (data["train"]["label"][:], data["test"]["label"][:]) == ([1, 0], [1])
    alone = load_image_dataset(tmp_path / f"train.{ending}")
    assert reds(alone["train"]) == [10, 20]


def test_parquet_with_bytes(tmp_path):
    buffers = []
    for value in (5, 6):
        buffer = io.BytesIO()
        PILImage.new("RGB", (4, 4), (value, 0, 0)).save(buffer, "png")
        buffers.append(buffer.getvalue())
    features = Features({"image": Value("binary"), "label": Value("int64")})
    Dataset.from_dict({"image": buffers, "label": [1, 0]}, features=features).to_parquet(tmp_path / "train.parquet")
    data = load_image_dataset(tmp_path)["train"]
    assert isinstance(data.features["image"], Image)
    assert reds(data) == [5, 6]
    assert data["label"][:] == [1, 0]


@pytest.mark.parametrize("place", ["", "train/"])
def test_metadata_goes_before_the_names_of_folders(tmp_path, place):
    for value in (10, 20):
        save(tmp_path / place / f"{value}.png", value)
    (tmp_path / place / "metadata.jsonl").write_text(
        '{"file_name": "20.png", "label": "y"}\n{"file_name": "10.png", "label": "x"}'
    )
    data = load_image_dataset(tmp_path)["train"]
    assert reds(data) == [20, 10]
    assert data["label"][:] == [1, 0]


def test_paths_that_lead_nowhere_or_out_are_refused(tmp_path):
    save(tmp_path / "secret.png", 1)
    for path, message in (("none.png", "does not exist"), ("../secret.png", "outside of its folder")):
        table = tmp_path / "data" / "train.csv"
        table.parent.mkdir(exist_ok=True)
        table.write_text(f"image,label\n{path},a")
        with pytest.raises(ValueError, match=message):
            load_image_dataset(table.parent)


def test_a_table_without_images_is_said_and_the_folders_count(tmp_path, caplog):
    for name in ("a", "b"):
        save(tmp_path / name / "1.png", 9)
    (tmp_path / "notes.csv").write_text("id,breed\n1,x")
    assert load_tables([tmp_path / "notes.csv"]) is None
    data = load_image_dataset(tmp_path)["train"]
    assert "notes.csv is not read" in caplog.text
    assert data["label"][:] == [0, 1]


def test_a_folder_is_called_by_its_name(tmp_path):
    save(tmp_path / "my birds" / "finch" / "1.png", 9)
    data = load_image_dataset(tmp_path / "my birds")["train"]
    assert data_facts(data).name == "my birds"
    assert data_facts(data.shuffle(seed=0).select([0])).name == "my birds"
    assert str(tmp_path) not in repr(data_facts(data))


def test_only_pictures_are_opened(tmp_path):
    assert {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".webp", ".gif"} <= raster_endings()
    assert not {".eps", ".ps", ".pdf", ".wmf", ".mpg", ".h5"} & raster_endings()
    text = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    assert PILImage.open(io.BytesIO(text)).format == "EPS"
    with pytest.raises(ValueError, match="cannot be decoded"):
        open_image({"bytes": text, "path": None})
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.eps").write_bytes(text)
    save(tmp_path / "a" / "2.png", 9)
    (tmp_path / "a" / "3.png").write_bytes(text)
    data = load_image_dataset(tmp_path)["train"]
    assert len(data) == 2
    with pytest.raises(ValueError, match="cannot be decoded"):
        open_image(data.cast_column("image", Image(decode=False))[1]["image"])


def test_an_empty_data_set_is_one_line(tmp_path):
    features = Features({"image": Image(), "label": Value("int64")})
    Dataset.from_dict({"image": [], "label": []}, features=features).save_to_disk(tmp_path / "none")
    with pytest.raises(ValueError, match="is empty or damaged"):
        load_image_dataset(tmp_path / "none")


def test_bytes_alone_are_an_image():
    buffer = io.BytesIO()
    PILImage.fromarray(np.full((3, 3, 3), 7, np.uint8)).save(buffer, "png")
    assert open_image(buffer.getvalue()).getpixel((0, 0)) == (7, 7, 7)
