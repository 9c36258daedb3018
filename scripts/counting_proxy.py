"""A proxy on loopback in front of an HTTP server: counts bytes, holds the rate, and fails when told to.

    with CountingProxy(server_port, rate=200e6) as proxy:
        ...  # clients talk to 127.0.0.1:proxy.port
        proxy.fail("cut", "GET /bucket/store/part-00001", count=1)
        print(proxy.sent, proxy.received)

Messages are passed on as they are. Counted are the bytes of their bodies, by request.
"""

import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Literal

CHUNK = 64 * 1024
"""Bytes passed on at once."""
LONGEST_HEAD = 64 * 1024
PATIENCE = 120.0
"""Seconds without a byte after which a connection is closed."""
ENDS = 10.0
"""Seconds to wait for each thread at the end."""
NO_BODY = (204, 304)
HOST = "127.0.0.1"

Failure = Literal["refuse", "delay", "cut"]


@dataclass
class Fault:
    """What happens to requests whose ``METHOD /path`` holds ``where``."""

    how: Failure
    where: str
    left: float
    """To how many of them."""
    seconds: float
    """How long ``delay`` takes."""


class Throttle:
    """Holds all that pass it to ``rate`` bytes a second together; None holds nobody."""

    def __init__(self, rate: float | None):
        self.rate = rate
        self._lock, self._free = threading.Lock(), 0.0

    def wait(self, count: int) -> None:
        """Wait until ``count`` bytes may pass."""
        if self.rate is None:
            return
        with self._lock:
            self._free = max(self._free, time.monotonic()) + count / self.rate
            seconds = self._free - time.monotonic()
        time.sleep(max(seconds, 0.0))


