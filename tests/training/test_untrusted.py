"""Files from strangers: no pickle of theirs runs code, no YAML makes objects, no repository brings code unasked."""

import json
import os
import pickle
import shutil
import zipfile

import pytest
import torch

from hf_reprot import Teacher
from hf_reprot.commands.train import Recipe, parse_recipe
from hf_reprot.models.student import create_timm_student, load_student
from tests.toy_models import resnet
from tests.training.runs import make_trainer


class Payload:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    trainer = make_trainer(folder, save_strategy="steps", save_steps=1)
    trainer.train()
    return folder / "checkpoint-1"


def _as_torch_saves(path, payload):
    torch.save({"state": payload, "param_groups": payload}, path)


def _as_old_torch_saved(path, payload):
    torch.save({"state": payload}, path, _use_new_zipfile_serialization=False)


def _plain_pickle(path, payload):
    path.write_bytes(pickle.dumps(payload))


def test_the_payload_works(tmp_path):
    """Otherwise the tests below show nothing."""
    _as_torch_saves(tmp_path / "file.pt", Payload(tmp_path / "ran"))
    torch.load(tmp_path / "file.pt", weights_only=False)
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("write", [_as_torch_saves, _as_old_torch_saved, _plain_pickle])
@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "scaler.pt"])
def test_a_pickle_in_a_checkpoint_does_not_run(checkpoint, tmp_path, name, write):
    folder = shutil.copytree(checkpoint, tmp_path / "checkpoint-1")
    write(folder / name, Payload(tmp_path / "ran"))
    with pytest.raises((ValueError, pickle.UnpicklingError)):
        make_trainer(tmp_path / "out").train(resume_from_checkpoint=str(folder))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["training_args.bin", "pytorch_model.bin", "extra.pkl"])
def test_other_pickles_are_not_read(checkpoint, tmp_path, name):
    folder = shutil.copytree(checkpoint, tmp_path / "checkpoint-1")
    _as_torch_saves(folder / name, Payload(tmp_path / "ran"))
    make_trainer(tmp_path / "out").train(resume_from_checkpoint=str(folder))
    assert not (tmp_path / "ran").exists()


def test_weights_in_a_pickle_are_refused(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "checkpoint-1")
    (folder / "model.safetensors").unlink()
    torch.save(Payload(tmp_path / "ran"), folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="weights are missing"):
        make_trainer(tmp_path / "out").train(resume_from_checkpoint=str(folder))
    resnet().save_pretrained(tmp_path / "teacher")
    (tmp_path / "teacher" / "model.safetensors").unlink()
    torch.save(Payload(tmp_path / "ran"), tmp_path / "teacher" / "pytorch_model.bin")
    with pytest.raises(ValueError):
        Teacher.load(tmp_path / "teacher")
    assert not (tmp_path / "ran").exists()


def test_code_in_a_repository_does_not_run_unasked(tmp_path):
    resnet().save_pretrained(tmp_path / "teacher")
    path = tmp_path / "teacher" / "config.json"
    classes = ("AutoModel", "AutoModelForImageClassification")
    code = {"AutoConfig": "evil.EvilConfig"} | dict.fromkeys(classes, "evil.EvilModel")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "evil", "auto_map": code}))
    (tmp_path / "teacher" / "evil.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\n")
    with pytest.raises(ValueError, match="trust_remote_code"):
        Teacher.load(tmp_path / "teacher")
    assert not (tmp_path / "ran").exists()
    assert Recipe().trust_remote_code is False


def test_a_config_that_names_a_pickle_is_refused(tmp_path):
    """timm reads the file while it makes the model; its older versions unpickle it."""
    torch.save({"state_dict": Payload(tmp_path / "ran")}, tmp_path / "evil.pth")
    evil = {"checkpoint_path": str(tmp_path / "evil.pth")}
    with pytest.raises(ValueError, match="checkpoint_path is set by"):
        create_timm_student("resnet10t", ["a", "b"], **evil)
    create_timm_student("resnet10t", ["a", "b"]).save_pretrained(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    for changes in ({"model_args": evil}, {"backbone_kwargs": {"more": [evil]}}):
        path.write_text(json.dumps(config | changes))
        for load in (Teacher.load, load_student):
            with pytest.raises(ValueError, match=r"asks for weights from .*evil\.pth"):
                load(tmp_path / "model")
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match="asks for weights from"):
        Teacher.load(tmp_path / "model", init_kwargs={"model_args": evil})
    assert load_student(tmp_path / "model").config.num_labels == 2
    assert not (tmp_path / "ran").exists()


def test_a_recipe_makes_no_objects(tmp_path):
    recipe = tmp_path / "run.yaml"
    for text in (
        f"student: !!python/object/apply:os.mkdir ['{tmp_path / 'ran'}']\ndataset: digits\n",
        f"!!python/object/new:os.mkdir ['{tmp_path / 'ran'}']\n",
    ):
        recipe.write_text(text)
        with pytest.raises(ValueError, match="is not YAML"):
            parse_recipe([], recipe)
    recipe.write_text("student: resnet10t\ndataset: digits\noutput_dir: out\n__class__: evil\n")
    with pytest.raises(ValueError, match="__class__"):
        parse_recipe([], recipe)
    assert not (tmp_path / "ran").exists()


def test_an_archive_is_not_unpacked(tmp_path):
    """A folder of images may hold anything: only images are read, and nothing is written beside them."""
    from hf_reprot.data.datasets import load_image_dataset

    folder = tmp_path / "images" / "a"
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / "more.zip", "w") as archive:
        archive.writestr("../../escaped.txt", "out")
    with pytest.raises(ValueError, match="image"):
        load_image_dataset(tmp_path / "images")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images"]


def test_nothing_in_the_package_loads_pickles():
    """Every `torch.load` is told to load tensors only; nothing else that unpickles is called."""
    import re
    from pathlib import Path

    import hf_reprot

    for path in Path(hf_reprot.__file__).parent.rglob("*.py"):
        text = path.read_text()
        for call in re.findall(r"torch\.load\([^)]*\)", text):
            assert "weights_only=True" in call, path
        assert not re.search(r"\bpickle\.loads?\(|\byaml\.(load|unsafe_load|full_load)\(|\bjoblib\.load\(", text), path
        assert "trust_remote_code=True" not in text.replace('{"trust_remote_code": True}', ""), path
        assert "allow_pickle=True" not in text, path
