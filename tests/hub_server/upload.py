"""Routes that write: how to send each file, large files, and the commit itself."""

from __future__ import annotations

import base64
import binascii
import fnmatch
import json
from typing import TYPE_CHECKING, Any

from tests.hub_server.access import caller, commit_at, readable, writable
from tests.hub_server.card import check_card
from tests.hub_server.messages import HubError, Request, Response
from tests.hub_server.storage import LFS_ATTRIBUTES, Commit, Entry, Repo, now

if TYPE_CHECKING:
    from tests.hub_server.server import HubServer

REGULAR_LIMIT = 10 * 1024 * 1024  # bytes; a larger file has to be a large file in the sense of LFS
_REJECTED = "Your push was rejected because "


def preupload(hub: HubServer, request: Request, kind: str, repo: str, rev: str) -> Response:
    """POST /api/models/ada/student/preupload/rev: for each file, how to send it and what is there already."""
    found = _pushable(hub, request, kind, repo, rev)
    commit = commit_at(hub.store, found, rev)
    data = request.json()
    ignored = data.get("gitIgnore")
    if ignored is None and ".gitignore" in commit.files:
        ignored = hub.store.read(commit.files[".gitignore"]).decode(errors="replace")
    answers = []
    for file in data.get("files", []):
        path = _checked_path(file["path"])
        binary = b"\0" in base64.b64decode(file.get("sample", ""))
        large = binary or file["size"] > REGULAR_LIMIT or _tracked(hub, commit, path)
        answer = {
            "path": path,
            "uploadMode": "lfs" if large else "regular",
            "shouldIgnore": _is_ignored(path, ignored or ""),
        }
        existing = commit.files.get(path)
        if existing is not None:
            # The client skips a file whose content has this id.
            answer["oid"] = existing.sha256 if existing.lfs else existing.oid
        answers.append(answer)
    return Response.json({"files": answers, "commitOid": commit.id})


def lfs_batch(hub: HubServer, request: Request, repo: str, kind: str = "models") -> Response:
    """POST /ada/student.git/info/lfs/objects/batch: where to put each large file that is not here yet."""
    # Whoever may read may open a pull request, and its large files come first.
    found = writable(hub.store, request, kind, repo, pull_request=True)
    objects = []
    for wanted in request.json().get("objects", []):
        answer: dict[str, Any] = {"oid": wanted["oid"], "size": wanted["size"], "authenticated": True}
        if wanted["oid"] not in found.received:
            target = f"{kind}/{repo}/{wanted['oid']}"
            answer["actions"] = {
                "upload": {"href": f"{hub.storage_endpoint}/_upload/{target}?signature={hub.sign(target)}"},
                "verify": {"href": f"{hub.endpoint}/_verify/{target}"},
            }
        objects.append(answer)
    return Response.json({"transfer": "basic", "objects": objects, "hash_algo": "sha256"})


def put_large(hub: HubServer, request: Request, kind: str, repo: str, oid: str) -> Response:
    """PUT /_upload/models/ada/student/sha256?signature=...: the content of a large file, without a token."""
    if request.query.get("signature") != [hub.sign(f"{kind}/{repo}/{oid}")]:
        raise HubError(403, "Access denied")
    found = hub.store.get(kind, repo)
    if found is None or request.upload is None or request.upload_sha256 != oid:
        raise HubError(400, f"The content does not have the hash {oid}")
    with hub.store.lock:
        hub.store.adopt(request.upload, oid)
        if oid not in found.received:
            found.received.append(oid)
            hub.store.save(found)
    return Response(200, b"", {"ETag": f'"{oid}"'})


def verify_large(hub: HubServer, request: Request, kind: str, repo: str, oid: str) -> Response:
    """POST /_verify/models/ada/student/sha256: is the file complete?"""
    found = readable(hub.store, request, kind, repo)
    if oid not in found.received or hub.store.large(oid).size != request.json().get("size"):
        raise HubError(404, f"Object {oid} was not received")
    return Response.json({"message": "ok"})


def commit(hub: HubServer, request: Request, kind: str, repo: str, rev: str) -> Response:
    """POST /api/models/ada/student/commit/rev: ndjson, first a header, then one operation a line.

    All operations are checked before anything changes; commits to one server come one after the other.
    """
    pull_request = request.flag("create_pr")
    header, operations = _parse(request.body)
    with hub.store.lock:
        found = _pushable(hub, request, kind, repo, rev)
        head = commit_at(hub.store, found, rev)
        if (
            not pull_request
            and not rev.startswith("refs/pr/")
            and rev.removeprefix("refs/heads/") not in found.branches
        ):
            raise HubError(400, f"Invalid reference for a branch: {rev}")
        expected = header.get("parentCommit")
        if pull_request and expected is not None:
            head = commit_at(hub.store, found, expected)
        elif expected not in (None, head.id):
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        files = _apply(hub, found, head, operations)
        title, message = str(header.get("summary", "")), str(header.get("description", ""))
        if not title:
            raise HubError(400, '"header.summary" is required')
        author = caller(request).name
        number = None
        if pull_request:
            number = str(len(found.pulls) + 1)
            found.pulls[number] = {
                "title": title, "author": author, "created": now(), "status": "open", "head": head.id,
            }  # fmt: skip
            rev = f"refs/pr/{number}"
        made = hub.store.commit(found, rev, files, title, message, author, parent=head.id)
    page = hub.page(kind, repo)
    answer = {"success": True, "commitOid": made.id, "commitUrl": f"{page}/commit/{made.id}", "hookOutput": ""}
    if number is not None:
        answer["pullRequestUrl"] = f"{page}/discussions/{number}"
    return Response.json(answer)


