"""What the trackers of the Hugging Face ecosystem show of a run."""

import contextlib
import json
import sqlite3
import sys
import types

import pytest
from transformers.integrations import integration_utils

from tests.toy_models import Images
from tests.training.runs import make_trainer, training_logs

PAIRS = ["last", "vit.layers.0=resnet.encoder.stages.0"]
SETTINGS = {"kd_weight": 0.5, "l2sp_weight": 0.01, "layer_pairs": PAIRS, "max_steps": 3}


def test_tensorboard_shows_each_term(tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    trainer = make_trainer(tmp_path, report_to="tensorboard", **SETTINGS)
    trainer.train()
    (folder,) = {path.parent for path in (tmp_path / "board").rglob("events.out.tfevents.*")}
    board = EventAccumulator(str(folder))
    board.Reload()
    logs = training_logs(trainer)
    terms = {"loss", "task_loss", "ot_loss", "kd_loss", "l2sp_loss", "ot_cost", "ot_dropped", "dropped_steps"}
    pairs = {name for name in logs[0] if name.startswith("ot_loss/")}
    assert len(pairs) == 2
    for name in terms | pairs:
        shown = [(event.step, event.value) for event in board.Scalars(f"train/{name}")]
        assert shown == [(i + 1, pytest.approx(entry[name], rel=1e-6)) for i, entry in enumerate(logs)], name
    (settings,) = (board.Tensors(tag)[0] for tag in board.Tags()["tensors"] if tag.startswith("args"))
    assert b'"ot_weight": 10.0' in settings.tensor_proto.string_val[0]


def test_trackio_shows_each_term(tmp_path, monkeypatch):
    """From its own data base, without a network."""
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when it is imported
    pytest.importorskip("trackio")
    trainer = make_trainer(tmp_path, report_to="trackio", project="transfer", run_name="one", **SETTINGS)
    trainer.train()
    with contextlib.closing(sqlite3.connect(tmp_path / "trackio" / "transfer.db")) as base:
        shown = [json.loads(row) for (row,) in base.execute("select metrics from metrics where run_name = 'one'")]
        (config,) = base.execute("select config from configs")
    logs = training_logs(trainer)
    terms = [name for name in logs[0] if name not in ("step", "epoch")]
    assert {"loss", "task_loss", "ot_loss", "kd_loss", "l2sp_loss", "ot_dropped", "dropped_steps"} < set(terms)
    for name in terms:
        values = [entry[f"train/{name}"] for entry in shown if f"train/{name}" in entry]
        assert values == [pytest.approx(entry[name], rel=1e-6) for entry in logs], name
    assert json.loads(config[0])["kd_weight"] == SETTINGS["kd_weight"]


def test_what_reaches_trackio_through_transformers(tmp_path, monkeypatch):
    """Without trackio, which keeps Pillow below its newest version: a stand-in of the parts that transformers calls."""
    seen = []
    space = types.SimpleNamespace(get=lambda: None)
    stand_in = types.SimpleNamespace(
        init=lambda **kwargs: None,
        log=lambda values, *args, **kwargs: seen.append(values),
        finish=lambda: None,
        config=_Config(),
        context_vars=types.SimpleNamespace(current_space_id=space, current_run=space),
        __version__="0.43.0",
    )
    monkeypatch.setitem(sys.modules, "trackio", stand_in)
    monkeypatch.setattr(integration_utils, "is_trackio_available", lambda: True)
    trainer = make_trainer(tmp_path, report_to="trackio", **SETTINGS)
    trainer.train()
    logs = training_logs(trainer)
    for name in logs[0].keys() - {"step", "epoch"}:
        values = [entry[f"train/{name}"] for entry in seen if f"train/{name}" in entry]
        assert values == [entry[name] for entry in logs], name
    assert stand_in.config["kd_weight"] == SETTINGS["kd_weight"]


class _Config(dict):
    def update(self, values, **kwargs):
        super().update(values)


def test_trackers_see_evaluation_as_ever(tmp_path):
    trainer = make_trainer(tmp_path, eval_data=Images(8), eval_strategy="steps", eval_steps=1)
    trainer.train()
    evaluations = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    assert len(evaluations) == 2
    assert not any(name.startswith(("ot_", "kd_", "l2sp_")) for entry in evaluations for name in entry)
