"""A page in headless Chromium: what it loaded, what it drew, and a screenshot."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
KEPT = "FASTWAN_ARTEFACTS"
"""Environment variable: folder that keeps screenshots beyond the run."""

PROBE = """<script>
window.addEventListener("load", () => {
  const drawn = [...document.querySelectorAll("figure.chart > svg")].map(svg => {
    const box = svg.getBoundingClientRect();
    const marks = [...svg.querySelectorAll("path, use, line")].filter(mark => {
      const size = mark.getBoundingClientRect();
      return size.width > 0 || size.height > 0;
    });
    const colors = [...svg.querySelectorAll("path")].flatMap(mark => {
      const style = getComputedStyle(mark);
      return [style.fill, style.stroke];
    });
    return {width: box.width, height: box.height, marks: marks.length, colors: [...new Set(colors)],
      texts: svg.querySelectorAll("text").length};
  });
  const images = [...document.images].map(image => image.complete && image.naturalWidth > 0);
  const loaded = performance.getEntriesByType("resource").map(each => each.name)
    .filter(name => !name.startsWith("data:"));
  const style = getComputedStyle(document.body);
  const found = {drawn, images, loaded, paper: style.backgroundColor, ink: style.color,
    heading: document.querySelector("h1").textContent,
    overflow: document.documentElement.scrollWidth - window.innerWidth};
  const told = document.createElement("pre");
  told.id = "probe";
  told.textContent = JSON.stringify(found);
  document.body.append(told);
});
</script>"""
"""Tells what a browser made of the page; added to a copy of it."""


@dataclass(frozen=True)
class Seen:
    """What a browser made of a page.

    Attributes:
        probe: what `PROBE` tells.
        log: of the browser: errors of the page and of its resources.
    """

    probe: dict[str, Any]
    log: str
    screenshot: Path


def browser() -> str:
    """Path of Chromium; skips the test where there is none."""
    for name in NAMES:
        if found := shutil.which(name):
            return found
    pytest.skip("no Chromium: apt-get install chromium")


def see(page: Path, folder: Path, name: str, *, dark: bool) -> Seen:
    """Open a page without a network.

    Args:
        folder: for the browser's own files.
        name: of the screenshot.
    """
    copy = folder / f"{name}.html"
    copy.write_text(page.read_text().replace("</body>", f"{PROBE}</body>"))
    kept = Path(os.environ.get(KEPT, folder))
    kept.mkdir(parents=True, exist_ok=True)
    screenshot = kept / f"{name}-{'dark' if dark else 'light'}.png"
    dom = _run(folder, copy, dark, "--dump-dom")
    _run(folder, page, dark, f"--screenshot={screenshot}", "--window-size=1100,3600")
    told = re.search(r'<pre id="probe">(.*?)</pre>', dom.stdout, re.DOTALL)
    assert told is not None, dom.stderr[-2000:]
    text = told[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    return Seen(json.loads(text), dom.stderr, screenshot)


def _run(folder: Path, page: Path, dark: bool, *options: str) -> subprocess.CompletedProcess[str]:
    command = [
        browser(), "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
        "--disable-background-networking", "--disable-component-update", "--no-first-run",
        "--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr",
        f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=5000",
        f"--blink-settings=preferredColorScheme={0 if dark else 1}", *options, page.as_uri(),
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
