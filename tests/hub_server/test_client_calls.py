"""The real client, in processes of its own, creates, pushes, reads and deletes."""

import hashlib
import json
from pathlib import Path

import pytest

from tests.hub_server.fixtures import WRITE_TOKEN, add_users, run_python
from tests.hub_server.server import HubServer

_HELPERS = """
import json, os, pathlib, warnings
from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi
from huggingface_hub import hf_hub_download, snapshot_download
api, facts = HfApi(), {}

def failure(call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except Exception as error:
        return [type(error).__name__, getattr(getattr(error, "response", None), "status_code", None), str(error)]
    return None
"""

_PUSH = """
facts["name"] = api.whoami()["name"]
facts["url"] = str(api.create_repo("ada/student"))
facts["again"] = failure(api.create_repo, "ada/student")
facts["exist_ok"] = str(api.create_repo("student", exist_ok=True))
facts["bad name"] = failure(api.create_repo, "ada/student--two")

folder = pathlib.Path("push")
first = api.upload_folder(repo_id="ada/student", folder_path=folder, commit_message="the student")
facts["first"] = first.oid
facts["same"] = api.upload_folder(repo_id="ada/student", folder_path=folder).oid
info = api.model_info("ada/student", files_metadata=True)
facts["sizes"] = {file.rfilename: file.size for file in info.siblings}
facts["large"] = {file.rfilename: file.lfs.sha256 for file in info.siblings if file.lfs}
facts["card"] = [info.sha, info.library_name, info.pipeline_tag, info.card_data.license, info.tags]
facts["found"] = [[m.id for m in api.list_models(author="ada", filter=tag)] for tag in ("image-classification", "no")]
api.create_tag("ada/student", tag="v1.0")
facts["tag twice"] = failure(api.create_tag, "ada/student", tag="v1.0")

def commit(*operations, **options):
    return api.create_commit("ada/student", operations, commit_message="change", **options)

changed = commit(CommitOperationAdd("notes.txt", b"one"), parent_commit=first.oid)
facts["stale parent"] = failure(commit, CommitOperationAdd("notes.txt", b"two"), parent_commit=first.oid)
too_large = CommitOperationAdd("long.json", b" " * (10 * 2**20 + 1))
too_large._upload_mode = "regular"
facts["too large"] = failure(commit, too_large)
never_sent = CommitOperationAdd("weights.bin", b"never sent")
never_sent._upload_mode, never_sent._is_uploaded = "lfs", True
facts["never sent"] = failure(commit, never_sent)
facts["no such file"] = failure(commit, CommitOperationDelete("nothing.txt"))
api.upload_file(repo_id="ada/student", path_in_repo="sub/log 1.txt", path_or_fileobj=b"line\\n" * (2 * 2**20 + 1))
commit(CommitOperationDelete("empty.txt"), CommitOperationDelete("a/"),
       CommitOperationCopy("model.safetensors", "copy.safetensors"))
api.upload_folder(repo_id="ada/student", folder_path="ignoring")

facts["bad card"] = failure(
    api.upload_file, repo_id="ada/student", path_in_repo="README.md", path_or_fileobj=b"---\\nlicense: none\\n---\\n")
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    api.upload_file(repo_id="ada/student", path_in_repo="README.md", path_or_fileobj=b"# no metadata")
facts["warned"] = [str(warning.message) for warning in caught]

pull = api.upload_file(repo_id="ada/student", path_in_repo="idea.txt", path_or_fileobj=b"idea", create_pr=True)
more = api.upload_file(repo_id="ada/student", path_in_repo="more.txt", path_or_fileobj=b"more", revision="refs/pr/1")
facts["pull"] = [pull.pr_revision, pull.pr_num]
facts["main before the merge"] = "idea.txt" in api.list_repo_files("ada/student")
api.merge_pull_request("ada/student", 1)
facts["main after the merge"] = "more.txt" in api.list_repo_files("ada/student")
facts["discussions"] = [[d.num, d.status, d.is_pull_request] for d in api.get_repo_discussions("ada/student")]

future = api.upload_file(repo_id="ada/student", path_in_repo="later.txt", path_or_fileobj=b"later", run_as_future=True)
facts["future"] = future.result().oid
api.create_branch("ada/student", branch="side/one", revision="v1.0")
facts["to a tag"] = failure(api.upload_file, repo_id="ada/student", path_in_repo="x", path_or_fileobj=b"x",
                            revision="v1.0")
api.upload_file(repo_id="ada/student", path_in_repo="side.txt", path_or_fileobj=b"side", revision="side/one")
api.create_branch("ada/student", branch="gone")
api.delete_branch("ada/student", branch="gone")
api.create_tag("ada/student", tag="wrong")
api.delete_tag("ada/student", tag="wrong")

api.create_repo("ada/brief")
api.delete_repo("ada/brief")
facts["deleted"] = api.repo_exists("ada/brief")
facts["delete again"] = failure(api.delete_repo, "ada/brief")
print(json.dumps(facts))
"""

