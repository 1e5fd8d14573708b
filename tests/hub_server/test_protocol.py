"""The HTTP side without a client library: bodies, ranges, signatures, malformed requests, a restart."""

import hashlib
import http.client
import json
import subprocess
import sys

import pytest

from tests.hub_server.fixtures import WRITE_TOKEN, add_users, hub, run_with_hub  # noqa: F401
from tests.hub_server.server import HubServer


def _call(hub, method, path, body=None, token=WRITE_TOKEN, **headers):  # noqa: F811
    connection = http.client.HTTPConnection("127.0.0.1", int(hub.endpoint.rsplit(":", 1)[1]), timeout=10)
    if token:
        headers["Authorization"] = f"Bearer {token}"
    if isinstance(body, dict):
        body = json.dumps(body)
    connection.request(method, path, body, headers, encode_chunked=headers.get("Transfer-Encoding") == "chunked")
    response = connection.getresponse()
    content = response.read()
    connection.close()
    return response.status, dict(response.headers), content


def _commit(*lines, header=True):
    first = [{"key": "header", "value": {"summary": "by hand"}}] if header else []
    return "\n".join(json.dumps(line) for line in [*first, *lines])


@pytest.fixture
def student(hub):  # noqa: F811
    assert _call(hub, "POST", "/api/repos/create", {"name": "student"})[0] == 200
    return hub


def _upload_link(hub, content):  # noqa: F811
    oid = hashlib.sha256(content).hexdigest()
    wanted = {"objects": [{"oid": oid, "size": len(content)}]}
    answer = json.loads(_call(hub, "POST", "/ada/student.git/info/lfs/objects/batch", wanted)[2])
    return oid, answer["objects"][0]["actions"]["upload"]["href"].split("/", 3)[3]


def test_a_large_file_must_have_its_hash_and_the_link_its_signature(student):
    oid, link = _upload_link(student, b"weights")
    assert _call(student, "PUT", f"/{link}", b"other weights", token=None)[0] == 400
    assert _call(student, "PUT", f"/{link.split('?')[0]}", b"weights", token=None)[0] == 403
    assert not student.store.blob(oid).exists()
    pieces = iter([b"wei", b"ghts"])
    assert _call(student, "PUT", f"/{link}", pieces, token=None, **{"Transfer-Encoding": "chunked"})[0] == 200
    assert student.store.blob(oid).read_bytes() == b"weights"
    assert list((student.directory / "incoming").iterdir()) == []


def test_a_large_file_of_another_repository_does_not_count_as_received(student):
    oid, link = _upload_link(student, b"weights")
    _call(student, "PUT", f"/{link}", b"weights", token=None)
    _call(student, "POST", "/api/repos/create", {"name": "thief"})
    line = {"key": "lfsFile", "value": {"path": "w.bin", "oid": oid}}
    assert _call(student, "POST", "/api/models/ada/thief/commit/main", _commit(line))[0] == 400
    assert _call(student, "POST", "/api/models/ada/student/commit/main", _commit(line))[0] == 200


def test_ranges_and_head(student):
    line = {"key": "file", "value": {"path": "a b.txt", "content": "0123456789"}}
    assert _call(student, "POST", "/api/models/ada/student/commit/main", _commit(line))[0] == 200
    path = "/ada/student/resolve/main/a%20b.txt"
    status, headers, content = _call(student, "HEAD", path, token=None)
    assert (status, headers["Content-Length"], content) == (200, "10", b"")
    assert headers["X-Repo-Commit"] == student.commits("ada/student")[0].id
    assert headers["ETag"] == '"' + hashlib.sha1(b"blob 10\x000123456789").hexdigest() + '"'  # as `git hash-object`
    status, headers, content = _call(student, "GET", path, Range="bytes=2-4")
    assert (status, headers["Content-Range"], content) == (206, "bytes 2-4/10", b"234")
    assert _call(student, "GET", path, Range="bytes=7-")[2] == b"789"
    assert _call(student, "GET", path, Range="bytes=10-")[0] == 416
    status, headers, _ = _call(student, "HEAD", "/ada/student/resolve/main/none.txt")
    assert (status, headers["X-Error-Code"]) == (404, "EntryNotFound")


