"""Report pages in a real browser: nothing fails to load, every chart is drawn, light and dark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fastwan.quality.pages import html
from fastwan.quality.pages.document import Document
from testkit.browser import browser, see
from testkit.browser_tab import open_tab

PAPER = {False: "rgb(255, 255, 255)", True: "rgb(20, 23, 28)"}
SERIES = {False: "rgb(47, 109, 181)", True: "rgb(106, 169, 238)"}
CHARTS = {"gate": 5, "inspect": 6, "graph": 1, "compare": 8, "verify": 3, "verify-failed": 3}
IMAGES = {"compare": 9, "verify": 9}


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("name", CHARTS)
def test_a_page_opens_with_all_its_charts(
    documents: dict[str, tuple[Document, Any]], tmp_path: Path, name: str, dark: bool
) -> None:
    browser()
    document, _ = documents[name]
    page = tmp_path / "index.html"
    page.write_text(html.render(document))
    seen = see(page, tmp_path, name, dark=dark)
    probe = seen.probe
    assert probe["heading"] == document.verdict
    assert probe["loaded"] == []
    assert "CONSOLE" not in seen.log
    assert len(probe["images"]) == IMAGES.get(name, 0)
    assert all(probe["images"])
    assert len(probe["drawn"]) == CHARTS[name]
    for chart in probe["drawn"]:
        assert chart["width"] > 400
        assert chart["height"] > 60
        assert chart["marks"] > 5
        assert chart["texts"] > 3
    assert probe["paper"] == PAPER[dark]
    colors = {color for chart in probe["drawn"] for color in chart["colors"]}
    assert SERIES[dark] in colors
    assert SERIES[not dark] not in colors
    assert probe["overflow"] <= 0
    with Image.open(seen.screenshot) as image:
        colors = image.convert("RGB").getcolors(1 << 24)
    assert colors is not None
    assert len(colors) > 50


WIDTHS = """[...document.querySelectorAll("div.wide")].filter(each => each.clientWidth).map(
  each => each.scrollWidth - each.clientWidth)"""
"""By table that is shown, the pixels of it that lie outside the page."""


@pytest.mark.parametrize("name", ["gate", "inspect", "compare", "verify-failed"])
def test_no_table_is_cut_on_a_desk_or_on_a_phone(
    documents: dict[str, tuple[Document, Any]], tmp_path: Path, name: str
) -> None:
    """A verdict that has to be scrolled to is not seen; on a phone a row is a paragraph."""
    page = tmp_path / "index.html"
    page.write_text(html.render(documents[name][0]))
    with open_tab(tmp_path) as tab:
        tab.open(page.as_uri())
        for width, phone in ((1280, False), (390, True)):
            tab.size(width, 900, phone=phone)
            tab.js("document.querySelectorAll('details').forEach(each => { each.open = true })")
            outside = tab.js(WIDTHS)
            assert outside
            assert max(outside) <= 0, (width, outside)
            tab.screenshot(f"{name}-{width}")
        assert tab.problems == []


def test_a_page_that_asks_for_something_is_noticed(tmp_path: Path) -> None:
    browser()
    page = tmp_path / "index.html"
    document = Document("verify", "good", "fine", [])
    asks = '<img src="https://example.com/x.png"><script>console.error("broken")</script></body>'
    page.write_text(html.render(document).replace("</body>", asks))
    seen = see(page, tmp_path, "asks", dark=False)
    assert seen.probe["loaded"] == ["https://example.com/x.png"]
    assert seen.probe["images"] == [False]
    assert "CONSOLE" in seen.log
