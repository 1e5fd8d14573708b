"""Teachers and students whose weights are spread over two processes do what whole ones do."""

from types import SimpleNamespace

import pytest
import torch

from hf_reprot import Teacher
from hf_reprot.models.sharding import place_teachers
from tests.distributed.sharded import SHARDED_RUNS, TEACHERS
from tests.distributed.test_two_processes import assert_same_training
from tests.toy_models import resnet
from tests.training.runs import make_trainer


@pytest.mark.distributed
@pytest.mark.parametrize("name", TEACHERS)
def test_a_spread_teacher_says_what_a_whole_one_does(results, name):
    found = results["teachers"][name]
    assert found["difference"] <= 1e-4
    assert found["type"]
    assert found["frozen"]
    assert found["title"]
    assert 0.5 <= found["share"] < 0.52  # after a forward pass, too


@pytest.mark.distributed
@pytest.mark.parametrize("name", SHARDED_RUNS)
def test_a_student_of_a_spread_teacher_is_trained_the_same(results, name):
    found = results["teacher_in_training"][name]
    assert_same_training(found[True], found[False])


@pytest.mark.distributed
def test_a_spread_teacher_is_in_nothing_that_is_trained_or_saved(results):
    found = results["teacher_is_kept_out"]
    assert found["unchanged"]
    assert found["evaluated"]
    assert found["saved"]
    assert found["optimised"] == found["student"]
    assert found["share"] < 0.52


@pytest.mark.distributed
def test_teachers_that_cannot_be_spread_are_refused(results):
    found = results["refused_teachers"]
    assert "has other weights on other processes" in found["other weights"]
    assert "quantised (classifier.1.weight)" in found["quantised"]
    assert "compiled" in found["compiled"]


@pytest.mark.distributed
def test_a_teacher_by_name_is_whole_on_every_process(results):
    """transformers may fill models on the first process only, for FSDP to send them on: nothing sends a teacher."""
    found = results["teacher_by_name"]
    assert found["equal"] == 2
    assert found["while loading"] == [False]
    assert found["afterwards"]


@pytest.mark.distributed
@pytest.mark.parametrize("sharded", [False, True])
def test_fsdp_trains_the_student_that_ddp_does(results, sharded):
    assert_same_training(results["fsdp"][f"teacher_sharded={sharded}"], results["fsdp"]["DDP"])


@pytest.mark.distributed
def test_fsdp_resumes_where_it_was(results):
    ours, theirs = results["fsdp"]["again"], results["fsdp"]["whole"]
    assert len(ours["logs"]) == len(theirs["logs"]) == 4
    for mine, other in zip(ours["logs"], theirs["logs"], strict=True):
        assert mine == pytest.approx(other, rel=1e-6, abs=1e-9)
    for name, value in theirs["weights"].items():
        torch.testing.assert_close(ours["weights"][name], value, rtol=1e-6, atol=1e-6, msg=name)
    assert ours["eval_loss"] == pytest.approx(theirs["eval_loss"], rel=1e-6)


@pytest.mark.distributed
def test_fsdp_drops_a_gradient_that_is_not_finite_on_one_process(results):
    found = results["fsdp"]["not finite"]
    assert [entry["dropped_steps"] for entry in found["logs"]] == [0, 1, 0, 0]
    assert all(torch.isfinite(value).all() for value in found["weights"].values())


@pytest.mark.distributed
def test_fsdp_saves_a_student_that_both_libraries_load(results):
    import json
    from pathlib import Path

    import timm
    from transformers import AutoModelForImageClassification

    folder = Path(results["folder"]) / "fsdp_timm"
    weights = results["fsdp"]["timm"]["weights"]
    student = AutoModelForImageClassification.from_pretrained(folder)
    assert all(torch.equal(value, weights[name]) for name, value in student.state_dict().items())
    bare = timm.create_model(f"local-dir:{folder}", pretrained=True)
    assert all(torch.equal(value, weights[f"timm_model.{name}"]) for name, value in bare.state_dict().items())
    facts = json.loads((folder / "transfer.json").read_text())["student"]
    assert (facts["architecture"], facts["library"]) == ("vit_tiny_patch16_224", "timm")


def test_one_process_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"teacher_sharded=True .* this run has one"):
        make_trainer(tmp_path, teacher_sharded=True)


def test_deepspeed_is_refused():
    """DeepSpeed itself is not tested."""
    trainer = SimpleNamespace(
        args=SimpleNamespace(teacher_sharded=True, teacher_offload=False, device=torch.device("cpu")),
        teachers=[Teacher(resnet())],
        is_deepspeed_enabled=True,
    )
    with pytest.raises(ValueError, match="teacher_sharded=True does not go with DeepSpeed"):
        place_teachers(trainer)
