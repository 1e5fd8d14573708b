"""Nothing but whole safetensors files is loaded, resumed from or pushed, whatever an index, a config or a link says.

The stand-ins are harmless: text in files of the wrong form, and names that lead elsewhere.
"""

import json
import os
import shutil
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_reprot import Teacher
from hf_reprot.hub.contents import student_contents
from hf_reprot.models.student import load_student
from hf_reprot.training.checkpoint_files import check_whole
from hf_reprot.utils.safetensors_only import check_config, check_file, check_folder
from tests.hub.folders import student_folder
from tests.hub_server.fixtures import hub, run_with_hub  # noqa: F401
from tests.toy_models import vit
from tests.training.runs import make_trainer

PIECE = "model-00001-of-00001.safetensors"


def shard(folder, name=PIECE):
    """Splits the weights of a folder into an index and one piece, which the index calls `name`."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(folder / PIECE)
    write_index(folder, dict.fromkeys(weights, name))
    return folder


def write_index(folder, places):
    content = {"metadata": {"total_size": 1}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    make_trainer(folder, save_strategy="steps", save_steps=2).train()
    return folder / "checkpoint-2"


@pytest.fixture
def model(tmp_path):
    vit().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


DOORS = {
    "teacher": Teacher.load,
    "student": load_student,
    "checkpoint": check_whole,
    "push": student_contents,
}


@pytest.fixture(params=DOORS)
def door(request, tmp_path, checkpoint):
    """A folder of weights, and what reads it."""
    if request.param == "push":
        return student_folder(tmp_path / "folder"), student_contents
    return shutil.copytree(checkpoint, tmp_path / "folder"), DOORS[request.param]


def test_shards_of_the_right_form_are_taken(door):
    folder, read = door
    read(shard(folder))


NAMES = [
    *("weights.bin", "pytorch_model.bin", "model.pt", "model.safetensors.bin", "model.SAFETENSORS", ".safetensors"),
    *("../elsewhere.safetensors", "sub/model.safetensors", "..\\elsewhere.safetensors", "C:model.safetensors", ".."),
    *("", 7, None, ["model.safetensors"], {"a": 1}, "a\nb.safetensors", "missing.safetensors"),
]


@pytest.mark.parametrize("name", [*NAMES, "absolute"], ids=repr)
def test_an_index_names_only_safetensors_beside_it(door, name):
    folder, read = door
    if name == "absolute":
        name = str(folder / PIECE)
    shard(folder, name)
    if isinstance(name, str) and name and "\n" not in name:  # it is there: the name alone refuses it
        place = folder / name.replace("\\", os.sep)
        if name != "missing.safetensors" and not place.exists():
            place.parent.mkdir(exist_ok=True)
            place.write_text("text")
    with pytest.raises(ValueError, match=r"safetensors|lacks pieces|no index") as caught:
        read(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": ["a"]}', "[" * 5000])
def test_an_index_that_is_none(door, content):
    folder, read = door
    shard(folder)
    (folder / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ValueError, match="no index of weights"):
        read(folder)


def test_a_piece_that_is_no_safetensors_file(door):
    folder, read = door
    shard(folder)
    (folder / PIECE).write_text("this is text, and nothing else" * 10)
    with pytest.raises(ValueError, match=rf"{PIECE} is damaged or no safetensors file"):
        read(folder)


def test_a_link_out_of_the_folder(door, tmp_path):
    folder, read = door
    (folder / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    (folder / "model.safetensors").symlink_to(tmp_path / "elsewhere.safetensors")
    with pytest.raises(ValueError, match="is a link to"):
        read(folder)
    (folder / "model.safetensors").unlink()
    (tmp_path / "elsewhere.safetensors").rename(folder / "weights")
    (folder / "model.safetensors").symlink_to(folder / "weights")  # within it
    if read is not student_contents:
        read(folder)


def test_a_text_that_is_a_link_is_not_pushed(tmp_path):
    folder = student_folder(tmp_path / "folder")
    (tmp_path / "private.txt").write_text("mine")
    (folder / "notes.txt").symlink_to(tmp_path / "private.txt")
    with pytest.raises(ValueError, match=r"notes\.txt is a link to .*private\.txt, out of the folder"):
        student_contents(folder)


def header(content, data=b""):
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(shape=(1,), offsets=(0, 4), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


NO_HEADERS = [
    *(b"", b"1234567", struct.pack("<Q", 2**63) + b"{}", struct.pack("<Q", 10**9) + b"{}"),
    *(header(b"[]"), header(b"{"), header(b"\xff\xfe"), header({"a": 1}), header({"a": {}}), header(b'{"a":' * 5000)),
    *(header({"a": entry()}), header({"a": entry()}, b"12345"), header({"a": entry(offsets=(4, 0))}, b"1234")),
    *(header({"a": entry(shape)}, b"1234") for shape in ((2,), (-1,), (1.0,))),
    header({"a": entry(), "b": entry()}, b"1234"),
    header({"a": entry(), "b": entry(offsets=(8, 12))}, b"123456789012"),
    header({"a": entry(offsets=(4, 8))}, b"12345678"),
    header(b'{"a": %s, "a": %s}' % ((json.dumps(entry()).encode(),) * 2), b"1234"),
    header({"a": entry(), "__metadata__": {"x": 1}}, b"1234"),
]


@pytest.mark.parametrize("content", NO_HEADERS, ids=range(len(NO_HEADERS)))
def test_headers_that_are_none(tmp_path, content):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.safetensors is (damaged or )?no safetensors file"):
        check_file(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int8, torch.bool, torch.int64, torch.float8_e4m3fn]
)
def test_what_the_library_writes_is_taken(tmp_path, dtype):
    save_file(
        {"a": torch.zeros(3, 2).to(dtype), "empty": torch.zeros(0, 4), "scalar": torch.tensor(1.0)},
        tmp_path / "model.safetensors",
        metadata={"format": "pt"},
    )
    assert check_folder(tmp_path) == {"a": (3, 2), "empty": (0, 4), "scalar": ()}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"transformers_weights": "adapter_model.bin"}, "transformers_weights"),
        ({"transformers_weights": "../model.safetensors"}, "transformers_weights"),
        ({"transformers_weights": 7}, "transformers_weights"),
        ({"model_args": {"checkpoint_path": "weights.pth"}}, "asks for weights from"),
        ({"architecture": "hf-hub:org/name"}, "lies elsewhere"),
        ({"architecture": "local-dir:/somewhere"}, "lies elsewhere"),
    ],
)
def test_a_config_that_names_other_files(model, changes, message):
    path = model / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    for load in (Teacher.load, load_student):
        with pytest.raises(ValueError, match=message):
            load(model)
    check_config({"architecture": "resnet18.a1_in1k", "transformers_weights": "model.safetensors"}, source="org/name")


def test_other_formats_cannot_be_asked_for(model):
    for option in ({"use_safetensors": False}, {"gguf_file": "model.gguf"}):
        with pytest.raises(ValueError, match=next(iter(option))):
            load_student(model, **option)
        with pytest.raises(ValueError, match=next(iter(option))):
            Teacher.load(model, init_kwargs=option)
    assert load_student(model, use_safetensors=True).config.num_labels == 3


def test_an_adapter_needs_safetensors(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "checkpoint-2")
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.bin").write_text("text")
    with pytest.raises(ValueError, match=r"without adapter_model\.safetensors"):
        check_whole(folder)


def test_weights_under_another_name_do_not_stand_for_the_ones_that_are_read(checkpoint, tmp_path):
    """The stock trainer takes pytorch_model.bin where it finds no model.safetensors."""
    folder = shutil.copytree(checkpoint, tmp_path / "checkpoint-2")
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    (folder / "pytorch_model.bin").write_text("text")
    with pytest.raises(ValueError, match="weights are missing"):
        make_trainer(tmp_path / "out").train(resume_from_checkpoint=str(folder))


def test_the_best_model_is_looked_at_too(tmp_path):
    trainer = make_trainer(tmp_path / "run")
    best = tmp_path / "best"
    best.mkdir()
    (best / "pytorch_model.bin").write_text("text")
    trainer.state.best_model_checkpoint = str(best)
    with pytest.raises(ValueError, match="weights are missing"):
        trainer._load_best_model()


def test_a_repository_is_looked_at_before_it_is_loaded(hub, run_with_hub, tmp_path):  # noqa: F811
    vit().save_pretrained(tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "sharded")
    shard(tmp_path / "sharded")
    for name, piece in (("outside", "../weights.safetensors"), ("pickled", "weights.bin"), ("text", PIECE)):
        folder = shutil.copytree(tmp_path / "sharded", tmp_path / name)
        write_index(folder, dict.fromkeys(load_file(folder / PIECE), piece))
        (folder / "weights.bin").write_text("text")
    (tmp_path / "text" / PIECE).write_text("text" * 100)
    shutil.copytree(tmp_path / "whole", tmp_path / "bare")
    (tmp_path / "bare" / "model.safetensors").rename(tmp_path / "bare" / "pytorch_model.bin")
    done = run_with_hub(
        """
import json
from huggingface_hub import HfApi
from hf_reprot import Teacher
from hf_reprot.models.student import load_student

api, said = HfApi(), {}
for name in ("whole", "sharded", "outside", "pickled", "text", "bare"):
    api.create_repo(f"ada/{name}")
    api.upload_folder(repo_id=f"ada/{name}", folder_path=name)
    for load in (Teacher.load, load_student):
        try:
            load(f"ada/{name}")
            said[f"{name} {load.__name__}"] = "loaded"
        except ValueError as error:
            said[f"{name} {load.__name__}"] = str(error)
print(json.dumps(said))
""",
        cwd=tmp_path,
    )
    said = json.loads(done.stdout.splitlines()[-1])
    for load in ("load", "load_student"):
        assert said[f"whole {load}"] == said[f"sharded {load}"] == "loaded"
        assert "'../weights.safetensors' as weights" in said[f"outside {load}"]
        assert "'weights.bin' as weights" in said[f"pickled {load}"]
        assert f"{PIECE} is damaged or no safetensors file" in said[f"text {load}"]
        assert "has no safetensors weights" in said[f"bare {load}"]
