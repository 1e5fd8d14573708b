"""Where things came from, found on the objects."""

import copy

import pytest
import timm
import torch
from datasets import Dataset
from transformers import AutoModelForImageClassification, ViTConfig, ViTForImageClassification

from hf_reprot.hub.facts import Start
from hf_reprot.hub.licenses import License
from hf_reprot.hub.provenance import data_facts, folder_license, model_facts, start_of, task_of, teacher_facts
from hf_reprot.models.student import create_timm_student
from hf_reprot.models.teacher import Teacher
from tests.toy_models import vit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch):
    monkeypatch.setattr("hf_reprot.hub.provenance.hub_license", lambda *args: None)


def test_new_random_weights_have_no_start():
    assert start_of(vit()) == Start("unrecorded")
    assert start_of(vit(), "scratch") == Start("scratch")
    student = vit()
    student.config._name_or_path = "org/name"  # as a config from the Hub leaves it
    assert start_of(student) == Start("unrecorded")


def test_weights_from_a_folder_are_told_by_its_name(tmp_path):
    folder = tmp_path / "start"
    vit().save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    student = AutoModelForImageClassification.from_pretrained(folder)
    assert start_of(student) == Start("folder", "start", None, License("mit"))
    assert start_of(copy.deepcopy(student)).name == "start"
    assert folder_license(folder) == License("mit")
    assert folder_license(tmp_path) is None


def test_a_commit_comes_from_the_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert start_of(vit(), "org/name").revision is None
    assert start_of(vit(), "org/name@v1").revision == "v1"
    cache = tmp_path / "models--org--name"
    (cache / "snapshots" / COMMIT).mkdir(parents=True)
    (cache / "refs").mkdir()
    for reference in ("main", "v1"):
        (cache / "refs" / reference).write_text(COMMIT)
    assert start_of(vit(), "org/name") == Start("hub", "org/name", COMMIT)
    assert start_of(vit(), "hf-hub:org/name@v1").revision == COMMIT
    (cache / "snapshots" / COMMIT[::-1]).mkdir()
    assert start_of(vit(), "org/name").revision is None  # it could be either


def test_what_a_model_is():
    student = create_timm_student("resnet10t", ["a", "b"])
    facts = model_facts(student)
    assert (facts.architecture, facts.library) == ("resnet10t", "timm")
    assert facts.parameters == sum(p.numel() for p in student.parameters())
    assert model_facts(timm.create_model("resnet10t", num_classes=2)).library == "timm"
    assert model_facts(vit()).library == "transformers"
    assert model_facts(torch.nn.Linear(2, 3)).library == "torch"
    assert task_of(student) == task_of(vit()) == "image-classification"
    assert task_of(torch.nn.Linear(2, 3)) is None


def test_a_teacher_is_told_by_hub_id_and_commit_or_by_its_folder(tmp_path):
    hub = teacher_facts(Teacher(vit(), name="org/name", revision=COMMIT, license="mit"))
    assert (hub.name, hub.origin, hub.revision, hub.license) == ("org/name", "hub", COMMIT, License("mit"))
    folder = teacher_facts(Teacher(vit(), name=str(tmp_path)))
    assert (folder.name, folder.origin, folder.revision) == (tmp_path.name, "folder", None)
    assert teacher_facts(Teacher(vit())).name == "ViTForImageClassification"


def test_what_a_data_set_tells(monkeypatch):
    data = Dataset.from_dict({"x": [1, 2]})
    assert (data_facts(data).name, data_facts(data).samples, data_facts(data).repo) == ("data made in memory", 2, None)
    assert data_facts([1, 2, 3]).name == "list"
    assert data_facts(None) is None
    place = f"/cache/datasets/ada___cats/default/0.0.0/{COMMIT}/cats-train.arrow"
    monkeypatch.setattr(Dataset, "cache_files", property(lambda self: [{"filename": place}]))
    facts = data_facts(data)
    assert (facts.name, facts.repo, facts.revision) == ("ada/cats", "ada/cats", COMMIT)


def test_a_config_alone_is_no_start(tmp_path):
    ViTConfig(hidden_size=8, num_attention_heads=2).save_pretrained(tmp_path)
    student = AutoModelForImageClassification.from_config(
        ViTConfig.from_pretrained(tmp_path, num_hidden_layers=1, intermediate_size=8)
    )
    assert isinstance(student, ViTForImageClassification)
    assert start_of(student).kind == "unrecorded"