@pytest.mark.parametrize(
    "body",
    [
        "not json",
        _commit(header=False),
        _commit({"key": "file", "value": {"path": "x"}}, header=False),
        _commit({"key": "fly", "value": {"path": "x"}}),
        _commit({"key": "file", "value": {"path": "../x", "content": ""}}),
        _commit({"key": "file", "value": {"path": ".git/config", "content": ""}}),
        _commit({"key": "file", "value": {"path": "a//b", "content": ""}}),
        _commit({"key": "file", "value": {"path": "x", "content": "!", "encoding": "base64"}}),
        json.dumps({"key": "header", "value": {}}),
    ],
)
def test_a_malformed_commit_changes_nothing(student, body):
    status, _, content = _call(student, "POST", "/api/models/ada/student/commit/main", body)
    assert status == 400, content
    assert json.loads(content)["error"]
    assert len(student.commits("ada/student")) == 1


def test_unknown_paths_and_bodies(hub):  # noqa: F811
    assert _call(hub, "GET", "/api/nothing")[0] == 404
    assert _call(hub, "POST", "/api/repos/create", "[1]")[0] == 400
    assert _call(hub, "POST", "/api/repos/create", {"name": "x", "type": "planet"})[0] == 400


def test_several_requests_on_one_connection(hub):  # noqa: F811
    connection = http.client.HTTPConnection("127.0.0.1", int(hub.endpoint.rsplit(":", 1)[1]), timeout=10)
    for _ in range(3):
        connection.request("POST", "/api/nothing", b"a body that no route reads")
        response = connection.getresponse()
        assert (response.status, bool(response.read())) == (404, True)
        assert not response.will_close
    connection.close()


def test_a_new_server_continues_the_directory(student, tmp_path):
    line = {"key": "file", "value": {"path": "x.txt", "content": "x"}}
    _call(student, "POST", "/api/models/ada/student/commit/main", _commit(line))
    _call(student, "POST", "/api/models/ada/student/tag/main", {"tag": "v1"})
    before = student.commits("ada/student")
    student.stop()
    with HubServer(student.directory) as second:
        add_users(second)
        assert second.commits("ada/student", "v1") == before
        assert second.files("ada/student")["x.txt"] == b"x"
        assert _call(second, "POST", "/api/models/ada/student/commit/main", _commit(line))[0] == 200
    with pytest.raises(OSError):
        _call(student, "GET", "/api/whoami-v2")


def test_the_environment_leads_nowhere_else(hub, monkeypatch):  # noqa: F811
    misleading = {"HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN", "HF_HUB_CACHE", "HUGGING_FACE_HUB_TOKEN"}
    for name in misleading:
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("NO_PROXY", "example.org")
    env = hub.env()
    assert not misleading & set(env)
    assert env["NO_PROXY"] == "example.org,127.0.0.1,localhost"
    assert env["HF_HOME"] != hub.env()["HF_HOME"]
    assert hub.env(token="t", hf_home="here").items() >= {"HF_TOKEN": "t", "HF_HOME": "here"}.items()


def test_the_command_line_serves_until_it_is_ended(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.hub_server", "--dir", str(tmp_path / "files"), "--user", "eve"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        process.stdout.readline()
        export = process.stdout.readline()
        port = int(export.split("HF_ENDPOINT=http://127.0.0.1:")[1].split()[0])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", "/api/whoami-v2", headers={"Authorization": "Bearer hf_write_eve"})
        assert json.loads(connection.getresponse().read())["name"] == "eve"
        connection.close()
        process.stdout.readline()
        line = process.stdout.readline()
        assert line.split()[1:] == ["200", "GET", "/api/whoami-v2"]
    finally:
        process.terminate()
        process.wait(10)
