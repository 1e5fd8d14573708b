"""Two processes with 16 samples each train the student that one process with 32 does."""

import pytest
import torch

from hf_reprot.losses.collective import bytes_per_merge
from hf_reprot.training.terms.transport import TransportTerm
from tests.distributed.runs import LOCAL, RUNS, run
from tests.distributed.worker import UNEVEN, resumable
from tests.toy_models import Images
from tests.training.runs import make_trainer

pytestmark = pytest.mark.distributed

SETTINGS = ("{}", "{'standardize': False}", "{'debiased': True}", "gaussian")


def assert_same_training(ours, theirs, values=1e-5, gradients=1e-4):
    assert len(ours["logs"]) == len(theirs["logs"]) > 0
    for mine, other in zip(ours["logs"], theirs["logs"], strict=True):
        assert mine.keys() == other.keys()
        for name in ("loss", "task_loss", "ot_loss", "ot_cost", "kd_loss", "l2sp_loss", "grad_norm"):
            if name in mine:
                tolerance = gradients if name == "grad_norm" else values
                assert mine[name] == pytest.approx(other[name], rel=tolerance, abs=1e-7), name
    assert ours["gradients"].keys() == theirs["gradients"].keys()
    scale = max(value.norm() for value in theirs["gradients"].values())
    for name, value in theirs["gradients"].items():
        difference = (ours["gradients"][name] - value).norm()
        assert difference <= gradients * (value.norm() + 0.1 * scale), name


@pytest.mark.parametrize("name", RUNS)
def test_as_one_process_on_the_same_samples(results, tmp_path, name):
    assert_same_training(results["runs"][name], run(tmp_path, *RUNS[name]))


def test_features_from_a_cache_are_those_of_the_live_teacher(results, tmp_path):
    make, settings = RUNS["features from a cache"]
    assert_same_training(results["runs"]["features from a cache"], run(tmp_path, make, {**settings, "cached": False}))


def test_a_head_is_fitted_to_the_samples_of_both(results, tmp_path):
    found = results["fitted_head"]
    trainer = make_trainer(tmp_path, task_weight=0.0)
    assert (found["samples"], found["equal"]) == (trainer.fit_head(Images(27)).samples, True)
    for name, value in found["weights"].items():
        torch.testing.assert_close(value, trainer.model.state_dict()[name], rtol=1e-2, atol=1e-3)


def test_frozen_parts_stay_as_they_are(results):
    for name in ("label-free, frozen", "label-free with logits, frozen", "frozen, unused, logits"):
        assert not any("embeddings" in parameter for parameter in results["runs"][name]["gradients"])
        assert any("layers.0" in parameter for parameter in results["runs"][name]["gradients"])


def test_each_process_on_its_own_is_the_mean_of_two_problems(results, tmp_path):
    """Two micro-batches of one process are matched one by one, too."""
    student, settings = LOCAL
    theirs = run(tmp_path, student, {**settings, "gradient_accumulation_steps": 2})
    assert_same_training(results["local"], theirs)
    shared = run(tmp_path, student, {**settings, "ot_global_batch": True})
    assert results["local"]["logs"][0]["ot_loss"] != pytest.approx(shared["logs"][0]["ot_loss"], rel=1e-2)


@pytest.mark.parametrize("sizes", UNEVEN)
@pytest.mark.parametrize("settings", SETTINGS)
def test_uneven_batches(results, settings, sizes):
    found = results["loss_alone"][f"{settings} {sizes}"]
    assert found["value"] == pytest.approx(found["expected value"], rel=1e-5)
    torch.testing.assert_close(found["gradient"], found["expected gradient"], rtol=1e-4, atol=1e-4 * found["scale"])
    assert found["own rows"] <= 1e-4 * found["scale"]


def test_what_goes_over_the_wire_does_not_depend_on_the_batch(results):
    one_problem = bytes_per_merge([(10, 14)])
    assert results["loss_alone"]["bytes by hand"] == one_problem == 4 * ((1 + 10 + 14) + (10 * 14 + 10 + 14))
    for settings in SETTINGS[:2]:
        for sizes in UNEVEN:
            assert results["loss_alone"][f"{settings} {sizes}"]["bytes"] == one_problem
    self_terms = bytes_per_merge([(10, 10)]) + bytes_per_merge([(14, 14)])
    for sizes in UNEVEN:
        assert results["loss_alone"][f"{SETTINGS[2]} {sizes}"]["bytes"] == one_problem + self_terms


def test_a_student_whose_parameters_are_sharded(results):
    found = results["fully_sharded"]
    assert found["difference"] < 1e-4
    assert not found["finite"]
    assert found["dropped"]
    assert found["left"] == 0


@pytest.mark.parametrize("value", ["nan", "inf"])
@pytest.mark.parametrize("side", ["student", "teacher"])
def test_what_is_not_finite_on_one_process_reaches_no_weight(results, side, value):
    found = results["not_finite"][f"{side} {value}"]
    assert found["errors"] == ["", ""]
    assert found["finite"]
    assert found["equal"]
    assert found["steps"] == 5
    # steps 1 and 3, counted from 0, were poisoned in one of two layers; a student's spoils its own loss, too
    assert [entry["ot_dropped"] for entry in found["logs"]] == [0, 1, 0, 1, 0]
    assert [entry["dropped_steps"] for entry in found["logs"]] == [0, side == "student", 0, side == "student", 0]
    for step in (1, 3):
        entry = found["logs"][step]
        assert entry["ot_loss/vit.layers.1=resnet.encoder.stages.1"] == 0
        assert entry["ot_loss/vit.layers.0=resnet.encoder.stages.0"] > 0


def test_again_and_again_not_finite_stops_both_processes(results):
    for side in ("student", "teacher"):
        found = results["not_finite"][f"{side} again and again"]
        assert found["errors"][0] == found["errors"][1]
        assert "pair vit.layers.1=resnet.encoder.stages.1 were not finite for 3 steps in a row" in found["errors"][0]
        assert found["finite"]
        assert found["equal"]
        assert found["steps"] == 2


@pytest.mark.parametrize(("again", "once"), [("killed", "whole"), ("own again", "own")])
def test_resumed_ends_where_an_uninterrupted_run_does(results, again, once):
    ours, theirs = results["resumed"][again], results["resumed"][once]
    assert len(ours["logs"]) == len(theirs["logs"]) == 3
    for mine, other in zip(ours["logs"], theirs["logs"], strict=True):
        assert mine == pytest.approx(other, rel=1e-6, abs=1e-9)
    for name, value in theirs["weights"].items():
        torch.testing.assert_close(ours["weights"][name], value, rtol=1e-6, atol=1e-6, msg=name)


def test_one_process_goes_on_without_the_moments_of_two(results, tmp_path, caplog):
    trainer = resumable(tmp_path, ot_global_batch=False)
    trainer.train(resume_from_checkpoint=f"{results['folder']}/own/checkpoint-3")
    assert "moments of each of 2 process(es), and this run carries moments of each of 1 process(es)" in caplog.text
    assert trainer.state.global_step == 6
    assert trainer.transfer.find(TransportTerm).running[0].moments.count.item() == pytest.approx(8 * (1 + 0.9 + 0.81))
