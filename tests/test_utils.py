"""Helpers that all rooms share: repositories' names, files that are whole, the nearest legal choice."""

import pytest

from hf_reprot.utils.files import write_whole
from hf_reprot.utils.hub_ids import split_revision
from hf_reprot.utils.messages import did_you_mean


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("org/name", ("org/name", None)),
        ("org/name@v1.0", ("org/name", "v1.0")),
        ("org/name@", ("org/name", None)),
        ("hf-hub:org/name@main", ("org/name", "main")),
        ("hf_hub:timm/resnet18", ("timm/resnet18", None)),
    ],
)
def test_a_repository_and_its_revision(source, expected):
    assert split_revision(source) == expected


def test_a_revision_is_named_once(tmp_path, monkeypatch):
    assert split_revision("org/name", "v2") == ("org/name", "v2")
    assert split_revision("org/name@v2", "v2") == ("org/name", "v2")
    with pytest.raises(ValueError, match=r"the teacher 'org/name@v1' names a revision, and init_kwargs .*'v2'"):
        split_revision("org/name@v1", "v2", title="the teacher", setting="init_kwargs")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs@home").mkdir()
    assert split_revision("runs@home") == ("runs@home", None)  # a folder is no repository


@pytest.mark.parametrize("durable", [False, True])
def test_a_file_is_whole_or_not_there(tmp_path, durable):
    path = tmp_path / "a.json"
    write_whole(path, "é\n", durable=durable)
    assert path.read_bytes() == b"\xc3\xa9\n"
    with pytest.raises(TypeError):
        write_whole(path, None, durable=durable)
    assert path.read_bytes() == b"\xc3\xa9\n"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_the_nearest_name_is_named():
    assert did_you_mean("ot_wieght", ["ot_weight", "kd_weight"]) == " Did you mean 'ot_weight'?"
    assert did_you_mean("colour", ["ot_weight", "kd_weight"]) == ""
