"""A Hub in trouble: what the push does, and what the user is told. The real client against a real HTTP peer."""

import json

import pytest

from hf_reprot.hub.errors import HubError, explain
from hf_reprot.hub.retries import patiently, retry_after
from tests.hub.folders import student_folder
from tests.hub_server.fixtures import READ_TOKEN, WRITE_TOKEN, hub, run_with_hub  # noqa: F401

_START = """
import json, logging, sys, time
from hf_reprot.hub import retries
from hf_reprot.hub.errors import HubError
from hf_reprot.hub.push import push_folder

retries.FIRST_WAIT = 0.01
said = []

class Kept(logging.Handler):
    def emit(self, record):
        said.append(record.getMessage())

logging.getLogger("hf_reprot.hub.retries").addHandler(Kept())

def attempt(repo, **options):
    begin = time.monotonic()
    try:
        result = push_folder("student", repo, **options).oid
    except HubError as error:
        result = f"{error.status}: {error}"
    facts[repo] = {"result": result, "seconds": time.monotonic() - begin, "said": said[:]}
    said.clear()

facts = {}
"""


@pytest.fixture
def push(hub, run_with_hub, tmp_path):  # noqa: F811
    student_folder(tmp_path / "student")

    def push(*repos, token=WRITE_TOKEN, **options):
        given = "".join(f", {name}={value!r}" for name, value in options.items())
        script = _START + "".join(f"attempt({repo!r}{given})\n" for repo in repos) + "print(json.dumps(facts))\n"
        done = run_with_hub(script, cwd=tmp_path, token=token)
        for secret in (WRITE_TOKEN, READ_TOKEN):
            assert secret not in done.stdout + done.stderr
        facts = json.loads(done.stdout.splitlines()[-1])
        assert not any("\n" in fact["result"] for fact in facts.values())
        return facts

    return push


def files(hub, repo):  # noqa: F811
    return set(hub.files(repo)) - {".gitattributes"}


WHOLE = {"README.md", "config.json", "model.safetensors", "transfer.json"}


def test_trouble_that_passes_is_waited_for(hub, push):  # noqa: F811
    hub.fail_next("POST", "/ada/busy/commit/", times=2, status=429, retry_after="1")
    hub.fail_next("POST", "/ada/failing/commit/", times=2, status=503)
    hub.fail_next("POST", "/api/repos/create", times=1, status=502)
    hub.slow_next("POST", "/ada/slow/commit/", seconds=3)
    hub.lose_next("POST", "/ada/lost/commit/", times=1)
    facts = push("ada/busy", "ada/failing", "ada/slow", "ada/lost")
    for repo, fact in facts.items():
        assert files(hub, repo) >= WHOLE, repo
        assert fact["result"] == hub.commits(repo)[0].id
        assert len(hub.commits(repo)) == 2, repo  # the one that made it, and one push: none is done twice
    assert facts["ada/busy"]["seconds"] >= 2
    assert facts["ada/slow"]["seconds"] >= 3
    assert hub.faults.pending == 0


