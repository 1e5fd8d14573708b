"""Streams by command line: a local folder, read row by row."""

import pytest
from datasets import IterableDataset
from torchvision.datasets import ImageFolder
from transformers import ViTImageProcessor

from hf_reprot.cli import main
from hf_reprot.commands.train import parse_recipe, run_recipe
from hf_reprot.data.datasets import load_image_dataset
from hf_reprot.hub.provenance import data_facts
from tests.cache.samples import photos
from tests.toy_models import vit


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder "flowers" of images in folders of three classes, and a student of them."""
    place = tmp_path_factory.mktemp("streams")
    for i, row in enumerate(photos(18)):
        folder = place / "flowers" / ("aster", "daisy", "tulip")[row["label"]]
        folder.mkdir(parents=True, exist_ok=True)
        row["image"].save(folder / f"{i}.png")
    student = vit()
    student.config.id2label = dict(enumerate(("aster", "daisy", "tulip")))
    student.config.label2id = {name: i for i, name in student.config.id2label.items()}
    student.save_pretrained(place / "student")
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(place / "student")
    return place


def arguments(place, out):
    found = ["--student", str(place / "student"), "--dataset", str(place / "flowers"), "--streaming", "true"]
    found += ["--output_dir", str(out), "--ot_weight", "0", "--use_cpu", "true", "--report_to", "none"]
    return [*found, "--save_strategy", "no", "--disable_tqdm", "true"]


def test_a_folder_as_a_stream(place, tmp_path):
    more = ["--max_steps", "3", "--eval_split", "train", "--max_eval_samples", "6"]
    result = run_recipe(*parse_recipe([*arguments(place, tmp_path), *more]))
    assert isinstance(result.trainer.train_dataset, IterableDataset)
    assert {"eval_loss", "eval_accuracy"} <= set(result.metrics)
    assert result.trainer.collect_record().train_data.name == "flowers"


def test_a_stream_needs_a_length(place, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["train", *arguments(place, tmp_path)])
    assert ended.value.code == 2
    assert "max_steps" in capsys.readouterr().err


def test_streams_hold_the_rows_of_the_folder(place):
    stored = load_image_dataset(place / "flowers")["train"]
    stream = load_image_dataset(place / "flowers", streaming=True)["train"]
    assert [row["label"] for row in stream] == list(stored["label"])
    chosen = load_image_dataset(place / "flowers", label_column="label", streaming=True)["train"]
    assert set(next(iter(chosen))) == {"image", "label"}


def test_a_folder_of_torchvision_is_called_by_its_name(place):
    facts = data_facts(ImageFolder(place / "flowers"))
    assert (facts.name, facts.samples) == ("flowers", 18)
