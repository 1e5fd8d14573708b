"""The command line: what it prints, writes and exits with. What starts it is tried in processes of their own."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageClassification, ViTImageProcessor

from hf_reprot.cli import main
from tests.hub_server.fixtures import READ_TOKEN, hub, run_python  # noqa: F401
from tests.toy_models import resnet

CARDS = Path(__file__).parents[1] / "model_cards"


def _run(*arguments, folder, code=0):
    done = subprocess.run(
        [sys.executable, "-m", "hf_reprot.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=folder,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "120", "TERM": "dumb"},
        timeout=240,
        check=False,
    )
    assert done.returncode == code, done.stdout[-2000:] + done.stderr[-2000:]
    return done


@pytest.fixture
def call(tmp_path, monkeypatch, capfd):
    """Runs a command in this process, in the test's folder: another process would spend its time on imports."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def run(*arguments, code=0):
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        said = capfd.readouterr()
        assert ended.value.code == code, said.out[-2000:] + said.err[-2000:]
        return said

    return run


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    resnet(labels=10).save_pretrained(folder)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_trains_by_a_recipe_and_flags(tmp_path, teacher):
    recipe = tmp_path / "run.yaml"
    recipe.write_text(
        f"dataset: digits\nstudent: resnet10t\nimage_size: 32\nteacher: {teacher}\noutput_dir: out\n"
        "max_steps: 3\nmax_train_samples: 40\nmax_eval_samples: 20\nreport_to: none\nlogging_steps: 1\n"
        "layer_pairs: last\nteacher_model_init_kwargs: {attn_implementation: eager}\n"
    )
    done = _run("train", recipe, "--ot_weight", "0.5", "--max_steps", "2", folder=tmp_path)
    assert "eval_accuracy" in done.stdout
    assert "wrote out" in done.stdout
    assert "hf-reprot push out YOUR_NAME/out" in done.stdout
    card = (tmp_path / "out" / "README.md").read_text()
    assert "pipeline_tag: image-classification" in card
    accuracy = json.loads((tmp_path / "out" / "eval_results.json").read_text())["eval_accuracy"]
    assert f"value: {accuracy:.4f}"[:11] in card
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    assert state["global_step"] == 2
    assert "ot_loss" in state["log_history"][0]
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "out")
    assert model(torch.zeros(1, 3, 32, 32)).logits.shape == (1, 10)
    assert not list((tmp_path / "out").rglob("*.bin"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--ot_wieght", "1"], "Did you mean '--ot_weight'"),
        (["train", "--ot_weight", "much"], "invalid float value: 'much'"),
        (["train", "no-such.yaml"], "no-such.yaml cannot be read"),
        (["train", "--output_dir", "x"], "no student given"),
        (["train", "--output_dir", "x", "--student", "resnet10", "--dataset", "digits"], "resnet10t"),
        (["train", "--processes", "two"], "--processes takes a number"),
        (["demo", "--seeds", "0"], "--seeds"),
        (["trian"], "No such command"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(tmp_path, arguments, message):
    if "resnet10" in arguments:
        arguments = [*arguments, "--ot_weight", "0"]
    done = _run(*arguments, folder=tmp_path, code=2)
    lines = [line for line in done.stderr.splitlines() if line.startswith("hf-reprot: error: ")]
    assert len(lines) == 1
    assert message in lines[0]
    assert "Traceback" not in done.stderr


def test_a_recipe_with_a_misspelt_setting_or_another_shape(tmp_path, call):
    (tmp_path / "a.yaml").write_text("student: x\not_wieght: 1\n")
    assert "Did you mean 'ot_weight'" in call("train", "a.yaml", code=2).err
    (tmp_path / "b.yaml").write_text("- a list\n")
    assert "must be a mapping" in call("train", "b.yaml", code=2).err
    (tmp_path / "c.yaml").write_text("student: !!python/object/apply:os.system ['touch pwned']\n")
    assert "is not YAML" in call("train", "c.yaml", code=2).err
    assert not (tmp_path / "pwned").exists()


def test_help_names_the_settings(tmp_path):
    assert "--ot_weight" in _run("train", "--help", folder=tmp_path).stdout
    assert "demo" in _run("--help", folder=tmp_path).stdout


def test_a_card_is_written_anew(tmp_path, call):
    shutil.copytree(CARDS / "small", tmp_path / "small")
    (tmp_path / "small" / "README.md").unlink()
    assert "wrote small/README.md" in call("card", "small", "--repository", "ada/small").out
    assert "ada/small" in (tmp_path / "small" / "README.md").read_text()
    assert "transfer.json" in call("card", "nothing", code=2).err


def test_what_cannot_be_pushed_is_one_line(tmp_path, call):
    shutil.copytree(CARDS / "small", tmp_path / "small")  # a card without weights
    error = call("push", "small", "ada/small", code=2).err
    assert error.startswith("hf-reprot: error: ")
    assert "weights" in error


@pytest.mark.slow
def test_a_student_is_pushed(tmp_path, teacher, hub):  # noqa: F811
    folder = tmp_path / "student"
    shutil.copytree(teacher, folder)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# A student\n")
    done = run_python(hub, ["-m", "hf_reprot.cli", "push", str(folder), "ada/pushed", "--private"], cwd=tmp_path)
    assert "pushed to" in done.stdout
    script = "from huggingface_hub import HfApi\ninfo = HfApi().model_info('ada/pushed')\n"
    script += "print(info.private, len(info.siblings))"
    private, files = run_python(hub, script).stdout.split()
    assert private == "True"
    assert int(files) >= 4
    failed = run_python(hub, ["-m", "hf_reprot.cli", "push", str(folder), "ada/pushed"], token=READ_TOKEN, check=False)
    assert failed.returncode == 2
    assert len(failed.stderr.strip().splitlines()) == 1
    assert READ_TOKEN not in failed.stderr


def test_two_models_are_compared(tmp_path, teacher, call):
    arguments = ("--dataset", "digits", "--samples", "20", "--layers", "stages", "--folder", "out")
    said = call("compare", teacher, teacher, *arguments)
    assert "match" in said.out
    assert max(map(len, said.out.splitlines())) <= 120
    assert (tmp_path / "out" / "transport.png").is_file()
