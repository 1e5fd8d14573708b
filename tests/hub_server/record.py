"""What the server remembers of each request, for tests to look at."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Record:
    """One request as it came in. The bodies of large-file uploads are not kept: they are in the store.

    `status` is 0, and `cut` true, where the connection ended before an answer was sent whole.
    """

    method: str
    path: str
    query: str
    headers: dict[str, str] = field(repr=False)  # they carry the token: never print them
    body: bytes = field(default=b"", repr=False)
    status: int = 0
    cut: bool = False
