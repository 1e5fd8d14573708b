"""Routes that read: information about a repository, its tree and history, its files."""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from tests.hub_server.access import commit_at, readable
from tests.hub_server.card import front_matter
from tests.hub_server.messages import HubError, Request, Response
from tests.hub_server.storage import MAIN, Commit, Entry, Repo, lfs_pointer

if TYPE_CHECKING:
    from tests.hub_server.server import HubServer

_ARXIV = re.compile(r"arxiv\.org/(?:abs|pdf)/(\d{4}\.\d{4,5})|arXiv[: ](\d{4}\.\d{4,5})", re.IGNORECASE)


def info(hub: HubServer, request: Request, kind: str, repo: str, rev: str = MAIN) -> Response:
    """GET /api/models/ada/student and /api/models/ada/student/revision/rev"""
    found = readable(hub.store, request, kind, repo)
    described = describe(hub, found, commit_at(hub.store, found, rev), blobs=request.flag("blobs"))
    expand = request.query.get("expand", []) + request.query.get("expand[]", [])
    if expand:
        described = {key: value for key, value in described.items() if key in ("id", "_id", *expand)}
    return Response.json(described)


def listing(hub: HubServer, request: Request, kind: str) -> Response:
    """GET /api/models with author=, search= and filter= (tags)."""
    visible = [
        describe(hub, repo, commit_at(hub.store, repo, MAIN))
        for repo in hub.store.repos(kind)
        if not repo.private or (request.identity and request.identity.owns(repo.namespace))
    ]
    author = request.query.get("author", [None])[0]
    search = request.query.get("search", [""])[0].lower()
    wanted = {tag for value in request.query.get("filter", []) for tag in value.split(",")}
    return Response.json(
        [
            repo
            for repo in visible
            if author in (None, repo["author"]) and search in repo["id"].lower() and wanted <= set(repo["tags"])
        ]
    )


def describe(hub: HubServer, repo: Repo, commit: Commit, blobs: bool = False) -> dict[str, Any]:
    """What the API says about a repository at one commit.

    `library_name`, `pipeline_tag` and the tags come from the card alone: the real Hub also guesses them from the files,
    which would hide a card that does not name them.
    """
    readme = hub.store.read(commit.files["README.md"]).decode(errors="replace") if "README.md" in commit.files else ""
    try:
        card = front_matter(readme) or {}
    except ValueError:
        card = {}
    described = {
        "_id": f"{repo.kind}/{repo.id}",
        "id": repo.id,
        "modelId": repo.id,
        "author": repo.namespace,
        "sha": commit.id,
        "lastModified": commit.date,
        "createdAt": repo.created,
        "private": repo.private,
        "gated": False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": _tags(card, readme, commit),
        "siblings": [_sibling(path, entry, blobs) for path, entry in commit.files.items()],
        "usedStorage": sum(entry.size for entry in commit.files.values()),
    }
    if card:
        described["cardData"] = card
    for key in ("library_name", "pipeline_tag", "model-index"):
        if key in card and repo.kind == "models":
            described[key] = card[key]
    return described


def _tags(card: dict[str, Any], readme: str, commit: Commit) -> list[str]:
    def several(key: str) -> list[str]:
        value = card.get(key) or []
        return [str(item) for item in (value if isinstance(value, list) else [value])]

    relation = card.get("base_model_relation")
    tags = [
        *several("library_name"),
        *(["safetensors"] if any(path.endswith(".safetensors") for path in commit.files) else []),
        *several("pipeline_tag"),
        *several("tags"),
        *several("language"),
        *(f"dataset:{name}" for name in several("datasets")),
        *(f"arxiv:{one or other}" for one, other in _ARXIV.findall(readme)),
        *(f"base_model:{name}" for name in several("base_model")),
        *(f"base_model:{relation}:{name}" for name in several("base_model") if relation),
        *(f"license:{name}" for name in several("license")),
        *(["model-index"] if "model-index" in card else []),
    ]
    return list(dict.fromkeys(tags))


def _sibling(path: str, entry: Entry, blobs: bool) -> dict[str, Any]:
    if not blobs:
        return {"rfilename": path}
    sibling: dict[str, Any] = {"rfilename": path, "size": entry.size, "blobId": entry.oid}
    if entry.lfs:
        sibling["lfs"] = {"sha256": entry.sha256, "size": entry.size, "pointerSize": _pointer_size(entry)}
    return sibling


