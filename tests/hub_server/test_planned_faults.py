"""Failures on demand, and how the real client comes through them; commits that race."""

import json

import pytest

from tests.hub_server.fixtures import hub, run_with_hub  # noqa: F401

_SCRIPT = """
import json, threading
from huggingface_hub import CommitOperationAdd, HfApi, hf_hub_download
api, facts = HfApi(), {}
weights = bytes(range(256)) * (12 * 4096)

def failure(call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except Exception as error:
        return [type(error).__name__, getattr(getattr(error, "response", None), "status_code", None), str(error)]
    return None

def push(name, **options):
    return api.create_commit(f"ada/{name}", commit_message="weights", operations=[
        CommitOperationAdd("model.safetensors", weights), CommitOperationAdd("config.json", b"{}")], **options)

for name in ("cut", "busy", "refused", "lost", "race", "ordered"):
    api.create_repo(f"ada/{name}")
facts["cut"] = failure(push, "cut")
facts["busy"] = failure(push, "busy")
facts["refused"] = failure(push, "refused")
facts["refused files"] = api.list_repo_files("ada/refused")
facts["refused again"] = failure(push, "refused")
facts["lost"] = failure(push, "lost")
facts["lost again"] = failure(push, "lost")
facts["loaded"] = open(hf_hub_download("ada/cut", "model.safetensors"), "rb").read() == weights

def together(*calls):
    failures = [None] * len(calls)
    def one(place):
        failures[place] = failure(calls[place])
    threads = [threading.Thread(target=one, args=(place,)) for place in range(len(calls))]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    return failures

def add(repo, name, **options):
    return lambda: api.upload_file(repo_id=repo, path_in_repo=name, path_or_fileobj=name.encode(), **options)

facts["race"] = together(*[add("ada/race", f"{n}.txt") for n in range(8)])
head = api.model_info("ada/ordered").sha
facts["ordered"] = together(*[add("ada/ordered", f"{n}.txt", parent_commit=head) for n in range(4)])
print(json.dumps(facts))
"""


def _sent(hub, method, path):  # noqa: F811
    return [record for record in hub.requests if record.method == method and path in record.path]


def test_the_client_comes_through_planned_faults(hub, run_with_hub):  # noqa: F811
    hub.cut_next("PUT", "/_upload/models/ada/cut/", after_bytes=1 << 20)
    hub.fail_next("PUT", "/_upload/models/ada/busy/", status=503)
    hub.fail_next("POST", "/api/models/ada/refused/commit/", status=500, message="The disk is full")
    hub.lose_next("POST", "/api/models/ada/lost/commit/")
    hub.cut_next("GET", "/_storage/", after_bytes=11 << 20)
    facts = json.loads(run_with_hub(_SCRIPT).stdout.splitlines()[-1])
    assert hub.faults.pending == 0

    # An interrupted upload is sent again by the client, whole.
    assert facts["cut"] is None
    assert [(r.cut, r.status) for r in _sent(hub, "PUT", "/ada/cut/")] == [(True, 0), (False, 200)]
    assert facts["busy"] is None
    assert [r.status for r in _sent(hub, "PUT", "/ada/busy/")] == [503, 200]

    # A refused commit leaves nothing behind but the large file, which is not sent a second time.
    assert facts["refused"][1] == 500
    assert "The disk is full" in facts["refused"][2]
    assert facts["refused files"] == [".gitattributes"]
    assert facts["refused again"] is None
    assert len(_sent(hub, "PUT", "/ada/refused/")) == 1
    assert len(hub.commits("ada/refused")) == 2

    # A commit whose answer is lost has happened; the same push again finds nothing to do.
    assert facts["lost"] is not None
    assert facts["lost again"] is None
    assert len(hub.commits("ada/lost")) == 2

    # A download that breaks off is continued where it stopped.
    assert facts["loaded"]
    ranges = [record.headers.get("range") for record in _sent(hub, "GET", "/_storage/")]
    assert ranges[0] is None
    assert ranges[1] == f"bytes={10 << 20}-"  # the client writes pieces of 10 MiB

    # Commits to one branch: all land without a parent commit, one lands with the same parent commit.
    assert facts["race"] == [None] * 8
    assert len(hub.commits("ada/race")) == 9
    assert {f"{n}.txt" for n in range(8)} <= set(hub.files("ada/race"))
    assert sorted(failed and failed[1] for failed in facts["ordered"] if failed) == [412, 412, 412]
    assert len(hub.commits("ada/ordered")) == 2


def test_a_fault_happens_at_least_once(hub):  # noqa: F811
    with pytest.raises(ValueError, match="times=0"):
        hub.fail_next("PUT", times=0)
