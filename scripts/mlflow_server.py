"""A real MLflow server on loopback, that can be killed and started again."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

HOST = "127.0.0.1"
STARTS = 600.0
"""Seconds for the server to answer."""


class MLflowServer:
    """A server with its artifacts in ``folder``, and its database unless it is given one."""

    def __init__(self, folder: Path, port: int, database: Path | None = None):
        self.folder, self.port = folder, port
        self.database = (database or folder / "server.db").resolve()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        """Its address."""
        return f"http://{HOST}:{self.port}"

    def start(self) -> "MLflowServer":
        """Start it, and wait until it answers. Raises RuntimeError when it does not."""
        self._process = subprocess.Popen(
            [
                sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(self.port),
                "--workers", "1", "--backend-store-uri", f"sqlite:///{self.database}",
                "--artifacts-destination", str(self.folder / "artifacts"),
            ],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        until = time.monotonic() + STARTS
        while time.monotonic() < until and self._process.poll() is None:
            with suppress(OSError):
                urllib.request.urlopen(f"{self.uri}/health", timeout=1).close()
                return self
            time.sleep(0.2)
        self.kill()
        raise RuntimeError("the MLflow server did not start")

    def kill(self) -> None:
        """Kill it in whatever it does; nothing where it does not run."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
