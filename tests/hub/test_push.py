"""A folder to a Hub and what can go wrong on the way, with the real client against a real HTTP peer."""

import json

import pytest

from hf_reprot.hub.card import rebuild_card
from tests.hub.folders import student_folder
from tests.hub_server.card import front_matter
from tests.hub_server.fixtures import READ_TOKEN, WRITE_TOKEN, hub, run_with_hub  # noqa: F401

_START = """
import json, logging, sys
from pathlib import Path
from hf_reprot.hub.errors import HubError
from hf_reprot.hub.push import push_folder

facts = {}

def attempt(name, *args, **kwargs):
    try:
        facts[name] = push_folder(*args, **kwargs).oid
    except (HubError, OSError, ValueError) as error:
        facts[name] = f"{type(error).__name__}: {error}"
"""
_END = "\nprint(json.dumps(facts))\n"


def _facts(run, script, **options):
    done = run(_START + script + _END, **options)
    for secret in (WRITE_TOKEN, READ_TOKEN):
        assert secret not in done.stdout + done.stderr
    facts = json.loads(done.stdout.splitlines()[-1])
    for value in facts.values():
        assert "\n" not in str(value)
    return facts


def test_pushes_that_work(hub, run_with_hub, tmp_path):  # noqa: F811
    student_folder(tmp_path / "student")
    big = student_folder(tmp_path / "big", values=3_000_000)  # above the 10 MB of a regular file
    rebuild_card(big)
    facts = _facts(
        run_with_hub,
        """
from safetensors.torch import save_file
import torch
attempt("first", "student", "ada/student", private=True)
attempt("same", "student", "student", private=True)
first = facts["first"]
save_file({"a": torch.ones(2)}, "student/model-00001-of-00001.safetensors")
Path("student/model.safetensors").unlink()
Path("student/model.safetensors.index.json").write_text(json.dumps(
    {"weight_map": {"a": "model-00001-of-00001.safetensors"}}))
attempt("other layout", "student", "ada/student", parent_commit=first)
attempt("nothing to do", "student", "ada/student", parent_commit=first)
Path("student/README.md").write_text(Path("student/README.md").read_text() + "By hand.")
attempt("edited", "student", "ada/student", revision="second", commit_message="By hand")
attempt("big", "big", "lab/big")
attempt("public", "big", "lab/big", private=True)
attempt("checkpoint", "big", "lab/big", checkpoint="big", checkpoint_path="last-checkpoint")
""",
        cwd=tmp_path,
    )
    assert facts["same"] == facts["first"]
    commits = hub.commits("ada/student")
    assert [commit.id for commit in commits][:2] == [facts["other layout"], facts["first"]]
    assert len(commits) == 3  # the first one made the repository
    assert hub.repo("ada/student").private
    first = commits[1].files
    assert {"README.md", "config.json", "model.safetensors", "transfer.json"} <= set(first)
    assert "model.safetensors" not in commits[0].files
    assert facts["nothing to do"] == facts["other layout"]
    readme = hub.files("ada/student", "second")["README.md"].decode()
    assert readme.endswith("By hand.")
    assert 'model="ada/student"' in readme
    assert hub.files("lab/big")["model.safetensors"] == (tmp_path / "big" / "model.safetensors").read_bytes()
    assert facts["public"].startswith("HubError: lab/big exists and is public")
    assert "last-checkpoint/model.safetensors" in hub.files("lab/big")
    card = front_matter(hub.files("lab/big")["README.md"].decode())
    assert card["library_name"] == "timm"
    assert 'hf-hub:lab/big"' in hub.files("lab/big")["README.md"].decode()


def test_pushes_that_are_refused_say_why_in_one_line(hub, run_with_hub, tmp_path):  # noqa: F811
    folder = student_folder(tmp_path / "student")
    student_folder(tmp_path / "bare")
    (tmp_path / "bare" / "transfer.json").unlink()
    facts = _facts(
        run_with_hub,
        f"""
write, read = {WRITE_TOKEN!r}, {READ_TOKEN!r}
attempt("none", "student", "ada/new")
attempt("read", "student", "ada/new", token=read)
attempt("unknown", "student", "ada/new", token="hf_unknown")
attempt("not ours", "student", "bob/student", token=write)
attempt("bad name", "student", "ada/stu dent", token=write)
attempt("no card", "bare", "ada/bare", token=write)
attempt("no such revision", "student", "ada/student", revision="refs/pr/7", token=write)
attempt("wrong parent", "student", "ada/student", parent_commit="0" * 40, token=write)
""",
        cwd=tmp_path,
        token=None,
    )
    assert facts["none"].startswith("HubError: no token for the Hub was found: run `hf auth login`")
    assert facts["read"].startswith("HubError: the token may only read: run `hf auth login`")
    assert facts["unknown"].startswith("HubError: the Hub does not accept the token")
    assert facts["not ours"].startswith("HubError: the token has no right to write to bob/student")
    assert "cannot be the name of a repository" in facts["bad name"]
    assert facts["no card"].startswith("FileNotFoundError")
    assert "has no such revision" in facts["no such revision"]
    assert "has changed since the commit that this push builds on" in facts["wrong parent"]
    assert set(hub.files("ada/student")) == {".gitattributes"}
    with pytest.raises(KeyError):
        hub.repo("ada/new")

    away = {"HF_ENDPOINT": "http://127.0.0.1:9"}
    lost = _facts(run_with_hub, 'attempt("lost", "student", "ada/new")', cwd=tmp_path, env=away)
    assert lost["lost"].startswith("HubError: the Hub cannot be reached")
    assert (folder / "model.safetensors").is_file()


def test_a_push_that_breaks_off_can_be_repeated(hub, run_with_hub, tmp_path):  # noqa: F811
    student_folder(tmp_path / "student", values=3_000_000)
    hub.fail_next("POST", "/api/models/ada/student/commit/", status=507, message="The disk is full")
    hub.lose_next("POST", "/api/models/ada/lost/commit/")
    hub.cut_next("PUT", "/_upload/models/ada/cut/", after_bytes=1 << 20)
    facts = _facts(
        run_with_hub,
        """
from huggingface_hub import HfApi
attempt("refused", "student", "ada/student")
facts["half"] = HfApi().list_repo_files("ada/student")
attempt("again", "student", "ada/student")
attempt("lost", "student", "ada/lost")
attempt("lost again", "student", "ada/lost")
attempt("cut", "student", "ada/cut")
""",
        cwd=tmp_path,
    )
    assert "the Hub has no room for ada/student (507 " in facts["refused"]
    assert "The disk is full" in facts["refused"]
    assert facts["half"] == [".gitattributes"]
    for repo in ("ada/student", "ada/lost", "ada/cut"):
        assert len(hub.commits(repo)) == 2
        assert {"README.md", "model.safetensors", "config.json", "transfer.json"} <= set(hub.files(repo))
    assert facts["again"] == hub.commits("ada/student")[0].id
    assert facts["lost again"] == hub.commits("ada/lost")[0].id
