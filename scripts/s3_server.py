"""A real S3 server on loopback, behind a proxy that counts bytes, holds the rate and fails when told to.

    scripts/s3.sh  # once: makes .venv-s3
    python scripts/s3_server.py [--rate 200e6]   # serves until Ctrl-C, and prints its counts

In Python:

    with s3_server(rate=200e6) as server, server.named_in(os.environ):
        server.make_bucket("bucket")
        raysae.open_store(server.uri("bucket/store"))
        print(server.bytes_sent)
"""

import argparse
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path

from counting_proxy import HOST, CountingProxy, Failure

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = ROOT / ".venv-s3"
STARTS = 60.0
"""Seconds within which the server must answer."""
ENDS = 10.0
"""Seconds within which it must end, before it is killed."""
PROGRAM = """
import os, sys, threading
def leave():
    sys.stdin.read()  # ends with the process that started this one, however that ends
    os._exit(0)
threading.Thread(target=leave, daemon=True).start()
from moto.server import main
main(["-H", "127.0.0.1", "-p", sys.argv[1]])
"""


def missing() -> str | None:
    """Why no server can be started; None when one can."""
    if any(ENVIRONMENT.glob(".installed-*")):
        return None
    return "no environment with an S3 server: scripts/s3.sh makes it"


class S3Server:
    """A running server; ``proxy`` has all counts, by request."""

    def __init__(self, proxy: CountingProxy, process: subprocess.Popen[bytes]):
        self.proxy, self.process = proxy, process

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which pyarrow, fsspec and their kind find the server, and may use it."""
        return {
            "AWS_ENDPOINT_URL": f"http://{HOST}:{self.proxy.port}",
            "AWS_ACCESS_KEY_ID": "loopback-key",
            "AWS_SECRET_ACCESS_KEY": "loopback-secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    @contextmanager
    def named_in(self, environment: MutableMapping[str, str]) -> Iterator[None]:
        """Set these variables in ``environment``, such as os.environ, during the block."""
        before = {name: environment.get(name) for name in self.environment}
        environment.update(self.environment)
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    environment.pop(name, None)
                else:
                    environment[name] = value

    def uri(self, path: str) -> str:
        """The URI of ``BUCKET/PATH``; the server's address is in the environment."""
        return f"s3://{path}"

    def make_bucket(self, name: str) -> None:
        """Make a bucket, which everyone who has the key may use."""
        self._ask("PUT", name)

    def remove(self, path: str) -> None:
        """Lose the object ``BUCKET/PATH``."""
        self._ask("DELETE", path)

    def _ask(self, method: str, path: str) -> None:
        url = f"{self.environment['AWS_ENDPOINT_URL']}/{path}"
        ask = urllib.request.Request(url, method=method)
        urllib.request.urlopen(ask, timeout=STARTS).close()

    @property
    def bytes_sent(self) -> int:
        """Bytes of the objects and listings that were sent since the start or ``reset``."""
        return self.proxy.sent

    @property
    def bytes_received(self) -> int:
        """Bytes of the objects that were received."""
        return self.proxy.received

    def bytes_of(self, path: str) -> int:
        """Bytes of the objects under ``BUCKET/PATH`` that were sent."""
        return self.proxy.sent_where(f"GET /{path}")

    def reset(self) -> None:
        """Begin all counts again."""
        self.proxy.reset()

    def fail(
        self, how: Failure, where: str = "", count: float = float("inf"), seconds: float = 1.0
    ) -> None:
        """See ``CountingProxy.fail``."""
        self.proxy.fail(how, where, count, seconds)

    def heal(self) -> None:
        """Let no more requests fail."""
        self.proxy.heal()


@contextmanager
def s3_server(rate: float | None = None) -> Iterator[S3Server]:
    """A server that answers during the block, at ``rate`` bytes a second in all.

    What it holds is lost at the end. Raises RuntimeError when it cannot be started.
    """
    reason = missing()
    if reason is not None:
        raise RuntimeError(reason)
    port = free_port()
    python = str(ENVIRONMENT / "bin" / "python")
    process = subprocess.Popen(
        [python, "-c", PROGRAM, str(port)], stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_for(process, port)
        with CountingProxy(port, rate) as proxy:
            yield S3Server(proxy, process)
    finally:
        stop(process)


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.create_server((HOST, 0)) as taken:
        return int(taken.getsockname()[1])


def wait_for(process: subprocess.Popen[bytes], port: int) -> None:
    """Wait until the server answers. Raises RuntimeError when it ends or takes too long."""
    until = time.monotonic() + STARTS
    while time.monotonic() < until and process.poll() is None:
        try:
            socket.create_connection((HOST, port), 1).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise RuntimeError(f"the S3 server does not answer (exit code {process.poll()})")


def stop(process: subprocess.Popen[bytes]) -> None:
    """End the server's process, and wait for it."""
    if process.stdin is not None:
        process.stdin.close()
    try:
        process.wait(ENDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def main() -> int:
    """Serve until Ctrl-C; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rate", type=float, help="bytes a second in all; no limit otherwise")
    parser.add_argument("--bucket", default="bucket", help="a bucket to make (bucket)")
    args = parser.parse_args()
    if reason := missing():
        print(f"error: {reason}", file=sys.stderr)
        return 2
    with s3_server(args.rate) as server:
        server.make_bucket(args.bucket)
        for name, value in server.environment.items():
            print(f"export {name}={value}", flush=True)
        try:
            while True:
                time.sleep(5)
                print(f"sent {server.bytes_sent:,}, received {server.bytes_received:,}", flush=True)
        except KeyboardInterrupt:
            return 0


if __name__ == "__main__":
    sys.exit(main())
