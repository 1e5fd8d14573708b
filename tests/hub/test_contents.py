"""What of a folder may be pushed, and what refuses the whole push."""

import json
import pickle

import pytest
import torch
from safetensors.torch import save_file

from hf_reprot.hub.contents import checkpoint_contents, replaced, student_contents
from tests.hub.folders import student_folder

TOKEN = "hf_" + "Ab12" * 8


def _names(contents):
    return {content.path_in_repo for content in contents}


def test_only_the_student_goes_up(tmp_path, caplog):
    folder = student_folder(tmp_path / "student")
    for name in (
        "training_args.bin",
        "optimizer.pt",
        "rng_state_0.pth",
        "trainer_state.json",
        "transfer_state.safetensors",
        ".hidden/x.json",
        "_push-1/model.safetensors",
        "checkpoint-5/optimizer.pt",
        "runs/Nov24/events.out.tfevents.1.host",
        "images/plan.png",
        "preprocessor_config.json",
        "data.csv",
        "LICENSE",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    names = _names(student_contents(folder))
    assert names == {
        "model.safetensors",
        "config.json",
        "transfer.json",
        "images/plan.png",
        "preprocessor_config.json",
        "LICENSE",
    }
    assert "data.csv" in caplog.text


def _pickled(folder):
    (folder / "more.dat").write_bytes(pickle.dumps({"a": 1}))


def _truncated(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])


def _index(folder):
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors"}})
    )


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: torch.save({}, f / "more.pth"), r"more\.pth, which can run code"),
        (lambda f: (f / "pytorch_model.bin").write_bytes(b"x"), r"pytorch_model\.bin, which can run code"),
        (_pickled, r"more\.dat, which can run code"),
        (_truncated, "is damaged"),
        (_index, r"lacks pieces of the weights: model-00001-of-00002\.safetensors"),
        (lambda f: save_file({"a": torch.ones(1)}, f / "teacher.safetensors"), r"not the student's: teacher\.saf"),
        (lambda f: student_folder(f / "teacher"), r"not the student's: teacher/model\.safetensors"),
        (lambda f: save_file({"teacher.a": torch.ones(1)}, f / "model.safetensors"), "weights of a teacher inside"),
        (lambda f: (f / "notes.md").write_text(f"my {TOKEN}"), r"notes\.md holds a token"),
        (lambda f: (f / "config.json").write_text("{"), r"config\.json is not JSON"),
    ],
)
def test_what_must_not_be_published_refuses_the_push(tmp_path, spoil, message):
    folder = student_folder(tmp_path)
    spoil(folder)
    with pytest.raises(ValueError, match=message) as caught:
        student_contents(folder)
    assert TOKEN not in str(caught.value)


@pytest.mark.parametrize(
    ("missing", "message"), [("model.safetensors", "holds no weights"), ("config.json", r"no config\.json")]
)
def test_half_a_student_is_none(tmp_path, missing, message):
    folder = student_folder(tmp_path)
    (folder / missing).unlink()
    with pytest.raises(FileNotFoundError, match=message):
        student_contents(folder)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        student_contents(folder / "none")


def test_places_on_this_machine_become_names(tmp_path):
    folder = student_folder(tmp_path)
    (folder / "config.json").write_text(json.dumps({"_name_or_path": "/home/ada/vit", "patterns": "/a/b"}))
    config = next(c.source for c in student_contents(folder) if c.path_in_repo == "config.json")
    assert json.loads(config) == {"_name_or_path": "vit", "patterns": "/a/b"}


def test_adapters_may_lie_in_folders(tmp_path):
    folder = student_folder(tmp_path)
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    (folder / "other").mkdir()
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        (folder / "other" / name).write_bytes((folder / name).read_bytes())
    assert "other/adapter_model.safetensors" in _names(student_contents(folder))


def test_a_checkpoint_goes_up_whole_but_for_pickled_arguments(tmp_path):
    folder = student_folder(tmp_path)
    for name in ("optimizer.pt", "rng_state.pth", "training_args.bin", "README.md"):
        (folder / name).write_bytes(b"x")
    save_file({"processes": torch.tensor(1)}, folder / "transfer_state.safetensors")
    (folder / "trainer_state.json").write_text(json.dumps({"best_model_checkpoint": "/home/ada/s/checkpoint-5"}))
    contents = {c.path_in_repo: c.source for c in checkpoint_contents(folder, "last-checkpoint")}
    assert json.loads(contents["last-checkpoint/trainer_state.json"]) == {"best_model_checkpoint": "checkpoint-5"}
    names = {name.removeprefix("last-checkpoint/") for name in contents}
    assert {"optimizer.pt", "rng_state.pth", "transfer_state.safetensors", "model.safetensors"} <= names
    assert not {"training_args.bin", "README.md"} & names


def test_what_a_push_makes_wrong_is_deleted():
    present = [
        "README.md",
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "training_args.bin",
        "pytorch_model.bin",
        "images/transport_plan_2.png",
        "images/my.png",
        "last-checkpoint/rng_state_1.pth",
        "notes.txt",
    ]
    gone = ["images/transport_plan_2.png", "model-00001-of-00002.safetensors", "model.safetensors.index.json"]
    sent = ["model.safetensors", "README.md", "last-checkpoint/rng_state_0.pth"]
    assert replaced(present, sent) == [*gone, "pytorch_model.bin", "training_args.bin"]
    assert "last-checkpoint/rng_state_1.pth" in replaced(present, sent, "last-checkpoint")
