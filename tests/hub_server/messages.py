"""What the routes take and give: a request, a response, and the error that becomes a response."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from tests.hub_server.accounts import Identity


@dataclass
class Request:
    """One HTTP request, its body read.

    `path` is the path as it was sent (percent signs and all). `upload` is the file that holds the body of a
    large-file upload, whose `body` stays empty; the route that takes it moves it into the store.
    """

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes = b""
    upload: Path | None = None
    upload_sha256: str = ""
    identity: Identity | None = None

    def json(self) -> dict[str, Any]:
        """The body as a JSON object; 400 for anything else."""
        try:
            value = json.loads(self.body or b"{}")
        except ValueError as error:
            raise HubError(400, f"Invalid JSON in the request body: {error}") from None
        if not isinstance(value, dict):
            raise HubError(400, "The request body must be a JSON object")
        return value

    def form(self) -> dict[str, list[str]]:
        """The body as form fields, whether it was sent as a form or as JSON."""
        if self.headers.get("content-type", "").startswith("application/json"):
            return {key: value if isinstance(value, list) else [str(value)] for key, value in self.json().items()}
        return parse_qs(self.body.decode(), keep_blank_values=True)

    def flag(self, name: str) -> bool:
        """Whether the query says `name=1` or `name=true`."""
        return self.query.get(name, ["0"])[0].lower() in ("1", "true")


@dataclass
class Response:
    """One HTTP response; the body is bytes, or a file on disk."""

    status: int = 200
    body: bytes | Path = b""
    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def json(cls, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
        """A JSON answer."""
        return cls(status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})


class HubError(Exception):
    """An error answer, with the headers from which the client makes its own exceptions.

    Args:
        status: HTTP status.
        message: Goes into the JSON body and into `X-Error-Message`.
        code: `X-Error-Code`: `RepoNotFound`, `RevisionNotFound` or `EntryNotFound`.
        extra: More fields of the JSON body, for example the `url` of a repository that exists already.
    """

    def __init__(self, status: int, message: str, code: str | None = None, **extra: Any) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.extra = status, message, code, extra

    def response(self) -> Response:
        """The answer to send."""
        # A header is one line of Latin-1.
        headers = {"X-Error-Message": self.message.replace("\n", " ").encode("ascii", "replace").decode()}
        if self.code:
            headers["X-Error-Code"] = self.code
        return Response.json({"error": self.message, **self.extra}, self.status, headers)
