"""What the trackers of the Hugging Face ecosystem show of a run."""

import pytest

from tests.models import Images
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
    assert b'"ot_weight": 1.0' in settings.tensor_proto.string_val[0]


def test_trackio_shows_each_term(tmp_path, monkeypatch):
    trackio = pytest.importorskip("trackio")
    seen = {}
    monkeypatch.setattr(trackio, "log", lambda values, *args, **kwargs: seen.update(values))
    make_trainer(tmp_path, report_to="trackio", **SETTINGS).train()
    assert {"train/ot_loss", "train/kd_loss", "train/task_loss"} <= set(seen)


def test_trackers_see_evaluation_as_ever(tmp_path):
    trainer = make_trainer(tmp_path, eval_data=Images(8), eval_strategy="steps", eval_steps=1)
    trainer.train()
    evaluations = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    assert len(evaluations) == 2
    assert not any(name.startswith(("ot_", "kd_", "l2sp_")) for entry in evaluations for name in entry)
