"""A page in headless Chromium, driven as a user would: keys, text, sizes, reloads, screenshots.

Chromium is spoken to by its own protocol over two pipes; nothing but Chromium is needed.
"""

from __future__ import annotations

import base64
import json
import os
import select
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from testkit.browser import KEPT, browser

WAIT = 30.0
"""Seconds after which a test gives up, unless it says otherwise."""

_KEYS = {
    "Enter": ("Enter", 13, "\r"), "Escape": ("Escape", 27, ""), "Tab": ("Tab", 9, ""),
    " ": ("Space", 32, " "),
}  # fmt: skip
_CTRL = 2


class Tab:
    """One page.

    Attributes:
        problems: what the page or the browser complained of since the last `open`.
        thrown: of these, what the page threw and did not catch.
        requested: addresses that were asked for since then.
    """

    def __init__(self, incoming: int, outgoing: int, folder: Path, wait: float) -> None:
        self._incoming, self._outgoing = incoming, outgoing
        self._wait = wait
        self._folder = Path(os.environ.get(KEPT, folder))
        self._folder.mkdir(parents=True, exist_ok=True)
        self._data = b""
        self._number = 0
        self._session: str | None = None
        self.problems: list[str] = []
        self.thrown: list[str] = []
        self.requested: list[str] = []
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        attached = self._call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")
        self.size(1280, 900)

    def _call(self, method: str, **arguments: Any) -> Any:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": arguments}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._outgoing, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + self._wait
        while (answer := self._read(end)).get("id") != self._number:
            self._note(answer)
        assert "error" not in answer, f"{method}: {answer['error']}"
        return answer["result"]

    def _read(self, end: float) -> Any:
        while b"\0" not in self._data:
            ready, _, _ = select.select([self._incoming], [], [], max(0.0, end - time.monotonic()))
            assert ready, "Chromium does not answer"
            data = os.read(self._incoming, 1 << 20)
            assert data, "Chromium has gone"
            self._data += data
        message, _, self._data = self._data.partition(b"\0")
        return json.loads(message)

    def _note(self, event: Any) -> None:
        match event.get("method"), event.get("params"):
            case "Log.entryAdded", {"entry": entry} if entry["level"] == "error":
                self.problems.append(f"{entry['text']} {entry.get('url', '')}".strip())
            case "Runtime.exceptionThrown", {"exceptionDetails": details}:
                thrown = details.get("exception", {}).get("description", details["text"])
                self.problems.append(str(thrown))
                self.thrown.append(str(thrown))
            case "Network.requestWillBeSent", {"request": request}:
                self.requested.append(request["url"])

    def open(self, address: str) -> None:
        """Go to an address, and forget what was noted before."""
        self._call("Page.navigate", url="about:blank")
        self.problems.clear()
        self.thrown.clear()
        self.requested.clear()
        self._call("Page.navigate", url=address)
        self.until("document.readyState === 'complete'")

    def reload(self) -> None:
        """Load the same address again."""
        self.js("window.loadedBefore = true")
        self._call("Page.reload")
        self.until("document.readyState === 'complete' && !window.loadedBefore")

    def js(self, expression: str) -> Any:
        """Value of an expression in the page, a promise's included."""
        result = self._call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def until(self, expression: str) -> Any:
        """Wait until an expression is true; its value."""
        end = time.monotonic() + self._wait
        while time.monotonic() < end:
            if value := self.js(expression):
                return value
            time.sleep(0.02)
        shown = self.js("document.body.innerText")
        raise AssertionError(f"not so: {expression}\n{shown}\n{self.problems}")

    def text(self, selector: str) -> str:
        """What an element shows."""
        return str(self.js(f"document.querySelector({json.dumps(selector)}).innerText"))

    def type(self, text: str) -> None:
        """Type into what has the focus."""
        self._call("Input.insertText", text=text)

    def key(self, key: str, *, ctrl: bool = False) -> None:
        """Press a key and let it go."""
        code, number, text = _KEYS[key]
        modifiers = _CTRL if ctrl else 0
        pressed = {"key": key, "code": code, "windowsVirtualKeyCode": number}
        typed = {"text": text} if text and not ctrl else {}
        self._call(
            "Input.dispatchKeyEvent", type="keyDown", modifiers=modifiers, **pressed, **typed
        )
        self._call("Input.dispatchKeyEvent", type="keyUp", modifiers=modifiers, **pressed)

    def size(self, width: int, height: int, *, phone: bool = False, dark: bool = False) -> None:
        """Size of the window in CSS pixels; a phone has a touch screen and twice the pixels."""
        self._call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, mobile=phone,
            deviceScaleFactor=2 if phone else 1,
        )  # fmt: skip
        self._call("Emulation.setTouchEmulationEnabled", enabled=phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])

    def screenshot(self, name: str) -> Path:
        """A picture of the whole page, kept as an artefact."""
        shot = self._call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path = self._folder / f"{name}.png"
        path.write_bytes(base64.b64decode(shot["data"]))
        return path


@contextmanager
def open_tab(folder: Path, wait: float = WAIT) -> Iterator[Tab]:
    """A browser of its own with one page; skips the test where there is no Chromium.

    Args:
        folder: for the browser's own files.
        wait: seconds after which a test gives up.
    """
    theirs_in, ours_out = os.pipe()
    ours_in, theirs_out = os.pipe()
    command = [
        browser(), "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
        "--disable-background-networking", "--disable-component-update", "--no-first-run",
        "--disable-dev-shm-usage", "--autoplay-policy=no-user-gesture-required",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        f"--user-data-dir={folder / 'profile'}", "--remote-debugging-pipe", "about:blank",
    ]  # fmt: skip
    # Chromium reads from descriptor 3 and writes to 4.
    shell = ["bash", "-c", f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}', "bash", *command]
    process = subprocess.Popen(
        shell,
        pass_fds=(theirs_in, theirs_out),
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    os.close(theirs_in)
    os.close(theirs_out)
    try:
        yield Tab(ours_in, ours_out, folder, wait)
    finally:
        process.terminate()
        process.wait(timeout=WAIT)
        os.close(ours_in)
        os.close(ours_out)
