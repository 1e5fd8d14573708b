"""What a GPU will be asked, rehearsed on the CPU without POT and `datasets`; and what is written of it."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.gpu.__main__ import PARTS, main
from benchmarks.gpu.report import BEGIN, DOCS, END, headline, section, write_report
from benchmarks.gpu.results import JSON, MARKDOWN, Results, shown, table
from benchmarks.gpu.sizes import TOY
from benchmarks.gpu.time_box import run_parts

ROOT = Path(__file__).parents[1]
WITHOUT = "import sys; sys.modules['ot'] = sys.modules['datasets'] = None; from benchmarks.gpu.__main__ import main; "


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpu")
    command = [
        sys.executable,
        "-c",
        f"{WITHOUT}sys.exit(main(['--rehearse', '--minutes', '9', '--out', {str(folder)!r}]))",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((folder / JSON).read_text()), (folder / MARKDOWN).read_text()


def test_every_part_comes_to_its_end(rehearsed):
    data, text = rehearsed
    assert {name: part["ended"] for name, part in data["parts"].items()} == dict.fromkeys(PARTS, "done")
    assert data["parts"]["solver"]["notes"][0].startswith("Not installed here, and left out: POT")
    (tests,) = data["parts"]["checks"]["tables"].values()
    assert {row["result"] for row in tests} == {"passed"}
    loops, in_trainer = data["parts"]["steps"]["tables"].values()
    assert loops[0]["with transport instead"] > 0
    assert [row["loss beside the labels"] for row in in_trainer] == [
        "logits, by hand",
        "logits",
        "transport and logits",
    ]
    (trained,) = data["parts"]["training"]["tables"].values()
    assert trained[1]["loaded"].startswith("logits differ by")
    for part in PARTS:
        assert f"## {part.capitalize()} (done" in text
    assert data["facts"]["torch"] in text


def test_a_rehearsal_stays_out_of_the_docs(rehearsed, tmp_path, capsys):
    (tmp_path / JSON).write_text(json.dumps(rehearsed[0]))
    before = DOCS.read_text()
    with pytest.raises(SystemExit, match="2"):
        main(["--report", str(tmp_path)])
    assert "of a rehearsal on the CPU" in capsys.readouterr().err
    assert DOCS.read_text() == before


def test_results_of_a_device_are_written_between_the_marks(tmp_path):
    results = Results(tmp_path, {"device": "cuda", "card": "NVIDIA H200", "torch": "2.11.0", "commit": "abc1234"})
    results.row("device", "Ceilings", what="copy, TB/s read and written", value=4.31234)
    results.row("checks", "Tests marked `cuda`", file="test_kernels.py", test="test_a", result="passed")
    results.row("checks", "Tests marked `cuda`", file="test_kernels.py", test="test_b", result="failed")
    results.end("checks", "out of time", 12.3)
    page = tmp_path / "speed.md"
    page.write_text(f"# Speed\n\nabove\n\n{BEGIN}\n\n{section(None)}\n\n{END}\n\nbelow\n")
    write_report(tmp_path, page)
    text = page.read_text()
    assert text.startswith("# Speed\n\nabove\n\n")
    assert text.endswith("\n\nbelow\n")
    assert "| figure | on NVIDIA H200 |" in text
    assert "| copy, TB/s | 4.31 |" in text
    assert "| tests marked `cuda` that pass | 1 of 2 |" in text
    assert "| a student trained, saved and loaded | not measured |" in text
    assert "### Checks (out of time, 12 s)" in text
    assert "torch 2.11.0, commit abc1234" in text
    assert results.failed
    write_report(tmp_path, page)  # a second time changes nothing
    assert page.read_text() == text


def test_the_page_has_a_place_for_it():
    assert {row["on a GPU"] for row in headline(None)} == {"not measured"}
    page = DOCS.read_text()
    assert page.count(BEGIN) == page.count(END) == 1
    inside = page.split(BEGIN)[1].split(END)[0]
    assert inside.strip() == section(None) or "| figure | on NVIDIA" in inside


def test_a_part_that_fails_or_hangs_leaves_what_it_had(tmp_path):
    results = Results(tmp_path, {"device": "cpu"})

    def hangs(results, sizes, box):
        results.row("hangs", "t", value=1)
        try:
            while True:
                time.sleep(0.01)
        except Exception:
            results.row("hangs", "t", value=2)

    def fails(results, sizes, box):
        results.row("fails", "t", value=3)
        raise ValueError("no")

    def last(results, sizes, box):
        results.row("last", "t", value=box.seconds)

    begin = time.monotonic()
    run_parts({"hangs": (hangs, 0.5), "fails": (fails, 0.2), "last": (last, 0.3)}, results, TOY, 1.0)
    assert time.monotonic() - begin < 30
    found = json.loads((tmp_path / JSON).read_text())["parts"]
    assert found["hangs"]["tables"] == {"t": [{"value": 1}]}
    assert [found[name]["ended"] for name in found] == ["out of time", "failed: ValueError: no", "done"]
    assert "ValueError: no" in found["fails"]["notes"][0]
    assert results.failed


def test_time_that_is_left_goes_to_the_parts_after(tmp_path):
    boxes = []
    parts = {name: (lambda results, sizes, box: boxes.append(box.seconds), 0.5) for name in ("first", "second")}
    run_parts(parts, Results(tmp_path, {}), TOY, 100.0)
    assert boxes[0] == pytest.approx(50, abs=1)
    assert boxes[1] == pytest.approx(100, abs=20)


def test_cells():
    assert [shown(x) for x in (None, float("nan"), 0.00123456, 12345.6, 7, True, "a|b")] == [
        *("-", "-", "0.00123", "12346", "7", "yes", "a/b"),
    ]
    assert table([{"a": 1}, {"b": 2.0}]) == ["| a | b |", "| --- | --- |", "| 1 | - |", "| - | 2 |"]


@pytest.mark.parametrize("wrong", [[], ["--out", "a", "--report", "b"], ["--report", "/nowhere/at all"]])
def test_mistakes_are_one_line(wrong, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(wrong)
    assert len(capsys.readouterr().err.strip().splitlines()[-1]) > 20
