"""A headless Chromium, driven by its own protocol over pipes: no driver, port or network."""

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-extensions",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
    "--remote-debugging-pipe",
)  # fmt: skip
SECONDS = 60


class Page:
    """One tab. ``errors`` has what its scripts threw, and what the page was not allowed to do."""

    def __init__(self, read: int, write: int):
        self._read, self._write, self._number = read, write, 0
        self._buffer, self._session = b"", None
        self.errors: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while (found := self._next()).get("id") != self._number:
            self._note(found)
        assert "error" not in found, found
        return found["result"]

    def _next(self) -> dict[str, Any]:
        deadline = time.monotonic() + SECONDS
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(deadline - time.monotonic(), 0))
            assert ready, "chromium did not answer"
            part = os.read(self._read, 2**20)
            assert part, "chromium has ended"
            self._buffer += part
        first, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(first)

    def _note(self, event: dict[str, Any]) -> None:
        parameters = event.get("params", {})
        if event.get("method") == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(parameters["exceptionDetails"]))
        if event.get("method") == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            self.errors.append(json.dumps(parameters["entry"]))

    def open(self, url: str) -> None:
        """Go to an address, and wait until its scripts have run."""
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def value(self, expression: str) -> Any:
        """The value of an expression in the page."""
        found = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, expression: str) -> Any:
        """Wait until an expression is true; returns it."""
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            if found := self.value(expression):
                return found
            time.sleep(0.02)
        raise AssertionError(f"{expression} did not become true; {self.errors}")

    def text(self, selector: str) -> str:
        """The text of the first element that a selector finds."""
        return self.value(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''")

    def click(self, selector: str) -> None:
        """Click on the middle of an element, as a mouse does."""
        name = json.dumps(selector)
        self.value(f"document.querySelector({name}).scrollIntoView({{block: 'nearest'}})")
        x, y = self.value(
            f"(() => {{ const box = document.querySelector({name}).getBoundingClientRect();"
            "return [box.x + box.width / 2, box.y + box.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def type(self, selector: str, text: str) -> None:
        """Replace what a field holds, as a keyboard does."""
        self.value(f"document.querySelector({json.dumps(selector)}).select()")
        self.value(f"document.querySelector({json.dumps(selector)}).focus()")
        self.call("Input.insertText", text=text)

    def size(self, width: int, height: int, dark: bool = False) -> None:
        """Set the size of the window, and whether the reader prefers dark pages."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
            mobile=False,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def picture(self, file: Path) -> None:
        """Save what is seen as a PNG."""
        found = self.call("Page.captureScreenshot", format="png")
        file.write_bytes(base64.b64decode(found["data"]))


@contextmanager
def chromium(profile: Path) -> Iterator[Page]:
    """A page in a Chromium of its own, which ends with the block. Raises RuntimeError without one."""
    program = next((path for name in NAMES if (path := shutil.which(name))), None)
    if program is None:
        raise RuntimeError("no Chromium on this machine; root installs it by scripts/programs.sh")
    (child_read, write), (read, child_write) = os.pipe(), os.pipe()

    process = subprocess.Popen(
        ["bash", "-c", f'exec "$@" 3<&{child_read} 4>&{child_write}', "bash", program, *FLAGS,
         f"--user-data-dir={profile}"], pass_fds=(child_read, child_write), stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(child_read)
    os.close(child_write)
    try:
        page = Page(read, write)
        yield page
        page._session = None
        page.call("Browser.close")
    finally:
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(read)
        os.close(write)
