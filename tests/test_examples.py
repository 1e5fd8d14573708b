"""The example of a small student, on digits: labels in training, or for the head only."""

import json
import runpy
import sys
from pathlib import Path

import pytest

from tests.toy_models import resnet

SCRIPT = Path(__file__).parents[1] / "examples" / "transfer_to_small_student.py"


@pytest.mark.parametrize("label_free", [False, True])
def test_a_small_student(tmp_path, monkeypatch, capsys, label_free):
    resnet(seed=1).save_pretrained(tmp_path / "teacher")
    settings = {
        **{"--teacher": tmp_path / "teacher", "--dataset": "digits", "--student": "test_convnext", "--labels": 40},
        **{"--output": tmp_path / "out", "--image-size": 32, "--epochs": 0.05, "--batch-size": 16},
    }
    arguments = [str(part) for pair in settings.items() for part in pair] + ["--label-free"] * label_free
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    assert "test accuracy" in capsys.readouterr().out
    record = json.loads((tmp_path / "out" / "transfer.json").read_text())
    assert record["transfer"]["task_weight"] == (0.0 if label_free else 1.0)
    assert (record["head"] is not None and record["head"]["samples"] == 40) == label_free