def tree(hub: HubServer, request: Request, kind: str, repo: str, rev: str, path: str = "") -> Response:
    """GET /api/models/ada/student/tree/rev/folder?recursive=true&expand=true"""
    found = readable(hub.store, request, kind, repo)
    commit = commit_at(hub.store, found, rev)
    prefix = f"{path.strip('/')}/" if path.strip("/") else ""
    inside = {name.removeprefix(prefix) for name in commit.files if name.startswith(prefix)}
    if prefix and not inside:
        raise HubError(404, f"{path} does not exist on {rev!r}", "EntryNotFound")
    if not request.flag("recursive"):
        inside = {name.split("/")[0] for name in inside}
    paths = {prefix + name for name in inside} | {
        prefix + name.rsplit("/", depth)[0] for name in inside for depth in range(1, name.count("/") + 1)
    }
    return Response.json(_entries(hub, found, commit, sorted(paths), request.flag("expand")))


def paths_info(hub: HubServer, request: Request, kind: str, repo: str, rev: str) -> Response:
    """POST /api/models/ada/student/paths-info/rev with paths=a&paths=b; paths that do not exist are left out."""
    found = readable(hub.store, request, kind, repo)
    commit = commit_at(hub.store, found, rev)
    form = request.form()
    paths = [path.strip("/") for path in form.get("paths", [])]
    known = [path for path in paths if path in commit.files or any(f.startswith(f"{path}/") for f in commit.files)]
    expand = form.get("expand", ["false"])[0].lower() == "true"
    return Response.json(_entries(hub, found, commit, known, expand))


def _entries(hub: HubServer, repo: Repo, commit: Commit, paths: list[str], expand: bool) -> list[dict[str, Any]]:
    history = list(hub.store.history(repo, commit)) if expand else []
    answers = []
    for path in paths:
        entry = commit.files.get(path)
        answer: dict[str, Any] = {"type": "file" if entry else "directory", "path": path}
        if entry:
            answer |= {"oid": entry.oid, "size": entry.size}
            if entry.lfs:
                answer["lfs"] = {"oid": entry.sha256, "size": entry.size, "pointerSize": _pointer_size(entry)}
        else:
            answer |= {"oid": hub.store.folder_id(commit, path), "size": 0}
        if expand:
            last = _last_change(history, path)
            answer["lastCommit"] = {"id": last.id, "title": last.title, "date": last.date}
        answers.append(answer)
    return answers


def _last_change(history: list[Commit], path: str) -> Commit:
    """The newest commit that changed a file, or any file in a folder."""

    def content(commit: Commit) -> dict[str, Entry]:
        return {p: entry for p, entry in commit.files.items() if p == path or p.startswith(f"{path}/")}

    for commit, before in itertools.pairwise(history):
        if content(commit) != content(before):
            return commit
    return history[-1]


def commits(hub: HubServer, request: Request, kind: str, repo: str, rev: str) -> Response:
    """GET /api/models/ada/student/commits/rev: newest first."""
    found = readable(hub.store, request, kind, repo)
    return Response.json(
        [
            {
                "id": commit.id,
                "title": commit.title,
                "message": commit.message,
                "authors": [{"user": commit.author}],
                "date": commit.date,
            }
            for commit in hub.store.history(found, commit_at(hub.store, found, rev))
        ]
    )


def resolve(hub: HubServer, request: Request, repo: str, rev: str, path: str, kind: str = "models") -> Response:
    """GET or HEAD /ada/student/resolve/rev/path.

    A large file is a redirect to another host name, as to the Hub's CDN: the client reads the metadata from the headers
    of the redirect, and follows redirects within one host before it looks at them.
    """
    found = readable(hub.store, request, kind, repo)
    commit = commit_at(hub.store, found, rev)
    entry = commit.files.get(path)
    headers = {"X-Repo-Commit": commit.id, "Accept-Ranges": "bytes"}
    if entry is None:
        error = HubError(404, "Entry not found", "EntryNotFound").response()
        error.headers |= headers
        return error
    if not entry.lfs:
        headers |= {"ETag": f'"{entry.oid}"', "Content-Type": "application/octet-stream"}
        return Response(200, hub.store.blob(entry.sha256), headers)
    headers |= {
        "X-Linked-Etag": f'"{entry.sha256}"',
        "X-Linked-Size": str(entry.size),
        "ETag": f'"{entry.sha256}"',
        "Location": f"{hub.storage_endpoint}/_storage/{entry.sha256}?signature={hub.sign(entry.sha256)}"
        f"&filename={quote(path.rsplit('/', 1)[-1], safe='')}",
    }
    return Response(302, b"", headers)


def stored(hub: HubServer, request: Request, oid: str) -> Response:
    """GET /_storage/sha256?signature=...: the content of a large file, open to whoever was sent here."""
    if request.query.get("signature") != [hub.sign(oid)]:
        raise HubError(403, "Access denied")
    headers = {"ETag": f'"{oid}"', "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
    return Response(200, hub.store.blob(oid), headers)


def _pointer_size(entry: Entry) -> int:
    return len(lfs_pointer(entry.sha256, entry.size))
