"""A server on loopback that answers S3's reading requests from a folder, as fast as the disk allows.

Where a real S3 server written in Python is too slow to be the storage of a measurement: this one sends
files without copying them, holds all answers to a rate together, and counts bytes. It knows HEAD, GET
with ranges and ListObjectsV2, and looks at no signature. It is no S3: writing is refused.

    with file_server(folder, rate=200e6) as server, server.named_in(os.environ):
        raysae.open_store(server.uri("bucket/store"))  # folder/bucket/store
        print(server.bytes_of("bucket/store"))
"""

import hashlib
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

from counting_proxy import HOST, Throttle
from s3_server import S3Server

CHUNK = 256 * 1024
"""Bytes that are sent at once."""
LISTED = """<?xml version="1.0" encoding="UTF-8"?>
<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>{bucket}</Name>\
<Prefix>{prefix}</Prefix><KeyCount>{count}</KeyCount><MaxKeys>1000</MaxKeys>\
<IsTruncated>false</IsTruncated>{rows}</ListBucketResult>"""
CONTENT = """<Contents><Key>{key}</Key><LastModified>{at}</LastModified><ETag>"{tag}"</ETag>\
<Size>{size}</Size><StorageClass>STANDARD</StorageClass></Contents>"""
COMMON = "<CommonPrefixes><Prefix>{}</Prefix></CommonPrefixes>"


class FileServer(S3Server):
    """A running server: what ``S3Server`` says of reading and counting holds here, too."""

    def __init__(self, folder: Path, rate: float | None):
        self.folder, self.throttle = folder, Throttle(rate)
        self.pause = 0.0
        """Seconds before each answer."""
        self.sent_by: Counter[str] = Counter()
        self.lock = threading.Lock()
        self.http = ThreadingHTTPServer((HOST, 0), _handler_of(self))
        self.http.daemon_threads = True

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which pyarrow and fsspec find the server."""
        return {
            "AWS_ENDPOINT_URL": f"http://{HOST}:{self.http.server_address[1]}",
            "AWS_ACCESS_KEY_ID": "loopback-key",
            "AWS_SECRET_ACCESS_KEY": "loopback-secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    @property
    def bytes_sent(self) -> int:
        """Bytes of files that were sent since the start or ``reset``."""
        return self.bytes_of("")

    def bytes_of(self, path: str) -> int:
        """Bytes of the files below ``BUCKET/PATH`` that were sent."""
        with self.lock:
            return sum(count for name, count in self.sent_by.items() if name.startswith(path))

    def reset(self) -> None:
        """Begin all counts again."""
        with self.lock:
            self.sent_by.clear()

    def count(self, name: str, sent: int) -> None:
        """Note bytes of a file that were sent."""
        with self.lock:
            self.sent_by[name] += sent


def _handler_of(server: FileServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._file(body=False)

        def do_GET(self) -> None:
            query = parse_qs(urlsplit(self.path).query, keep_blank_values=True)
            if "list-type" in query:
                self._listing(query)
            else:
                self._file(body=True)

        def _name(self) -> str:
            return unquote(urlsplit(self.path).path).strip("/")

        def _file(self, body: bool) -> None:
            time.sleep(server.pause)
            name = self._name()
            file = server.folder / name
            if ".." in name.split("/") or not file.is_file():
                self._end(404, b"", {})
                return
            size = file.stat().st_size
            first, last, status = self._range(size)
            headers = {
                "ETag": f'"{_tag(file)}"', "Accept-Ranges": "bytes",
                "Last-Modified": formatdate(file.stat().st_mtime, usegmt=True),
                "Content-Type": "application/octet-stream",
            }  # fmt: skip
            if status == 206:
                headers["Content-Range"] = f"bytes {first}-{last}/{size}"
            self._head(status, last - first + 1, headers)
            if body:
                self._send(file, name, first, last + 1)

        def _range(self, size: int) -> tuple[int, int, int]:
            asked = self.headers.get("Range")
            if not asked:
                return 0, size - 1, 200
            start, _, end = asked.removeprefix("bytes=").partition("-")
            return int(start), min(int(end or size - 1), size - 1), 206

        def _send(self, file: Path, name: str, at: int, end: int) -> None:
            self.wfile.flush()
            with file.open("rb") as stream, suppress(OSError):  # the client may have left
                while at < end:
                    part = min(CHUNK, end - at)
                    server.throttle.wait(part)
                    sent = os.sendfile(self.connection.fileno(), stream.fileno(), at, part)
                    server.count(name, sent)
                    at += sent

        def _listing(self, query: dict[str, list[str]]) -> None:
            bucket, prefix = self._name(), query.get("prefix", [""])[0]
            delimiter = query.get("delimiter", [""])[0]
            rows, common = [], dict[str, None]()
            for file in sorted(
                path for path in (server.folder / bucket).rglob("*") if path.is_file()
            ):
                key = file.relative_to(server.folder / bucket).as_posix()
                rest = key.removeprefix(prefix)
                if not key.startswith(prefix):
                    continue
                if delimiter and delimiter in rest:
                    common[prefix + rest.split(delimiter)[0] + delimiter] = None
                else:
                    rows.append(_content(file, key))
            rows += [COMMON.format(escape(one)) for one in common]
            text = LISTED.format(
                bucket=escape(bucket), prefix=escape(prefix), count=len(rows), rows="".join(rows)
            )
            self._end(200, text.encode(), {"Content-Type": "application/xml"})

        def _head(self, status: int, length: int, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(length)}.items():
                self.send_header(name, value)
            self.end_headers()

        def _end(self, status: int, content: bytes, headers: dict[str, str]) -> None:
            self._head(status, len(content), headers)
            if self.command != "HEAD":
                self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    return Handler


def _content(file: Path, key: str) -> str:
    found = file.stat()
    at = datetime.fromtimestamp(int(found.st_mtime), UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
    return CONTENT.format(key=escape(key), at=at, tag=_tag(file), size=found.st_size)


def _tag(file: Path) -> str:
    found = file.stat()
    return hashlib.md5(f"{file}{found.st_size}{found.st_mtime_ns}".encode()).hexdigest()


@contextmanager
def file_server(folder: Path, rate: float | None = None) -> Iterator[FileServer]:
    """A server of ``folder`` that answers during the block, at ``rate`` bytes a second in all."""
    server = FileServer(folder, rate)
    thread = threading.Thread(target=server.http.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.http.shutdown()
        server.http.server_close()
        thread.join()
