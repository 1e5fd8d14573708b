"""The demo: its report, its pictures, what it says of progress."""

import contextlib
import html.parser
import io
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image
from transformers import AutoModelForImageClassification

from hf_reprot.cli import main
from hf_reprot.commands import demo as demo_module
from hf_reprot.commands.demo import CONTROL, JOBS, OURS, PLAIN, DemoResult, run_demo
from hf_reprot.plots.responses import best_pairs, responses_figure

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A demo of a few steps by command: its result, what it told while it ran, its folder, and what it printed."""
    folder, lines, results, printed = tmp_path_factory.mktemp("demo"), [], [], io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(demo_module, "print", lambda *text, **_: lines.append(" ".join(text)), raising=False)
        patch.setattr(demo_module, "run_demo", lambda *a, **k: results.append(run_demo(*a, **k)) or results[0])
        with pytest.raises(SystemExit) as ended:
            main(["demo", str(folder), "--seeds", "1", "--labels", "20", "--steps", "2"])
    assert ended.value.code == 0
    return results[0], lines, folder, printed.getvalue()


class _Tags(html.parser.HTMLParser):
    VOID = ("meta", "img", "br", "link")

    def __init__(self):
        super().__init__()
        self.open, self.images, self.wrong, self.texts = [], [], 0, []

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        for name in ("src", "href"):
            assert (given.get(name) or "data:").startswith("data:"), given
        if tag == "img":
            self.images.append(given)
        self.wrong += given.get("class") == "wrong"
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def test_the_report_holds_everything_and_loads_nothing(ran):
    result, _, folder, _ = ran
    page = result.report.read_text("utf-8")
    assert result.report == folder / "report.html"
    tags = _Tags()
    tags.feed(page)
    assert tags.open == []
    assert "url(" not in page
    assert "<script" not in page
    text = " ".join(tags.texts)
    for job in JOBS.values():
        assert job.title in text
    for method in (PLAIN, "logits", "FitNet", CONTROL, OURS):
        assert text.count(method) >= len(JOBS)
    assert all(image["alt"] and image["src"].startswith("data:image/png;base64,") for image in tags.images)
    assert len(tags.images) == len(result.pictures) + 24
    assert len(re.findall(r"\(wrong\)", page)) == tags.wrong
    assert 0 < tags.wrong <= 3 * 24


def test_the_pictures_and_the_student_lie_beside_it(ran):
    result, _, folder, printed = ran
    assert [path.name for path in result.pictures] == ["accuracy.png", "curves.png", "plan.png", "neurons.png"]
    for path in result.pictures:
        with Image.open(path) as image:
            assert image.width == 1280
    assert not (folder / "runs").exists()
    model = AutoModelForImageClassification.from_pretrained(result.student)
    assert model.config.model_type == "vit"
    assert model.config.id2label == {i: str(i) for i in range(10)}
    for text in ("random pairing (control)", "FitNet", "ahead in", "report.html", "took "):
        assert text in printed


def test_progress_is_told_where_there_is_no_terminal(ran):
    _, lines, _, _ = ran
    assert 8 <= len(lines) <= 11
    shares = [int(line.split("%")[0]) for line in lines]
    assert shares == sorted(shares)
    assert shares[0] == 0
    assert shares[-1] == 100
    assert "teacher" in lines[0]


def test_each_method_ran_once_a_seed(ran):
    result, _, _, _ = ran
    assert {job for job, _ in result.accuracies} == set(JOBS)
    assert all(len(found) == 1 and 0 <= found[0] <= 1 for found in result.accuracies.values())


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize("width", [1200, 500])
def test_a_browser_shows_the_report(ran, tmp_path, width):
    result, _, _, _ = ran
    shot = tmp_path / "shot.png"
    command = [CHROMIUM, "--headless", "--no-sandbox", "--hide-scrollbars", f"--user-data-dir={tmp_path / 'profile'}"]
    command += [f"--window-size={width},2400", f"--screenshot={shot}", result.report.as_uri()]
    subprocess.run(command, capture_output=True, timeout=240, check=True)
    with Image.open(shot) as image:
        pixels = np.asarray(image.convert("L"))
    assert pixels.shape[1] == width
    assert (pixels < 128).any(1).mean() > 0.3  # rows with ink: text, tables and pictures, not an empty page
    assert (pixels[:, -4:] > 200).all()  # nothing runs over the right edge


# ---- what it says ----


def _result(ours, control):
    accuracies = {("label-free", m): [0.5, 0.5] for m in JOBS["label-free"].methods}
    accuracies["label-free", "FitNet"] = [0.6, 0.7]
    accuracies["label-free", OURS], accuracies["label-free", CONTROL] = ours, control
    return DemoResult({"label-free": JOBS["label-free"]}, accuracies, 0.99, 60, 1197, 1.0, None)


def test_the_reading_names_the_best_rival_and_the_control():
    (line,) = _result([0.8, 0.8], [0.8, 0.9]).reading()
    assert "against the best other method (FitNet) +15.0 ± 7.1 points, ahead in 2 of 2 seeds" in line
    assert "against its control -5.0 ± 7.1 points, ahead in 0 of 2 seeds" in line
    (table,) = _result([0.8, 0.8], [0.8, 0.9]).rows()
    assert table["rows"][2] == ["FitNet", "65.0 ± 7.1", "+15.0 ± 7.1", "+15.0 ± 7.1"]
    assert table["rows"][4] == [OURS, "80.0 ± 0.0", "+30.0 ± 0.0", ""]


def test_jobs_without_the_control_are_refused(tmp_path):
    import dataclasses

    job = dataclasses.replace(JOBS["label-free"], methods={PLAIN: {}, OURS: {}})
    with pytest.raises(ValueError, match=r"must hold random pairing \(control\)"):
        run_demo(tmp_path, jobs={"label-free": job})


# ---- matched neurons ----


def test_partners_come_by_the_plan_and_the_best_first():
    generator = np.random.default_rng(0)
    teacher = generator.normal(size=(50, 4))
    teacher[:, 3] = 1.0
    student = np.stack([teacher[:, 2], teacher[:, 0] + generator.normal(size=50), teacher[:, 2], teacher[:, 1]], 1)
    plan = np.zeros((4, 4))
    plan[[0, 1, 2, 3], [2, 0, 2, 3]] = 0.25  # the last one is given the constant neuron
    pairs = best_pairs(student, teacher, plan)
    assert [(i, j) for i, j, _ in pairs] == [(0, 2), (1, 0)]
    assert pairs[0][2] == pytest.approx(1)
    assert 0.4 < pairs[1][2] < 0.95


def test_the_figure_shows_the_images_that_excite_most():
    images = np.arange(6)[:, None, None] * np.ones((6, 2, 2))
    responses = np.array([[0.0, 5, 1, 4, 2, 3]]).T
    figure = responses_figure(images, responses, responses, [[1.0]], shown=3)
    shown = [axes.images[0].get_array()[0, ::2].tolist() for axes in figure.axes]
    assert shown == [[1, 3, 5], [1, 3, 5]]
    with pytest.raises(ValueError, match="they do not fit together"):
        responses_figure(images, responses[:5], responses, [[1.0]])
