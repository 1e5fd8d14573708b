"""Routes about repositories as a whole: who am I, create, delete, settings, branches, tags, pull requests, cards."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tests.hub_server.access import caller, commit_at, readable, writable
from tests.hub_server.card import check_card
from tests.hub_server.messages import HubError, Request, Response
from tests.hub_server.storage import KINDS, MAIN

if TYPE_CHECKING:
    from tests.hub_server.server import HubServer

_NAME = re.compile(r"[A-Za-z0-9](?:[\w.-]{0,94}\w)?", re.ASCII)


def whoami(hub: HubServer, request: Request) -> Response:
    """GET /api/whoami-v2"""
    identity = caller(request)
    return Response.json(
        {
            "type": "user",
            "id": identity.name,
            "name": identity.name,
            "fullname": identity.name,
            "isPro": False,
            "orgs": [{"type": "org", "id": org, "name": org, "fullname": org} for org in identity.orgs],
            "auth": {"type": "access_token", "accessToken": {"displayName": "test", "role": identity.role}},
        }
    )


def create(hub: HubServer, request: Request) -> Response:
    """POST /api/repos/create"""
    identity = caller(request)
    data = request.json()
    kind, repo_id = _target(data, identity.name)
    namespace, name = repo_id.split("/")
    if not identity.may_write(namespace):
        what = kind.removesuffix("s")
        raise HubError(403, f'You don\'t have the rights to create a {what} under the namespace "{namespace}"')
    if not _NAME.fullmatch(name) or ".." in name or "--" in name:
        raise HubError(400, f'Invalid repository name: "{name}"')
    private = data.get("visibility", "private" if data.get("private") else "public") == "private"
    url = hub.page(kind, repo_id)
    with hub.store.lock:
        if hub.store.get(kind, repo_id) is not None:
            raise HubError(409, f"You already created this {kind.removesuffix('s')} repo", url=url)
        hub.store.create(kind, repo_id, identity.name, private)
    return Response.json({"url": url, "name": repo_id, "id": repo_id})


def delete(hub: HubServer, request: Request) -> Response:
    """DELETE /api/repos/delete"""
    kind, repo_id = _target(request.json(), caller(request).name)
    with hub.store.lock:
        hub.store.delete(writable(hub.store, request, kind, repo_id))
    return Response(200, b"OK")


def settings(hub: HubServer, request: Request, kind: str, repo: str) -> Response:
    """PUT /api/models/ada/student/settings: visibility is all that this server keeps."""
    data = request.json()
    with hub.store.lock:
        found = writable(hub.store, request, kind, repo)
        found.private = data["visibility"] == "private" if "visibility" in data else bool(data.get("private"))
        hub.store.save(found)
    return Response.json({"private": found.private})


def refs(hub: HubServer, request: Request, kind: str, repo: str) -> Response:
    """GET /api/models/ada/student/refs"""
    found = readable(hub.store, request, kind, repo)

    def listed(prefix: str, targets: dict[str, str]) -> list[dict[str, str]]:
        return [{"name": name, "ref": prefix + name, "targetCommit": targets[name]} for name in sorted(targets)]

    pulls = {number: pull["head"] for number, pull in found.pulls.items()}
    return Response.json(
        {
            "branches": listed("refs/heads/", found.branches),
            "tags": listed("refs/tags/", found.tags),
            "converts": [],
            "pullRequests": listed("refs/pr/", pulls),
        }
    )


def create_branch(hub: HubServer, request: Request, kind: str, repo: str, name: str) -> Response:
    """POST /api/models/ada/student/branch/name"""
    with hub.store.lock:
        found = writable(hub.store, request, kind, repo)
        if name in found.branches:
            raise HubError(409, f"Reference already exists: {name}")
        found.branches[name] = commit_at(hub.store, found, request.json().get("startingPoint", MAIN)).id
        hub.store.save(found)
    return Response.json({"ref": f"refs/heads/{name}"})


def delete_branch(hub: HubServer, request: Request, kind: str, repo: str, name: str) -> Response:
    """DELETE /api/models/ada/student/branch/name"""
    with hub.store.lock:
        found = writable(hub.store, request, kind, repo)
        if name == MAIN:
            raise HubError(403, "The main branch cannot be deleted")
        if found.branches.pop(name, None) is None:
            raise HubError(404, f"Invalid rev id: {name}", "RevisionNotFound")
        hub.store.save(found)
    return Response.json({})


def create_tag(hub: HubServer, request: Request, kind: str, repo: str, rev: str) -> Response:
    """POST /api/models/ada/student/tag/rev"""
    with hub.store.lock:
        found = writable(hub.store, request, kind, repo)
        tag = request.json().get("tag")
        if not isinstance(tag, str) or not tag:
            raise HubError(400, '"tag" is required')
        if tag in found.tags:
            raise HubError(409, f"Tag reference exists already: {tag}")
        found.tags[tag] = commit_at(hub.store, found, rev).id
        hub.store.save(found)
    return Response.json({"tag": tag})


def delete_tag(hub: HubServer, request: Request, kind: str, repo: str, rev: str) -> Response:
    """DELETE /api/models/ada/student/tag/name"""
    with hub.store.lock:
        found = writable(hub.store, request, kind, repo)
        if found.tags.pop(rev, None) is None:
            raise HubError(404, f"Invalid rev id: {rev}", "RevisionNotFound")
        hub.store.save(found)
    return Response.json({})


def discussions(hub: HubServer, request: Request, kind: str, repo: str) -> Response:
    """GET /api/models/ada/student/discussions: the pull requests; this server has no other discussions."""
    found = readable(hub.store, request, kind, repo)
    listed = [
        {
            "num": int(number),
            "title": pull["title"],
            "author": {"name": pull["author"]},
            "createdAt": pull["created"],
            "status": pull["status"],
            "isPullRequest": True,
            "repo": {"name": repo, "type": kind.removesuffix("s")},
        }
        for number, pull in sorted(found.pulls.items(), key=lambda item: -int(item[0]))
    ]
    return Response.json({"discussions": listed, "count": len(listed), "start": 0})


def merge(hub: HubServer, request: Request, kind: str, repo: str, number: str) -> Response:
    """POST /api/models/ada/student/discussions/1/merge: only when main has not moved since."""
    with hub.store.lock:
        found = writable(hub.store, request, kind, repo)
        pull = found.pulls.get(number)
        if pull is None:
            raise HubError(404, "Discussion not found")
        head = commit_at(hub.store, found, pull["head"])
        ancestors = [commit.id for commit in hub.store.history(found, head)]
        if found.branches[MAIN] not in ancestors:
            raise HubError(409, "This pull request has conflicts with the main branch")
        found.branches[MAIN] = head.id
        pull["status"] = "merged"
        hub.store.save(found)
    return Response.json({"status": "merged"})


def auth_check(hub: HubServer, request: Request, kind: str, repo: str) -> Response:
    """GET /api/models/ada/student/auth-check"""
    readable(hub.store, request, kind, repo)
    return Response.json({})


def auth_check_write(hub: HubServer, request: Request, kind: str, repo: str) -> Response:
    """GET /api/models/ada/student/auth-check/write"""
    writable(hub.store, request, kind, repo)
    return Response.json({})


def validate_yaml(hub: HubServer, request: Request) -> Response:
    """POST /api/validate-yaml"""
    data = request.json()
    verdict = check_card(str(data.get("content", "")), f"{data.get('repoType') or 'model'}s")
    if verdict.errors:
        return Response.json({"error": "; ".join(verdict.errors), **verdict.json()}, status=400)
    return Response.json(verdict.json())


def _target(data: dict, user: str) -> tuple[str, str]:
    """Kind and full id of the repository that a create or delete request names."""
    kind = f"{data.get('type') or 'model'}s"
    name = data.get("name")
    if kind not in KINDS or not isinstance(name, str):
        raise HubError(400, f'"type" must be one of {", ".join(k.removesuffix("s") for k in KINDS)}, "name" a string')
    if "/" in name:
        return kind, name
    return kind, f"{data.get('organization') or user}/{name}"
