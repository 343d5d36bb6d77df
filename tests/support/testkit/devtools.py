"""A page in headless Chromium that stays open: scripts run in it, and pictures are taken."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from testkit.browser import browser

_SECONDS = 120


class Page:
    """A tab, driven through the browser's pipe of DevTools messages.

    Args:
        commands, answers: file descriptors; a message ends with a zero byte.
    """

    def __init__(self, commands: int, answers: int) -> None:
        self._commands = commands
        self._answers = answers
        self._rest = b""
        self._number = 0
        self._session = ""
        self.errors: list[str] = []
        """What the page threw and did not catch."""

    def open(self, url: str, width: int, height: int) -> None:
        """Open a tab of this size; returns when it has loaded."""
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        attached = self.send("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        self.send("Page.enable")
        self.send("Runtime.enable")
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=False,
        )  # fmt: skip
        self.send("Page.navigate", url=url)

    def run(self, script: str) -> Any:
        """The value of an expression, of a promise when it is kept.

        Raises:
            AssertionError: it throws.
        """
        answer = self.send(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, script: str) -> Any:
        """The value of an expression as soon as it is true."""
        end = time.monotonic() + _SECONDS
        while time.monotonic() < end:
            if value := self.run(script):
                return value
            time.sleep(0.1)
        raise AssertionError(f"{script} stays false; the page threw {self.errors}")

    def picture(self, path: Path, **clip: float) -> None:
        """A PNG of the tab, or of the part of it with this x, y, width and height."""
        part = {"clip": {**clip, "scale": 1}} if clip else {}
        answer = self.send("Page.captureScreenshot", format="png", **part)
        path.write_bytes(base64.b64decode(answer["data"]))

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of a command.

        Raises:
            AssertionError: the browser refuses it.
        """
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("method") == "Runtime.exceptionThrown":
                details = answer["params"]["exceptionDetails"]
                self.errors.append(details.get("exception", {}).get("description", str(details)))
            if answer.get("id") == self._number:
                assert "error" not in answer, answer["error"]
                result: dict[str, Any] = answer["result"]
                return result

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            read = os.read(self._answers, 1 << 20)
            assert read, "the browser has ended"
            self._rest += read
        message, _, self._rest = self._rest.partition(b"\0")
        parsed: dict[str, Any] = json.loads(message)
        return parsed


@contextmanager
def opened(url: str, folder: Path, *, width: int = 1600, height: int = 900) -> Iterator[Page]:
    """Chromium with one tab.

    Args:
        folder: for the browser's own files.
    """
    to_browser, commands = os.pipe()
    answers, from_browser = os.pipe()

    def place() -> None:
        # The browser reads its commands from descriptor 3 and answers on 4.
        spare = os.dup(from_browser)
        os.dup2(to_browser, 3)
        os.dup2(spare, 4)

    command = [
        browser(), "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
        "--disable-background-networking", "--disable-component-update", "--no-first-run",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--remote-debugging-pipe",
        f"--user-data-dir={folder / 'profile'}",
    ]  # fmt: skip
    process = subprocess.Popen(
        command,
        pass_fds=(3, 4),
        preexec_fn=place,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(to_browser)
    os.close(from_browser)
    try:
        page = Page(commands, answers)
        page.open(url, width, height)
        yield page
    finally:
        os.close(commands)
        os.close(answers)
        process.terminate()
        process.wait(30)