class CountingProxy:
    """A proxy in front of ``127.0.0.1:target``; it runs in threads inside a ``with`` block.

    ``rate`` limits the bytes of all answers together, in bytes a second. Raises OSError when no port
    is free.
    """

    def __init__(self, target: int, rate: float | None = None):
        self.target, self.throttle = target, Throttle(rate)
        self.sent_by: Counter[str] = Counter()
        """Bytes of the answers' bodies, by ``METHOD /path`` of the request."""
        self.received_by: Counter[str] = Counter()
        """Bytes of the requests' bodies, likewise."""
        self.requests: Counter[str] = Counter()
        """Numbers of requests, likewise."""
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._threads: set[threading.Thread] = set()
        self._listener = socket.create_server((HOST, 0))
        self.port = int(self._listener.getsockname()[1])
        self._accepting = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> "CountingProxy":
        self._accepting.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._lock:
            ending = {self._listener, *self._open}
        close(ending)
        for thread in (self._accepting, *tuple(self._threads)):
            thread.join(ENDS)

    @property
    def sent(self) -> int:
        """Bytes of the bodies of all answers."""
        return self.sent_where("")

    @property
    def received(self) -> int:
        """Bytes of the bodies of all requests."""
        with self._lock:
            return sum(self.received_by.values())

    def sent_where(self, where: str) -> int:
        """Bytes of the bodies of answers to requests whose ``METHOD /path`` holds ``where``."""
        with self._lock:
            return sum(count for request, count in self.sent_by.items() if where in request)

    def reset(self) -> None:
        """Begin all counts again."""
        with self._lock:
            for counts in (self.sent_by, self.received_by, self.requests):
                counts.clear()

    def fail(
        self, how: Failure, where: str = "", count: float = float("inf"), seconds: float = 1.0
    ) -> None:
        """Let the next ``count`` requests whose ``METHOD /path`` holds ``where`` fail.

        ``refuse`` closes the connection without an answer, ``delay`` lets the answer wait ``seconds``,
        and ``cut`` closes the connection in the middle of the answer's body.
        """
        with self._lock:
            self._faults.append(Fault(how, where, count, seconds))

    def heal(self) -> None:
        """Let no more requests fail."""
        with self._lock:
            self._faults.clear()

    def _fault(self, request: str) -> Fault | None:
        with self._lock:
            self.requests[request] += 1
            found = next((f for f in self._faults if f.left >= 1 and f.where in request), None)
            if found is not None:
                found.left -= 1
            return found

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # closed
                return
            thread = threading.Thread(target=self._serve, args=(client,), daemon=True)
            with self._lock:
                self._threads.add(thread)
            thread.start()

    def _serve(self, client: socket.socket) -> None:
        """Pass on one connection's requests and their answers, one after the other."""
        ends = {client}
        # an end closed, or it is no HTTP: then both ends are closed
        with suppress(OSError, ValueError):
            server = socket.create_connection((HOST, self.target), PATIENCE)
            ends.add(server)
            client.settimeout(PATIENCE)
            with self._lock:
                self._open |= ends
            here, there = Messages(client), Messages(server)
            while self._exchange(here, there):
                pass
        close(ends)
        with self._lock:
            self._open -= ends
            self._threads.discard(threading.current_thread())

    def _exchange(self, client: "Messages", server: "Messages") -> bool:
        """Pass on a request and its answer; returns whether the connection goes on."""
        head = client.head()
        if head is None:
            return False
        request = " ".join(head.start.split()[:2])
        fault = self._fault(request)
        if fault is not None and fault.how == "refuse":
            return False
        server.socket.sendall(head.raw)
        answer = None
        if head.value("expect") == "100-continue":
            answer = server.awaited_head()
            if answer.status == 100:
                client.socket.sendall(answer.raw)
                answer = None
        if answer is None:
            client.pass_body(server, head.body_length, self._counted(self.received_by, request))
            answer = server.awaited_head()
        if fault is not None and fault.how == "delay":
            time.sleep(fault.seconds)
        return self._answer(client, server, request, answer, fault)

    def _answer(
        self,
        client: "Messages",
        server: "Messages",
        request: str,
        answer: "Head",
        fault: Fault | None,
    ) -> bool:
        length = answer.body_length
        if request.startswith("HEAD ") or answer.status in NO_BODY:
            length = 0
        elif length == 0 and answer.value("content-length") is None:
            length = None  # until the server closes
        client.socket.sendall(answer.raw)
        count = self._counted(self.sent_by, request)
        if fault is not None and fault.how == "cut":
            server.pass_body(client, (length or 2 * CHUNK) // 2, count)
            return False
        server.pass_body(client, length, count, self.throttle.wait)
        return length is not None and answer.value("connection") != "close"

    def _counted(self, counts: Counter[str], request: str) -> Callable[[int], None]:
        def count(sent: int) -> None:
            with self._lock:
                counts[request] += sent

        return count


def close(connections: set[socket.socket]) -> None:
    """Close them, and wake the threads that wait in them."""
    for connection in connections:
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
        connection.close()


CHUNKED = -1
"""In place of a body's length: it comes in chunks, each with its own."""


@dataclass(frozen=True)
class Head:
    """The start line and the headers of a request or an answer."""

    raw: bytes

    @property
    def start(self) -> str:
        """The first line."""
        return self.raw.split(b"\r\n", 1)[0].decode("latin-1")

    @property
    def status(self) -> int:
        """The number of an answer."""
        return int(self.start.split()[1])

    def value(self, name: str) -> str | None:
        """A header's value in small letters; None when it is not there."""
        for line in self.raw.decode("latin-1").split("\r\n")[1:]:
            key, _, value = line.partition(":")
            if key.strip().lower() == name:
                return value.strip().lower()
        return None

    @property
    def body_length(self) -> int:
        """Bytes of the body, or CHUNKED; 0 when the head says nothing."""
        if self.value("transfer-encoding") == "chunked":
            return CHUNKED
        return int(self.value("content-length") or 0)


class Messages:
    """One end of a connection, read message by message."""

    def __init__(self, connection: socket.socket):
        self.socket = connection
        self._stream = connection.makefile("rb")

    def head(self) -> Head | None:
        """The next message's head; None when the connection has ended. Raises ValueError otherwise."""
        lines: list[bytes] = []
        size = 0
        while not lines or lines[-1] != b"\r\n":
            line = self._stream.readline(LONGEST_HEAD)
            if not line and not lines:
                return None
            size += len(line)
            if not line.endswith(b"\r\n") or size > LONGEST_HEAD:
                raise ValueError("no HTTP")
            lines.append(line)
        return Head(b"".join(lines))

    def awaited_head(self) -> Head:
        """The head of the answer. Raises ValueError when the connection ended before."""
        head = self.head()
        if head is None:
            raise ValueError("no answer")
        return head

    def pass_body(
        self,
        to: "Messages",
        length: int | None,
        count: Callable[[int], None],
        wait: Callable[[int], None] = lambda _count: None,
    ) -> None:
        """Send a body of ``length`` bytes on; None means up to the connection's end."""
        if length == CHUNKED:
            self._pass_chunks(to, count, wait)
            return
        left = float("inf") if length is None else length
        while left:
            data = self._stream.read1(int(min(left, CHUNK)))
            if not data:
                if length is None:
                    return
                raise ValueError("the body ended too early")
            wait(len(data))
            count(len(data))  # before it is sent: who has got it finds it counted
            to.socket.sendall(data)
            left -= len(data)

    def _pass_chunks(
        self, to: "Messages", count: Callable[[int], None], wait: Callable[[int], None]
    ) -> None:
        while True:
            line = self._stream.readline(LONGEST_HEAD)
            to.socket.sendall(line)
            size = int(line.split(b";")[0], 16)
            if not size:
                break
            self.pass_body(to, size, count, wait)
            to.socket.sendall(self._stream.readline(LONGEST_HEAD))
        while line not in (b"\r\n", b""):  # trailers
            line = self._stream.readline(LONGEST_HEAD)
            to.socket.sendall(line)
