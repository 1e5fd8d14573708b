"""The soak finds a process flat that is, and what grows where something does."""

import threading

import pytest
import torch

from benchmarks import soak
from benchmarks.soak import Reading, growth, verdict

FEW = ["--steps", "6", "--trainers", "3", "--evaluations", "3", "--slack-mib", "300"]


def readings(**series):
    count = len(next(iter(series.values())))
    fixed = {"memory": 100.0, "threads": 4, "files": 9, "tensors": 50, "hooks": 0}
    return [Reading(**fixed | {name: values[i] for name, values in series.items()}) for i in range(count)]


def test_what_grows_is_named():
    assert growth(readings(memory=[50.0, 90.0, 92.0, 95.0, 95.0, 96.0]))["memory"] == pytest.approx(2.0)
    warm_up = readings(memory=[50.0, 80.0, 99.0, 100.0, 101.0, 100.0], threads=[1, 2, 4, 4, 4, 4])
    assert verdict(warm_up, slack=5) == "flat"
    assert verdict(readings(memory=[10.0 * i for i in range(9)]), slack=8) == "memory +30"
    assert verdict(readings(files=list(range(9)), hooks=[0] * 9), slack=8) == "files +3"
    assert "2 hooks left" in verdict(readings(files=[1] * 6), slack=8, left=2)


def test_a_short_soak_is_flat(capsys):
    assert soak.main([*FEW, "--trials", "0"]) == 0
    printed = capsys.readouterr().out
    for phase in ("steps", "trainers", "evaluations"):
        assert phase in printed
    assert printed.count("flat") == 3


@pytest.mark.slow
def test_a_short_search_is_flat(capsys):
    pytest.importorskip("optuna")
    few = ["--steps", "0", "--trainers", "0", "--evaluations", "0", "--trials", "6", "--slack-mib", "300"]
    assert soak.main(few) == 0
    assert "trials" in capsys.readouterr().out


def test_what_a_trainer_leaves_behind_is_found(capsys, monkeypatch):
    made, stop, kept = soak.Soak.trainer, threading.Event(), []

    def leaking(self, *args, **kwargs):
        threading.Thread(target=stop.wait, daemon=True).start()
        kept.append(torch.zeros(3))
        self.student.register_forward_hook(lambda *_: None)
        return made(self, *args, **kwargs)

    monkeypatch.setattr(soak.Soak, "trainer", leaking)
    try:
        few = ["--steps", "0", "--trainers", "6", "--evaluations", "0", "--trials", "0", "--slack-mib", "300"]
        assert soak.main(few) == 1
    finally:
        stop.set()
    printed = capsys.readouterr().out
    for grown in ("threads +", "tensors +", "6 hooks left"):
        assert grown in " ".join(printed.split())


def test_counts_that_show_nothing_are_refused(capsys):
    with pytest.raises(SystemExit):
        soak.main(["--steps", "2"])
    assert "--steps must be 0 or at least 3" in capsys.readouterr().err
