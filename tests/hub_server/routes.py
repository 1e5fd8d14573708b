"""The table of routes: method, path, and the function that answers."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import unquote

from tests.hub_server import content, repositories, upload
from tests.hub_server.messages import HubError, Request, Response

if TYPE_CHECKING:
    from tests.hub_server.server import HubServer

_PLACES = {
    "kind": r"(?P<kind>models|datasets|spaces)",
    "repo": r"(?P<repo>[^/]+/[^/]+?)",
    "rev": r"(?P<rev>[^/]+)",
    "name": r"(?P<name>.+)",
    "path": r"(?P<path>.+)",
    "oid": r"(?P<oid>[0-9a-f]{64})",
    "number": r"(?P<number>\d+)",
}
_API = "/api/{kind}/{repo}"

_TABLE: list[tuple[str, str, Callable[..., Response]]] = [
    ("GET", "/api/whoami-v2", repositories.whoami),
    ("POST", "/api/repos/create", repositories.create),
    ("DELETE", "/api/repos/delete", repositories.delete),
    ("POST", "/api/validate-yaml", repositories.validate_yaml),
    ("GET", "/api/{kind}", content.listing),
    ("GET", _API + "/refs", repositories.refs),
    ("PUT", _API + "/settings", repositories.settings),
    ("GET", _API + "/auth-check", repositories.auth_check),
    ("GET", _API + "/auth-check/write", repositories.auth_check_write),
    ("POST", _API + "/branch/{name}", repositories.create_branch),
    ("DELETE", _API + "/branch/{name}", repositories.delete_branch),
    ("POST", _API + "/tag/{rev}", repositories.create_tag),
    ("DELETE", _API + "/tag/{rev}", repositories.delete_tag),
    ("GET", _API + "/discussions", repositories.discussions),
    ("POST", _API + "/discussions/{number}/merge", repositories.merge),
    ("GET", _API + "/revision/{rev}", content.info),
    ("GET", _API + "/tree/{rev}", content.tree),
    ("GET", _API + "/tree/{rev}/{path}", content.tree),
    ("POST", _API + "/paths-info/{rev}", content.paths_info),
    ("GET", _API + "/commits/{rev}", content.commits),
    ("POST", _API + "/preupload/{rev}", upload.preupload),
    ("POST", _API + "/commit/{rev}", upload.commit),
    ("GET", _API, content.info),
    ("GET", "/_storage/{oid}", content.stored),
    ("PUT", "/_upload/{kind}/{repo}/{oid}", upload.put_large),
    ("POST", "/_verify/{kind}/{repo}/{oid}", upload.verify_large),
    ("POST", "/datasets/{repo}.git/info/lfs/objects/batch", partial(upload.lfs_batch, kind="datasets")),
    ("POST", "/spaces/{repo}.git/info/lfs/objects/batch", partial(upload.lfs_batch, kind="spaces")),
    ("POST", "/{repo}.git/info/lfs/objects/batch", upload.lfs_batch),
    ("GET", "/datasets/{repo}/resolve/{rev}/{path}", partial(content.resolve, kind="datasets")),
    ("GET", "/spaces/{repo}/resolve/{rev}/{path}", partial(content.resolve, kind="spaces")),
    ("GET", "/{repo}/resolve/{rev}/{path}", content.resolve),
]


def _pattern(template: str) -> re.Pattern[str]:
    pieces = re.split(r"\{(\w+)\}", template)
    return re.compile("".join(_PLACES[piece] if place % 2 else re.escape(piece) for place, piece in enumerate(pieces)))


_ROUTES = [(method, _pattern(template), function) for method, template, function in _TABLE]


def answer(hub: HubServer, request: Request) -> Response:
    """Find the route and call it; 404 where there is none. HEAD goes where GET goes."""
    method = "GET" if request.method == "HEAD" else request.method
    try:
        for its_method, pattern, function in _ROUTES:
            # The pattern is matched before the percent signs are undone: `refs%2Fpr%2F1` is one piece of the path.
            match = pattern.fullmatch(request.path)
            if match is not None and its_method == method:
                return function(hub, request, **{key: unquote(value) for key, value in match.groupdict().items()})
        raise HubError(404, f"Sorry, we can't find the page you are looking for: {request.method} {request.path}")
    except HubError as error:
        return error.response()
