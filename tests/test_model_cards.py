"""The cards in `model_cards/` are what the code renders today from the records beside them."""

import re
import shutil
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from hf_reprot.hub import rebuild_card
from studies.cards import beside

FOLDERS = sorted(path.parent for path in (Path(__file__).parents[1] / "model_cards").glob("*/transfer.json"))


def test_there_is_a_card_for_each_example():
    assert [folder.name for folder in FOLDERS] == ["distilled", "finetuned", "small"]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_is_what_the_code_renders(folder, tmp_path):
    copy = tmp_path / folder.name
    shutil.copytree(folder, copy)
    (copy / "README.md").unlink()
    written = rebuild_card(copy).read_text("utf-8") + beside(folder.name)
    assert written == (folder / "README.md").read_text("utf-8")


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_is_a_card_of_a_student(folder):
    card = ModelCard.load(folder / "README.md")
    assert card.data.pipeline_tag == "image-classification"
    assert {"hf_reprot", "optimal-transport"} <= set(card.data.tags)
    assert card.data.eval_results[0].metric_value > 0.2
    for picture in re.findall(r"\]\(([^)]+\.png)\)", card.text):
        assert (folder / picture).is_file()
