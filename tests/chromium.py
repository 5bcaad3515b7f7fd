"""A headless Chromium that a test can drive, over the DevTools pipe: no further package is needed.

It has no network but this machine: other requests of a page fail and are recorded.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

BINARY = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
    "--autoplay-policy=no-user-gesture-required", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--remote-debugging-pipe",
]  # fmt: skip


class Chromium:
    """One browser with one page."""

    def __enter__(self) -> Chromium:
        self.profile = tempfile.mkdtemp()
        to_read, self.write = os.pipe()
        self.read, to_write = os.pipe()
        # Chromium reads commands from descriptor 3 and writes to 4; the shell moves the pipes there.
        command = f'exec "$@" 3<&{to_read} 4>&{to_write}'
        self.process = subprocess.Popen(
            ["bash", "-c", command, "bash", BINARY, *FLAGS, f"--user-data-dir={self.profile}", "about:blank"],
            pass_fds=(to_read, to_write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(to_write)
        self.buffer, self.number, self.session = b"", 0, None
        self.events: list[dict[str, Any]] = []
        try:
            page = next(t for t in self("Target.getTargets")["targetInfos"] if t["type"] == "page")
            self.session = self("Target.attachToTarget", targetId=page["targetId"], flatten=True)["sessionId"]
            for domain in ("Page", "Network", "Runtime", "Log"):
                self(f"{domain}.enable")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(10)
        os.close(self.write)
        os.close(self.read)
        shutil.rmtree(self.profile, ignore_errors=True)

    def __call__(self, method: str, **parameters: Any) -> dict[str, Any]:
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        os.write(
            self.write, json.dumps(message | ({"sessionId": self.session} if self.session else {})).encode() + b"\0"
        )
        while True:
            answer = self._receive(30)
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def _receive(self, seconds: float) -> dict[str, Any]:
        end = time.monotonic() + seconds
        while b"\0" not in self.buffer:
            if not select.select([self.read], [], [], max(0, end - time.monotonic()))[0]:
                raise TimeoutError("Chromium does not answer")
            data = os.read(self.read, 1 << 20)
            if not data:
                raise RuntimeError("Chromium has ended")
            self.buffer += data
        message, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(message)

    def open(self, page: Path | str, width: int, height: int = 900, dark: bool = False, mobile: bool = False) -> None:
        """Show a file, or the page at a URL, and wait until it is loaded."""
        url = page if isinstance(page, str) else page.resolve().as_uri()
        self("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)
        scheme = "dark" if dark else "light"
        self("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.events.clear()
        self("Page.navigate", url=url)
        self.wait(f"document.readyState == 'complete' && location.protocol == '{url.partition('//')[0]}'")

    def evaluate(self, script: str) -> Any:
        """Return the JSON value of an expression in the page."""
        answer = self("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, condition: str, seconds: float = 20) -> None:
        """Wait until the expression is true in the page. Raises TimeoutError."""
        end = time.monotonic() + seconds
        while not self.evaluate(condition):
            if time.monotonic() > end:
                raise TimeoutError(f"in vain: {condition}")
            time.sleep(0.05)

    def requests(self) -> list[str]:
        """Return the addresses that were requested since the page was opened."""
        return [e["params"]["request"]["url"] for e in self.events if e["method"] == "Network.requestWillBeSent"]

    def complaints(self) -> list[str]:
        """Return the exceptions of the page and the errors in its log."""
        thrown = [str(e["params"]) for e in self.events if e["method"] == "Runtime.exceptionThrown"]
        logged = [e["params"]["entry"] for e in self.events if e["method"] == "Log.entryAdded"]
        return thrown + [str(entry) for entry in logged if entry["level"] == "error"]

    def screenshot(self, path: Path) -> None:
        """Return the whole page as a PNG."""
        answer = self("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(answer["data"]))


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """Start a browser, or skip the test."""
    if BINARY is None:
        pytest.skip("Chromium is not installed (apt-get install chromium)")
    page = tmp_path_factory.mktemp("probe") / "index.html"
    page.write_text("<title>seen</title>")
    with contextlib.ExitStack() as stack:
        try:
            started = stack.enter_context(Chromium())
            started.open(page, 1280)
            seen = started.evaluate("document.title") == "seen"
        except (RuntimeError, TimeoutError, OSError):
            seen = False
        if not seen:  # packed as a snap, it may not read temporary files
            pytest.skip("Chromium is installed, but it does not start here or may not read temporary files")
        yield started
