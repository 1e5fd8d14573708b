"""The HTTP side of one connection: read a request, let a planned fault or the routes answer it, write the answer."""

from __future__ import annotations

import hashlib
import re
import socket
import time
import traceback
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

from tests.hub_server import routes
from tests.hub_server.faults import Fault
from tests.hub_server.messages import HubError, Request, Response
from tests.hub_server.record import Record

if TYPE_CHECKING:
    from tests.hub_server.server import HubServer

_CHUNK = 1 << 16


class _Cut(Exception):
    """The connection ends here, on purpose or because the client went away."""


class Handler(BaseHTTPRequestHandler):
    """Serves one connection; `hub` is set on a subclass by the server."""

    hub: HubServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server_version = "LocalHub"

    def do_GET(self) -> None:
        self._serve()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Silent: requests are in `HubServer.requests`, and a log line must not carry a token."""

    def _serve(self) -> None:
        url = urlsplit(self.path)
        headers = {key.lower(): value for key, value in self.headers.items()}
        request = Request(self.command, url.path, parse_qs(url.query, keep_blank_values=True), headers)
        fault = self.hub.faults.take(request.method, request.path)
        record = Record(request.method, url.path, url.query, headers)
        self.hub.requests.append(record)
        try:
            self._read_body(request, fault)
            record.body = request.body
            response = self._answer(request, fault)
            record.status = response.status
            if fault is not None and fault.kind == "lost":
                raise _Cut
            if fault is not None and fault.kind == "slow":
                time.sleep(fault.seconds)
            self._write(response, fault)
        except (_Cut, ConnectionError, TimeoutError):
            record.cut = True
            self._hang_up()
        finally:
            if request.upload is not None:
                request.upload.unlink(missing_ok=True)
            self.hub.on_request(record)

    def _answer(self, request: Request, fault: Fault | None) -> Response:
        if fault is not None and fault.kind == "status":
            response = HubError(fault.status, fault.message or "A fault was planned here").response()
            if fault.retry_after:
                response.headers["Retry-After"] = fault.retry_after
            return response
        token = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
        if token:
            request.identity = self.hub.accounts.find(token)
            if request.identity is None:
                return HubError(401, "Invalid credentials in Authorization header").response()
        try:
            return routes.answer(self.hub, request)
        except Exception:  # an error of this server must reach the test as an answer, not as a hung connection
            traceback.print_exc()
            return HubError(500, "Internal error of the local Hub").response()

    def _read_body(self, request: Request, fault: Fault | None) -> None:
        """Read the whole body: keep-alive needs it even where the answer does not."""
        limit = None
        if fault is not None and fault.kind == "cut" and (self._length() or self._chunked()):
            limit = fault.after_bytes
        if request.method == "PUT" and request.path.startswith("/_upload/"):
            request.upload = self.hub.store.incoming()
            digest = hashlib.sha256()
            with request.upload.open("wb") as file:
                for piece in self._pieces(limit):
                    file.write(piece)
                    digest.update(piece)
            request.upload_sha256 = digest.hexdigest()
        else:
            request.body = b"".join(self._pieces(limit))

    def _length(self) -> int:
        return int(self.headers.get("Content-Length", 0))

    def _chunked(self) -> bool:
        return self.headers.get("Transfer-Encoding", "").lower() == "chunked"

    def _pieces(self, limit: int | None) -> Iterator[bytes]:
        """The body in pieces; stops with `_Cut` after `limit` bytes or when the client goes away."""
        taken = 0
        for length in self._lengths():
            while length > 0:
                if limit is not None and taken >= limit:
                    raise _Cut
                piece = self.rfile.read(min(length, _CHUNK))
                if not piece:
                    raise _Cut
                yield piece
                taken += len(piece)
                length -= len(piece)
            if self._chunked():
                self.rfile.readline()
        if limit is not None:
            raise _Cut

    def _lengths(self) -> Iterator[int]:
        if not self._chunked():
            yield self._length()
            return
        while length := int(self.rfile.readline().split(b";")[0], 16):
            yield length
        while self.rfile.readline().strip():
            pass  # trailers

    def _write(self, response: Response, fault: Fault | None) -> None:
        size = response.body.stat().st_size if isinstance(response.body, Path) else len(response.body)
        start, end = 0, size
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        status = response.status
        if wanted and status == 200 and isinstance(response.body, Path):
            start = int(wanted[1])
            end = min(size, int(wanted[2]) + 1) if wanted[2] else size
            if start >= size:
                status, start, end = 416, 0, 0
                response.headers["Content-Range"] = f"bytes */{size}"
            else:
                status = 206
                response.headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        self.send_response(status)
        for name, value in response.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(end - start))
        self.end_headers()
        if self.command == "HEAD":
            return
        stop = start + fault.after_bytes if fault is not None and fault.kind == "cut" else end
        for piece in _read(response.body, start, min(stop, end)):
            self.wfile.write(piece)
        if fault is not None and fault.kind == "cut":
            raise _Cut

    def _hang_up(self) -> None:
        self.close_connection = True
        try:
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # the client was faster


def _read(body: bytes | Path, start: int, end: int) -> Iterator[bytes]:
    if isinstance(body, bytes):
        yield body[start:end]
        return
    with body.open("rb") as file:
        file.seek(start)
        while start < end:
            piece = file.read(min(_CHUNK, end - start))
            if not piece:
                return
            yield piece
            start += len(piece)