def test_trouble_that_stays_is_one_line(hub, push):  # noqa: F811
    hub.fail_next("POST", "/ada/full/commit/", times=50, status=507, message="Storage is full")
    hub.fail_next("POST", "/ada/denied/commit/", times=50, status=403, message="Storage quota reached")
    hub.fail_next("POST", "/ada/moving/commit/", times=50, status=412, message="Precondition failed")
    hub.fail_next("POST", "/ada/down/commit/", times=500, status=503, message="Maintenance")
    hub.fail_next("POST", "/ada/crowded/commit/", times=500, status=429, retry_after="4000")
    facts = push("ada/full", "ada/denied", "ada/moving", "ada/down", "ada/crowded")
    said = {repo.split("/")[1]: fact["result"] for repo, fact in facts.items()}
    assert said["full"].startswith("507: the Hub has no room for ada/full (507 ")
    assert said["denied"].startswith("403: the token has no right to write to ada/denied: ")
    assert "Storage quota reached" in said["denied"]
    assert said["moving"].startswith("412: ada/moving has changed since the commit that this push builds on")
    assert said["down"].startswith("503: the Hub failed with 503 (")
    assert said["crowded"].startswith("429: the Hub takes no more requests for now (429 ")
    assert "push again in 4,000 seconds" in said["crowded"]
    for name, text in said.items():
        assert text.endswith(f"ada/{name} is there and still empty: push again, or delete it in its settings")
        assert files(hub, f"ada/{name}") == set()
    assert facts["ada/crowded"]["seconds"] < 60
    tries = [record for record in hub.requests if "/ada/down/commit/" in record.path]
    assert 6 <= len(tries) < 100
    assert len([record for record in hub.requests if "/ada/full/commit/" in record.path]) == 1
    assert len([record for record in hub.requests if "/ada/moving/commit/" in record.path]) == 3


def test_a_token_that_may_only_read_leaves_nothing_behind(hub, push):  # noqa: F811
    fact = push("ada/new", token=READ_TOKEN)["ada/new"]
    assert fact["result"].startswith("403: the token may only read: run `hf auth login`")
    assert "empty" not in fact["result"]
    with pytest.raises(KeyError):
        hub.repo("ada/new")


def test_a_repository_with_a_student_is_as_it_was(hub, push):  # noqa: F811
    first = push("ada/student")["ada/student"]["result"]
    hub.fail_next("POST", "/ada/student/commit/", times=500, status=500)
    (hub.directory.parent / "student" / "config.json").write_text('{"architecture": "resnet34"}')
    result = push("ada/student")["ada/student"]["result"]
    assert result.startswith("500: the Hub failed with 500")
    assert "empty" not in result
    assert hub.commits("ada/student")[0].id == first


class Answer:
    def __init__(self, status, headers=None):
        self.status_code, self.headers = status, headers or {}


def failure(status, **headers):
    error = RuntimeError("trouble")
    error.response = Answer(status, {name.replace("_", "-"): value for name, value in headers.items()})
    return error


@pytest.fixture
def pauses(monkeypatch):
    slept = []
    monkeypatch.setattr("hf_reprot.hub.retries.time.sleep", slept.append)
    return slept


def calls(*outcomes):
    left = list(outcomes)

    def call():
        outcome = left.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return call


def test_pauses_grow_and_end(pauses):
    with pytest.raises(RuntimeError):
        patiently(calls(*[failure(503)] * 10))
    assert len(pauses) == 5
    assert all(2**i <= pause <= 1.25 * 2**i for i, pause in enumerate(pauses))


def test_the_hub_says_how_long(pauses):
    assert patiently(calls(failure(429, Retry_After="7"), failure(429, Retry_After="90"), "done")) == "done"
    assert pauses == [7, 90]
    pauses.clear()
    with pytest.raises(RuntimeError):
        patiently(calls(failure(429, Retry_After="200"), failure(429, Retry_After="101"), "never"))
    assert pauses == [200]
    assert retry_after(failure(429, Retry_After="Wed, 21 Oct 2015 07:28:00 GMT")) == 0
    assert retry_after(failure(429, Retry_After="Wed, 21 Oct 2195 07:28:00 GMT")) > 3e9
    assert retry_after(failure(429, Retry_After="soon")) is None


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 412, 501, 507])
def test_what_waiting_does_not_help_is_told_at_once(pauses, status):
    with pytest.raises(RuntimeError):
        patiently(calls(failure(status), "never"))
    assert pauses == []


def test_no_answer_is_tried_thrice(pauses):
    with pytest.raises(ConnectionError):
        patiently(calls(*[ConnectionError()] * 5))
    assert len(pauses) == 2
    with pytest.raises(ValueError, match="ours"):
        patiently(calls(ValueError("ours"), "never"))
    assert isinstance(explain(failure(429), "ada/x", token="t"), HubError)
