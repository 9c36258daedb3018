"""The server: requests of this machine's browser, answered from a run's files, its atlas and its model.

It listens on the loopback address alone and answers only requests that were sent to it by that name, so
that no page from elsewhere can ask it through the browser of whoever runs it.
"""

import errno
import json
import logging
from dataclasses import dataclass
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from raysae.errors import UserError
from raysae.serving.answers import Answer, Api, Refusal
from raysae.serving.static import file_in, kind_of

ADDRESS = "127.0.0.1"
NAMES = ("localhost", "127.0.0.1", "[::1]")
"""Names by which a browser on this machine calls it."""
MOST_BYTES = 2**18
"""Bytes of a request's body, at most."""
DRAINED = 2**22
"""Bytes of a body that is too long which are read, so that the answer arrives, at most."""
SECONDS = 60
"""Seconds after which a request that does not go on is dropped."""
HEADERS = {
    "X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY", "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin", "Cache-Control": "no-store",
}  # fmt: skip


@dataclass
class Folders:
    """What is served as it is."""

    assets: Path
    """The pages' own files, and the first page."""
    report: Path
    """The run's report."""
    features: Path
    """The feature browser, which need not lie in the report."""

    def file(self, path: str) -> Path | None:
        """The file that a request's path names; None when there is none."""
        for prefix, root in (
            ("/report/features/", self.features), ("/report/", self.report), ("/assets/", self.assets),
        ):  # fmt: skip
            if path.startswith(prefix):
                return file_in(root, path.removeprefix(prefix))
        return file_in(self.assets, "serve.html") if path == "/" else None


class Server(ThreadingHTTPServer):
    """The server of one run. Raises UserError when it cannot listen on the port."""

    daemon_threads = True

    def __init__(self, port: int, folders: Folders, api: Api):
        self.folders, self.api = folders, api
        try:
            super().__init__((ADDRESS, port), Handler)
        except OverflowError:
            raise UserError(f"--port {port}: expected a number from 0 to 65535") from None
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
            why = "is taken" if error.errno == errno.EADDRINUSE else "may not be used by you"
            raise UserError(
                f"port {port} {why}; give another with --port, or --port 0 for any that is free"
            ) from None

    @cached_property
    def hosts(self) -> set[str]:
        """What a request's Host may be."""
        return {f"{name}{port}" for name in NAMES for port in (f":{self.server_port}", "")}

    @property
    def url(self) -> str:
        """Where a browser finds it."""
        return f"http://{ADDRESS}:{self.server_port}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Note an error that no answer tells, such as a browser that has gone."""
        logging.getLogger(__name__).debug("request failed", exc_info=True)


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    server: Server
    server_version, sys_version = "raysae", ""
    timeout = SECONDS

    def do_GET(self) -> None:
        """Answer with a file or, below ``/api``, with JSON."""
        self._answered(self._get)

    def do_HEAD(self) -> None:
        """Answer as to GET, without the content."""
        self._answered(self._get)

    def do_POST(self) -> None:
        """Answer with JSON."""
        self._answered(self._post)

    def _answered(self, answer: Any) -> None:
        try:
            self._check_host()
            answer()
        except Refusal as refusal:
            self._send_json(Answer(refusal.status, {"error": str(refusal)}))
        except (BrokenPipeError, ConnectionError, TimeoutError):
            self.close_connection = True
        except Exception:  # nothing of what went wrong is told to whoever asked
            logging.getLogger(__name__).warning("request failed", exc_info=True)
            self._send_json(Answer(500, {"error": "this request failed; the server goes on"}))

    def _check_host(self) -> None:
        if self.headers.get("Host", "").lower() not in self.server.hosts:
            raise Refusal(403, "this server answers only requests to localhost")
        origin = self.headers.get("Origin")
        if origin is not None and urlsplit(origin).netloc.lower() not in self.server.hosts:
            raise Refusal(403, "this server answers only its own pages")

    def _get(self) -> None:
        parts = urlsplit(self.path)
        if parts.path == "/api" or parts.path.startswith("/api/"):
            return self._send_json(self.server.api.get(parts.path, parts.query))
        if parts.path in ("/report", "/report/features"):
            return self._redirect(f"{parts.path}/")
        file = self.server.folders.file(parts.path)
        if file is None:
            raise Refusal(404, "there is no such page")
        with file.open("rb") as opened:
            content = opened.read()
        return self._send(200, kind_of(file), content)

    def _post(self) -> None:
        body = self._body()
        if self.headers.get_content_type() != "application/json":
            raise Refusal(415, "expected JSON (Content-Type: application/json)")
        try:
            given = json.loads(body)
        except (ValueError, RecursionError):
            raise Refusal(400, "the request's body is no JSON") from None
        self._send_json(self.server.api.post(urlsplit(self.path).path, given))

    def _body(self) -> bytes:
        given = self.headers.get("Content-Length", "")
        if not (given.isascii() and given.isdecimal()):
            raise Refusal(411, "expected a Content-Length")
        size = int(given) if len(given) < 16 else DRAINED + 1
        if size > MOST_BYTES:
            self.rfile.read(min(size, DRAINED))
            raise Refusal(413, f"the request is longer than {MOST_BYTES:,} bytes")
        return self.rfile.read(size)

    def _redirect(self, place: str) -> None:
        self._send(301, "text/plain", b"", {"Location": place})

    def _send_json(self, answer: Answer) -> None:
        content = json.dumps(answer.content, allow_nan=False).encode()
        self._send(answer.status, "application/json", content)

    def _send(
        self, status: int, kind: str, content: bytes, more: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        headers = {
            **HEADERS,
            **(more or {}),
            "Content-Type": kind,
            "Content-Length": str(len(content)),
        }
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Refuse what the base class cannot read, without a word of the request in the answer."""
        self.close_connection = True
        self.command = getattr(self, "command", None) or "GET"
        self.request_version = "HTTP/1.0"
        self._send_json(Answer(int(code), {"error": "this request cannot be answered"}))

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing: what is asked holds texts of whoever asks."""
