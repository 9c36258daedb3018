"""The proxy that counts, throttles and fails, before a small HTTP server and before a real S3 server."""

import http.client
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from pyarrow import fs

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
import counting_proxy
import s3_server

sys.path.pop(0)

BODY = bytes(range(256)) * 4000


class Answers(BaseHTTPRequestHandler):
    """Answers with BODY, whole or in chunks, and says how many bytes it was sent."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.send_response(200)
        if "chunks" in self.path:
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for start in range(0, len(BODY), 100_000):
                part = BODY[start : start + 100_000]
                self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
            self.wfile.write(b"0\r\n\r\n")
            return
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(BODY)

    do_HEAD = do_GET

    def do_PUT(self):
        got = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok" if got == BODY else b"no")

    def log_message(self, *_):
        pass


@pytest.fixture
def web():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def proxy(web):
    with counting_proxy.CountingProxy(web) as proxy:
        yield proxy


def asked(proxy, path, method="GET", data=None):
    ask = urllib.request.Request(f"http://127.0.0.1:{proxy.port}{path}", data, method=method)
    with urllib.request.urlopen(ask, timeout=20) as answer:
        return answer.read()


def test_bodies_pass_unchanged_and_are_counted(proxy):
    assert asked(proxy, "/a") == asked(proxy, "/chunks") == BODY
    assert asked(proxy, "/a", "HEAD") == b""
    assert asked(proxy, "/b", "PUT", BODY) == b"ok"
    assert (proxy.sent, proxy.received) == (2 * len(BODY) + 2, len(BODY))
    assert proxy.sent_where("GET /a") == proxy.sent_where("/chunks") == len(BODY)
    assert proxy.requests["HEAD /a"] == 1
    proxy.reset()
    assert (proxy.sent, proxy.received, sum(proxy.requests.values())) == (0, 0, 0)


def test_one_connection_carries_many_requests(proxy):
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=20)
    headers = {"Expect": "100-continue"}
    for _ in range(2):
        connection.request("PUT", "/b", BODY, headers)
        assert connection.getresponse().read() == b"ok"
        connection.request("GET", "/a")
        assert connection.getresponse().read() == BODY
    connection.close()
    assert proxy.received == 2 * len(BODY)


def test_the_rate_is_held_for_all_together(web):
    with counting_proxy.CountingProxy(web, rate=10 * len(BODY)) as proxy:
        began = time.monotonic()
        threads = [threading.Thread(target=asked, args=(proxy, "/a")) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert time.monotonic() - began >= 0.4  # it may take longer, not less
        assert proxy.sent == 4 * len(BODY)


def test_requests_fail_when_told_to(proxy):
    proxy.fail("refuse", "GET /a", count=1)
    proxy.fail("cut", "/b", count=1)
    proxy.fail("delay", "/c", count=1, seconds=0.2)
    with pytest.raises((http.client.HTTPException, OSError)):
        asked(proxy, "/a")
    with pytest.raises(http.client.IncompleteRead) as cut:
        asked(proxy, "/b")
    assert len(cut.value.partial) == len(BODY) // 2
    began = time.monotonic()
    assert asked(proxy, "/c") == BODY
    assert time.monotonic() - began >= 0.2
    assert asked(proxy, "/a") == asked(proxy, "/b") == BODY
    proxy.fail("refuse")
    with pytest.raises((http.client.HTTPException, OSError)):
        asked(proxy, "/d")
    proxy.heal()
    assert asked(proxy, "/d") == BODY


def test_a_server_that_is_away_closes_the_connection(web):
    nobody = counting_proxy.CountingProxy(s3_server.free_port())
    with nobody as proxy, pytest.raises((http.client.HTTPException, OSError)):
        asked(proxy, "/a")


@pytest.mark.skipif(s3_server.missing() is not None, reason=str(s3_server.missing()))
def test_a_real_s3_server_keeps_objects_and_counts(monkeypatch):
    with s3_server.s3_server() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        server.make_bucket("bucket")
        filesystem, path = fs.FileSystem.from_uri(server.uri("bucket/store"))
        with filesystem.open_output_stream(f"{path}/part") as file:
            file.write(BODY)
        assert server.bytes_received >= len(BODY)
        with filesystem.open_input_file(f"{path}/part") as file:
            file.seek(1000)
            assert file.read(5000) == BODY[1000:6000]
        assert server.bytes_of("bucket/store") == 5000
        server.remove("bucket/store/part")
        assert filesystem.get_file_info(f"{path}/part").type == fs.FileType.NotFound
        process = server.process
    assert process.poll() is not None
