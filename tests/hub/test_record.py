"""The record of a run: strict in, strict out, and nothing in it that is nobody's business."""

import json

import pytest

from hf_reprot.hub.record import RECORD_FILE, RunRecord, thinned_log
from tests.hub.samples import record


def _changed(tmp_path, change):
    record().save(tmp_path)
    path = tmp_path / RECORD_FILE
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_a_record_comes_back_as_it_was(tmp_path):
    record().save(tmp_path)
    assert RunRecord.load(tmp_path) == record()
    assert [path.name for path in tmp_path.iterdir()] == [RECORD_FILE]


def test_numbers_that_json_has_no_word_for_are_left_out(tmp_path):
    sample = record(seconds=float("nan"))
    sample.evaluations[0].metrics = {"accuracy": 0.5, "loss": float("inf")}
    sample.save(tmp_path)
    loaded = RunRecord.load(tmp_path)
    assert loaded.seconds is None
    assert loaded.evaluations[0].metrics == {"accuracy": 0.5}


def test_tokens_and_paths_stay_out(tmp_path):
    token = "hf_" + "a1B2" * 8
    sample = record(
        name=token, hardware="/home/ada/secret/gpu-box", training={"note": f"Bearer {token}", "x": "s3cr3t!"}
    )
    text = sample.save(tmp_path, secrets=["s3cr3t!"]).read_text()
    for secret in (token, "/home", "ada/secret", "s3cr3t!"):
        assert secret not in text
    assert RunRecord.load(tmp_path).hardware == "gpu-box"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("student"), "lacks the field 'student'"),
        (lambda c: c.update(studnet=1), "Did you mean 'student'"),
        (lambda c: c["student"].update(parameters="many"), "student.parameters must be int"),
        (lambda c: c["pairs"][1].update(weight=None), r"pairs\[1\].weight must be float"),
        (lambda c: c.update(job="magic"), "job must be one of fine-tuning"),
        (lambda c: c.update(format=99), "written by a later hf_reprot"),
    ],
)
def test_a_damaged_record_is_named(tmp_path, change, message):
    _changed(tmp_path, change)
    with pytest.raises(ValueError, match=message):
        RunRecord.load(tmp_path)


def test_what_is_no_record_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no transfer\.json"):
        RunRecord.load(tmp_path)
    (tmp_path / RECORD_FILE).write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        RunRecord.load(tmp_path)


def test_a_long_log_is_thinned_out_but_keeps_evaluations_and_its_end():
    log = [{"step": i, "loss": 1.0, "grad_norm": float("nan"), "note": "x"} for i in range(1, 1001)]
    log.insert(500, {"step": 500, "eval_loss": 2.0})
    thin = thinned_log(log, limit=100)
    assert sum("loss" in entry for entry in thin) == 100
    assert {"step": 500.0, "eval_loss": 2.0} in thin
    assert thin[-1] == {"step": 1000.0, "loss": 1.0}
    assert thinned_log([]) == []