_READ = """
facts["snapshot"] = snapshot_download("ada/student")
facts["tagged"] = snapshot_download("ada/student", revision="v1.0")
facts["one"] = open(hf_hub_download("ada/student", "notes.txt"), "rb").read().decode()
facts["of a commit"] = failure(hf_hub_download, "ada/student", "notes.txt", revision="v1.0")
facts["no file"] = failure(hf_hub_download, "ada/student", "nothing.bin")
facts["no revision"] = failure(hf_hub_download, "ada/student", "notes.txt", revision="v9")
facts["no repo"] = failure(hf_hub_download, "ada/nobody", "notes.txt")
facts["exists"] = [api.file_exists("ada/student", name) for name in ("notes.txt", "nothing.bin")]
facts["no push"] = failure(api.upload_file, repo_id="ada/student", path_in_repo="x", path_or_fileobj=b"x")
facts["tree"] = [entry.path for entry in api.list_repo_tree("ada/student")]
facts["changed by"] = {e.path: e.last_commit.title for e in api.list_repo_tree("ada/student", "sub", expand=True)}
facts["no folder"] = failure(lambda: list(api.list_repo_tree("ada/student", "nowhere")))
facts["paths"] = [e.path for e in api.get_paths_info("ada/student", ["sub", "later.txt", "nothing"])]
facts["commits"] = [[c.commit_id, c.title, c.authors] for c in api.list_repo_commits("ada/student")]
refs = api.list_repo_refs("ada/student", include_pull_requests=True)
facts["refs"] = [[r.name for r in kind] for kind in (refs.branches, refs.tags, refs.pull_requests)]
facts["size"] = api.get_hf_file_metadata(url=f"{api.endpoint}/ada/student/resolve/v1.0/model.safetensors").size
print(json.dumps(facts))
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A server after the pushes, with what the pushing process and a later anonymous one have seen."""
    with HubServer(tmp_path_factory.mktemp("hub")) as hub:
        add_users(hub)
        push = hub.directory / "push"
        (push / "a" / "b").mkdir(parents=True)
        weights = hashlib.sha256(b"seed").digest() * (12 * 2**20 // 32)
        (push / "model.safetensors").write_bytes(weights)
        (push / "a" / "b" / "deep.json").write_text('{"deep": true}')
        (push / "empty.txt").touch()
        (push / "pixel.png").write_bytes(b"\x89PNG\r\n\0\0")
        (push / "README.md").write_text(
            "---\nlicense: apache-2.0\nlibrary_name: transformers\npipeline_tag: image-classification\n"
            "tags: [transport]\nbase_model: org/base\nbase_model_relation: finetune\n---\n\nAfter arXiv:2007.06737.\n"
        )
        ignoring = hub.directory / "ignoring"
        (ignoring / "checkpoint-1").mkdir(parents=True)
        for name in ("checkpoint-1/weights.txt", "run.log", "kept.log", "kept.txt"):
            (ignoring / name).write_text(name)
        (ignoring / ".gitignore").write_text("# not these\ncheckpoint-*/\n*.log\n!kept.log\n")
        pushed = json.loads(run_python(hub, _HELPERS + _PUSH).stdout.splitlines()[-1])
        read = json.loads(run_python(hub, _HELPERS + _READ, token=None).stdout.splitlines()[-1])
        yield hub, push, pushed, read


def test_create_answers_with_the_url_and_409_for_a_second_time(served):
    hub, _, pushed, _ = served
    assert pushed["name"] == "ada"
    assert pushed["url"] == pushed["exist_ok"] == f"{hub.endpoint}/ada/student"
    assert pushed["again"][1] == 409
    assert pushed["bad name"] is not None


def test_a_folder_arrives_whole_and_a_second_push_changes_nothing(served):
    hub, push, pushed, _ = served
    expected = {str(file.relative_to(push)): file.read_bytes() for file in push.rglob("*") if file.is_file()}
    files = hub.files("ada/student", revision="v1.0")
    assert files.pop(".gitattributes").startswith(b"*.7z filter=lfs")
    # A name that no pattern covers is added to .gitattributes when it comes as a large file, as the PNG does.
    assert files == expected
    assert pushed["same"] == pushed["first"] == hub.commits("ada/student", "v1.0")[0].id
    assert [commit.title for commit in hub.commits("ada/student", "v1.0")] == ["the student", "initial commit"]


def test_info_describes_the_files_and_the_card(served):
    _, push, pushed, _ = served
    weights = (push / "model.safetensors").read_bytes()
    assert pushed["sizes"]["model.safetensors"] == len(weights) == 12 * 2**20
    assert pushed["sizes"]["empty.txt"] == 0
    assert pushed["large"]["model.safetensors"] == hashlib.sha256(weights).hexdigest()
    assert "README.md" not in pushed["large"]
    sha, library, task, license, tags = pushed["card"]
    assert (sha, library, task, license) == (pushed["first"], "transformers", "image-classification", "apache-2.0")
    assert {"safetensors", "transport", "arxiv:2007.06737", "base_model:finetune:org/base"} <= set(tags)
    assert pushed["found"] == [["ada/student"], []]


def test_commits_that_the_hub_refuses(served):
    hub, _, pushed, _ = served
    assert pushed["stale parent"][1] == 412
    assert pushed["too large"][:2] == ["BadRequestError", 400]
    assert "files larger than 10 MiB" in pushed["too large"][2]
    assert pushed["never sent"][1] == 400
    assert "file that does not exist" in pushed["never sent"][2]
    assert pushed["no such file"][0] in ("EntryNotFoundError", "RemoteEntryNotFoundError")
    assert pushed["tag twice"][1] == 409
    assert pushed["to a tag"][1] == 400
    assert pushed["bad card"][0] == "ValueError"
    assert '"license" must be one of' in pushed["bad card"][2]
    assert any("empty or missing yaml" in message for message in pushed["warned"])
    files = hub.files("ada/student")
    assert files["notes.txt"] == b"one"
    assert not {"long.json", "weights.bin"} & set(files)


def test_files_are_deleted_copied_and_ignored(served):
    hub, _, _, _ = served
    files = hub.files("ada/student")
    assert not {"empty.txt", "a/b/deep.json", "run.log", "checkpoint-1/weights.txt"} & set(files)
    assert files["copy.safetensors"] == files["model.safetensors"]
    assert {"kept.log", "kept.txt", ".gitignore"} <= set(files)
    # A text over 10 MiB becomes a large file; its name goes into .gitattributes.
    assert len(files["sub/log 1.txt"]) > 10 * 2**20
    assert b"\nsub/log[[:space:]]1.txt filter=lfs" in files[".gitattributes"]


def test_pull_requests_branches_and_background_pushes(served):
    hub, _, pushed, _ = served
    assert pushed["pull"] == ["refs/pr/1", 1]
    assert (pushed["main before the merge"], pushed["main after the merge"]) == (False, True)
    assert pushed["discussions"] == [[1, "merged", True]]
    assert pushed["future"] == hub.commits("ada/student")[0].id
    assert "side.txt" in hub.files("ada/student", "side/one")
    assert "side.txt" not in hub.files("ada/student")


def test_a_deleted_repository_is_gone(served):
    hub, _, pushed, _ = served
    assert pushed["deleted"] is False
    assert pushed["delete again"][0] == "RepositoryNotFoundError"
    with pytest.raises(KeyError, match="ada/student"):
        hub.files("ada/brief")


def test_an_anonymous_snapshot_is_equal_to_what_was_pushed(served):
    hub, _, _, read = served
    for folder, revision in ((read["snapshot"], "main"), (read["tagged"], "v1.0")):
        local = {str(f.relative_to(folder)): f.read_bytes() for f in Path(folder).rglob("*") if f.is_file()}
        assert local == hub.files("ada/student", revision)
    assert read["one"] == "one"
    assert read["size"] == 12 * 2**20


def test_what_is_not_there_raises_the_error_for_it(served):
    _, _, _, read = served
    entry = ("EntryNotFoundError", "RemoteEntryNotFoundError")
    assert read["no file"][0] in entry
    assert read["of a commit"][0] in entry
    assert read["no folder"][0] in entry
    assert read["no revision"][0] == "RevisionNotFoundError"
    assert read["no repo"][0] == "RepositoryNotFoundError"
    assert read["no push"] is not None
    assert read["exists"] == [True, False]


def test_tree_history_and_refs(served):
    hub, _, _, read = served
    assert "sub" in read["tree"]
    assert "sub/log 1.txt" not in read["tree"]
    assert read["changed by"] == {"sub/log 1.txt": "Upload sub/log 1.txt with huggingface_hub"}
    assert read["paths"] == ["sub", "later.txt"]
    assert [row[0] for row in read["commits"]] == [commit.id for commit in hub.commits("ada/student")]
    assert read["commits"][-1][1:] == ["initial commit", ["ada"]]
    assert read["refs"] == [["main", "side/one"], ["v1.0"], ["1"]]


def test_the_token_travels_in_one_header_only_and_never_to_the_storage(served):
    hub, _, _, _ = served
    for record in hub.requests:
        assert WRITE_TOKEN not in record.path + record.query + repr(record)
        assert WRITE_TOKEN.encode() not in record.body
        assert [key for key, value in record.headers.items() if WRITE_TOKEN in value] in ([], ["authorization"])
        if record.path.startswith(("/_upload/", "/_storage/")):
            assert "authorization" not in record.headers
