"""The page of a student: what stands in its folder, what it answers, and the push."""

import importlib.util
import json
import sys

import pytest
from huggingface_hub import metadata_load
from PIL import Image
from transformers import ViTImageProcessor

from hf_reprot.hub.licenses import License
from hf_reprot.hub.space import push_space, write_space
from tests.hub.folders import student_folder
from tests.hub.samples import COMMIT, record
from tests.hub_server.fixtures import hub, run_python  # noqa: F401
from tests.toy_models import resnet, vit


def _model(folder, model):
    model.save_pretrained(folder)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A student and a teacher of three classes, and a teacher without any."""
    root = tmp_path_factory.mktemp("models")
    names = {"id2label": {0: "cat", 1: "dog", 2: "owl"}, "label2id": {"cat": 0, "dog": 1, "owl": 2}}
    student, teacher = resnet(labels=3), vit(labels=3)
    for model in (student, teacher):
        model.config.update(names)
    backbone = vit(labels=3).base_model
    return [_model(root / name, m) for name, m in (("student", student), ("teacher", teacher), ("backbone", backbone))]


@pytest.fixture
def app(monkeypatch):
    """Imports the page in a folder."""

    def load(folder):
        spec = importlib.util.spec_from_file_location("space_app", folder / "app.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "space_app", module)
        spec.loader.exec_module(module)
        return module

    return load


def test_a_folder_names_the_models_of_the_hub(tmp_path):
    folder = student_folder(tmp_path / "student")
    record(repo_id="ada/digits", license=License("apache-2.0")).save(folder)
    page = write_space(folder, tmp_path / "page")
    assert json.loads((page / "space.json").read_text()) == {
        "title": "digits",
        "student": {"id": "ada/digits"},
        "teachers": [{"id": "timm/resnet50.a1_in1k", "revision": COMMIT}],
    }
    data = metadata_load(page / "README.md")
    assert (data["sdk"], data["app_file"], data["license"]) == ("gradio", "app.py", "apache-2.0")
    assert data["models"] == ["ada/digits", "timm/resnet50.a1_in1k"]
    assert "hf_reprot" not in (page / "app.py").read_text()
    compile((page / "app.py").read_text(), "app.py", "exec")


def test_a_repository_and_another_teacher(tmp_path):
    page = write_space("ada/digits@v1", tmp_path, teacher="timm/vit_tiny", title="Digits")
    settings = json.loads((page / "space.json").read_text())
    assert settings["student"] == {"id": "ada/digits", "revision": "v1"}
    assert (settings["teachers"], settings["title"]) == ([{"id": "timm/vit_tiny"}], "Digits")
    with pytest.raises(ValueError, match="'no such folder' is neither a folder nor a repository"):
        write_space("no such folder", tmp_path)


def test_the_page_answers_for_teacher_and_student(tmp_path, models, app):
    student, teacher, _ = models
    module = app(write_space(student, tmp_path, teacher=str(teacher)))
    image = Image.effect_noise((20, 30), 80)  # grey, and of another size
    answers, line, theirs, their_line = module.compare(image)
    for found in (answers, theirs):
        assert set(found) == {"cat", "dog", "owl"}
        assert sum(found.values()) == pytest.approx(1, abs=1e-5)
        assert list(found.values()) == sorted(found.values(), reverse=True)
    assert " ms, " in line
    assert "times the student's time" in their_line
    assert module.compare(None) == [None, "", None, ""]


def test_a_teacher_without_classes_is_left_out(tmp_path, models, app):
    student, _, backbone = models
    module = app(write_space(student, tmp_path, teacher=str(backbone)))
    assert list(module.models()) == ["Student"]
    assert len(module.compare(Image.new("RGB", (16, 16)))) == 2


def test_the_page_opens(tmp_path, models, app):
    pytest.importorskip("gradio")
    import httpx

    student, teacher, _ = models
    page = app(write_space(student, tmp_path, teacher=str(teacher), title="Cats and dogs")).build()
    _, address, _ = page.launch(prevent_thread_lock=True, quiet=True)
    try:
        assert "Cats and dogs" in httpx.get(address, timeout=60).text
    finally:
        page.close()


def test_a_page_is_pushed(tmp_path, hub):  # noqa: F811
    page = write_space("ada/digits", tmp_path / "page", teacher="lab/teacher")
    (page / "notes.txt").write_text("of no use to a Space")
    run_python(hub, ["-m", "hf_reprot.cli", "space", "ada/digits", "--folder", str(page), "--push", "ada/digits-demo"])
    files = hub.files("ada/digits-demo", repo_type="space")
    assert {"README.md", "app.py", "requirements.txt", "space.json"} == set(files) - {".gitattributes"}
    assert json.loads(files["space.json"])["student"] == {"id": "ada/digits"}


def test_a_page_with_models_of_this_machine_is_not_pushed(tmp_path, models):
    page = write_space(models[0], tmp_path / "page")
    with pytest.raises(ValueError, match="'student' lies on this machine: push it first"):
        push_space(page, "ada/page", token="hf_x")
    (page / "app.py").unlink()
    with pytest.raises(FileNotFoundError, match=r"no folder of a Space: it has no app\.py"):
        push_space(page, "ada/page", token="hf_x")
