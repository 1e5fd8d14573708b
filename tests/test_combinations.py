"""A part of the table of combinations, run again: each teacher, student, task and form of data once or more."""

from pathlib import Path

import pytest

from benchmarks.combination_parts import DATA, STUDENTS, TASKS, TEACHERS, Data
from benchmarks.combinations import FAILS, REFUSED, TRAINS, Cell, fates_on, run, table

PAGE = Path(__file__).parents[1] / "docs" / "combinations.md"
SAMPLE = [
    (Cell("SigLIP2 NaFlex", "timm", "classification", "folder"), TRAINS),
    (Cell("CLIP, whole", "pretrained, by name", "multi-label", "parquet"), TRAINS),
    (Cell("from a cache", "LoRA", "no labels, then a head", "streaming"), TRAINS),
    (Cell("two teachers", "new (transformers)", "segmentation", "in memory"), TRAINS),
    (Cell("DINOv2", "LoRA", "segmentation", "parquet"), TRAINS),
    (Cell("timm", "backbone without a head", "no labels, then a head", "in memory"), TRAINS),
    (Cell("backbone (transformers)", "text", "regression", "parquet"), TRAINS),
    (Cell("DINOv3", "text", "classification", "in memory"), REFUSED),
    (Cell("DINOv2", "backbone without a head", "regression", "folder"), REFUSED),
    (Cell("classifier (transformers)", "timm", "segmentation", "in memory"), REFUSED),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return Data(tmp_path_factory.mktemp("combinations"))


def test_the_sample_has_everything_once():
    for name, values in (("teacher", TEACHERS), ("student", STUDENTS), ("task", TASKS), ("data", DATA)):
        assert {getattr(cell, name) for cell, _ in SAMPLE} == set(values)


@pytest.mark.parametrize(("cell", "expected"), SAMPLE, ids=lambda value: getattr(value, "teacher", None))
def test_a_cell_is_as_the_page_says(cell, expected, data):
    row = run(cell, data)
    assert row["result"] == expected, row["why"]
    assert fates_on(PAGE.read_text(), cell).startswith(expected)


def test_nothing_on_the_page_fails():
    assert FAILS not in PAGE.read_text().split("## ", 1)[1]


def test_a_row_finds_its_place_on_the_page():
    cell = Cell("DINOv2", "LoRA", "regression", "parquet")
    fate = {"result": REFUSED, "why": "for a reason", "seconds": 0.1}
    page = table([vars(cell) | fate])
    assert fates_on(page, cell) == "refused (1)"
    assert fates_on(page, Cell("DINOv2", "LoRA", "regression", "folder")) == "not run"
    assert "1. for a reason" in page
