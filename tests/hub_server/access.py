"""What every route asks first: does the repository exist for this caller, may the caller change it, which commit."""

from __future__ import annotations

from tests.hub_server.accounts import Identity
from tests.hub_server.messages import HubError, Request
from tests.hub_server.storage import Commit, Repo, Store

WRITE_TOKEN_NEEDED = "Forbidden: you must use a write token to upload to a repository."
PULL_REQUEST_NEEDED = "Forbidden: pass `create_pr=1` as a query parameter to create a Pull Request."


def caller(request: Request) -> Identity:
    """The identity behind the request; 401 for an anonymous one."""
    if request.identity is None:
        raise HubError(401, "Invalid username or password.")
    return request.identity


def readable(store: Store, request: Request, kind: str, repo_id: str) -> Repo:
    """A repository that the caller may see.

    One that is private to others answers exactly as one that does not exist: 401 to an anonymous caller, 404 to a user.
    """
    repo = store.get(kind, repo_id)
    if repo is None or (repo.private and not (request.identity and request.identity.owns(repo.namespace))):
        if request.identity is None:
            raise HubError(401, "Invalid username or password.", "RepoNotFound")
        raise HubError(404, "Repository not found", "RepoNotFound")
    return repo


def writable(store: Store, request: Request, kind: str, repo_id: str, pull_request: bool = False) -> Repo:
    """A repository that the caller may change, or may open a pull request on."""
    repo = readable(store, request, kind, repo_id)
    identity = caller(request)
    if identity.role != "write":
        raise HubError(403, WRITE_TOKEN_NEEDED)
    if not pull_request and not identity.owns(repo.namespace):
        raise HubError(403, PULL_REQUEST_NEEDED)
    return repo


def commit_at(store: Store, repo: Repo, revision: str) -> Commit:
    """The commit behind a revision; 404 if there is none."""
    commit = store.find(repo, revision)
    if commit is None:
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
    return commit