def _pushable(hub: HubServer, request: Request, kind: str, repo: str, rev: str) -> Repo:
    """The repository, if the caller may commit to this revision; anyone who sees it may add to a pull request."""
    pull_request = request.flag("create_pr") or rev.startswith("refs/pr/")
    return writable(hub.store, request, kind, repo, pull_request=pull_request)


def _parse(body: bytes) -> tuple[dict[str, Any], list[tuple[str, dict[str, Any]]]]:
    try:
        lines = [json.loads(line) for line in body.splitlines() if line.strip()]
        pairs = [(line["key"], line["value"]) for line in lines]
    except (ValueError, KeyError, TypeError):
        raise HubError(400, "The body of a commit must be lines of JSON with a key and a value") from None
    if not pairs or pairs[0][0] != "header":
        raise HubError(400, "The first line of a commit must be its header")
    return pairs[0][1], pairs[1:]


def _apply(hub: HubServer, repo: Repo, head: Commit, operations: list[tuple[str, dict[str, Any]]]) -> dict[str, Entry]:
    """The files after the operations."""
    files = dict(head.files)
    too_large, missing, untracked = [], [], []
    for key, value in operations:
        path = _checked_path(value.get("path", ""))
        if key == "file":
            content = _decoded(value)
            if len(content) > REGULAR_LIMIT:
                too_large.append(path)
            elif path == "README.md":
                _check_readme(content, repo.kind)
            files[path] = hub.store.put(content)
        elif key == "lfsFile":
            if value.get("oid") not in repo.received:
                missing.append(path)
                continue
            files[path] = hub.store.large(value["oid"])
            if not _tracked(hub, head, path):
                untracked.append(path)
        elif key == "deletedFile":
            if files.pop(path, None) is None:
                raise HubError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
        elif key == "deletedFolder":
            inside = [name for name in files if name.startswith(f"{path.rstrip('/')}/")]
            if not inside:
                raise HubError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
            for name in inside:
                del files[name]
        else:
            raise HubError(400, f"Unknown operation in a commit: {key}")
    if too_large:
        raise _rejected("it contains files larger than 10 MiB", too_large)
    if missing:
        raise _rejected("an LFS pointer pointed to a file that does not exist", missing)
    if untracked and ".gitattributes" in files:
        lines = "".join(f"{path.replace(' ', '[[:space:]]')} {LFS_ATTRIBUTES}\n" for path in untracked)
        files[".gitattributes"] = hub.store.put(hub.store.read(files[".gitattributes"]) + lines.encode())
    return files


def _rejected(why: str, paths: list[str]) -> HubError:
    return HubError(400, f"{_REJECTED}{why}. Offending files: - {' - '.join(paths)}")


def _decoded(value: dict[str, Any]) -> bytes:
    content = str(value.get("content", ""))
    if value.get("encoding") != "base64":
        return content.encode()
    try:
        return base64.b64decode(content, validate=True)
    except binascii.Error as error:
        raise HubError(400, f"Invalid base64 in {value.get('path')}: {error}") from None


def _check_readme(content: bytes, kind: str) -> None:
    verdict = check_card(content.decode(errors="replace"), kind)
    if verdict.errors:
        raise HubError(400, f"{_REJECTED}of its YAML metadata: {'; '.join(verdict.errors)}", **verdict.json())


def _checked_path(path: str) -> str:
    parts = path.rstrip("/").split("/")
    if any(part in ("", ".", "..", ".git") for part in parts):
        raise HubError(400, f'"{path}" is not a valid path in a repository')
    return path


def _tracked(hub: HubServer, commit: Commit, path: str) -> bool:
    """Whether `.gitattributes` says that this path is a large file."""
    if ".gitattributes" not in commit.files:
        return False
    lines = hub.store.read(commit.files[".gitattributes"]).decode(errors="replace").splitlines()
    patterns = [line.split()[0].replace("[[:space:]]", " ") for line in lines if "filter=lfs" in line.split()]
    return any(_matches(path, pattern) for pattern in patterns)


def _is_ignored(path: str, gitignore: str) -> bool:
    """Whether `.gitignore` leaves this path out; the last pattern that fits decides."""
    ignored = False
    for line in gitignore.splitlines():
        pattern = line.strip()
        if not pattern or pattern.startswith("#"):
            continue
        parts = path.split("/")
        parents = ["/".join(parts[: depth + 1]) for depth in range(len(parts))]
        candidates = parents[:-1] if pattern.endswith("/") else parents
        if any(_matches(candidate, pattern.removeprefix("!").rstrip("/")) for candidate in candidates):
            ignored = not pattern.startswith("!")
    return ignored


def _matches(path: str, pattern: str) -> bool:
    """Git's matching, nearly: without a slash a pattern fits the name alone, with one the whole path."""
    if "/" not in pattern:
        return fnmatch.fnmatchcase(path.rsplit("/", 1)[-1], pattern)
    return fnmatch.fnmatchcase(path, pattern.strip("/").replace("**/", "*"))
