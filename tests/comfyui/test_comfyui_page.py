"""The shipped workflows in ComfyUI's page, in a real browser: loaded, queued, watched."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

import fastwan.comfyui
from testkit.browser_tab import Tab, open_tab
from testkit.comfyui_server import Server

WORKFLOWS = Path(fastwan.comfyui.__file__).parent / "custom_node" / "example_workflows"
NAMES = sorted(path.stem for path in WORKFLOWS.glob("*.json"))
READY = "!!(window.app?.graph && window.app.extensionManager && document.querySelector('canvas'))"


@pytest.fixture(scope="module")
def page(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    """ComfyUI's page."""
    with open_tab(tmp_path_factory.mktemp("browser"), wait=120) as tab:
        tab.size(1280, 800)
        tab.open(f"http://{server.address}/")
        tab.until(READY)
        tab.until("Object.keys(LiteGraph.registered_node_types).includes('FastWanTextToVideo')")
        yield tab


@pytest.mark.parametrize("name", NAMES)
def test_a_workflow_of_the_templates_loads_and_plays(page: Tab, server: Server, name: str) -> None:
    assert json.loads(server.get("api/workflow_templates"))["fastwan-export"].count(name) == 1
    page.js(
        f"fetch('/api/workflow_templates/fastwan-export/{name}.json').then(a => a.json())"
        f".then(graph => app.loadGraphData(graph, true, true, '{name}'))"
    )
    prompt = json.loads((WORKFLOWS / "api" / f"{name}.json").read_text())
    page.until(f"app.graph._nodes.length === {len(prompt)}")
    exported = json.loads(page.js("app.graphToPrompt().then(made => JSON.stringify(made.output))"))
    for node in exported.values():
        del node["_meta"]
    assert exported == prompt
    page.js("app.extensionManager.command.execute('Comfy.Canvas.FitView')")
    before = len(json.loads(server.get("history")))
    page.js("app.queuePrompt(0)")
    page.until(f"fetch('/history').then(a => a.json()).then(h => Object.keys(h).length > {before})")
    page.until("[...document.querySelectorAll('video')].some(each => each.readyState >= 2)")
    assert page.thrown == []
    with Image.open(page.screenshot(f"comfyui-{name}")) as image:
        colors = image.convert("RGB").getcolors(1 << 24)
    assert colors is not None
    assert len(colors) > 1000  # the video itself


def test_the_page_shows_what_a_bundle_makes_and_refuses(page: Tab, server: Server) -> None:
    name = "fastwan-text-to-video"
    graph = json.loads((WORKFLOWS / f"{name}.json").read_text())
    page.js(f"app.loadGraphData({json.dumps(graph)}, true, true, '{name}')")
    page.until("app.graph._nodes.length === 3")
    rows = page.js("app.graph.getNodeById(1).widgets[0].options.values")
    assert "fastwan-qad 160x96x9" in rows
    page.js("app.graph.getNodeById(1).widgets[0].value = 'fastwan-qad 832x480x81'")
    page.js("app.queuePrompt(0)")
    page.until("document.body.innerText.includes(\"unknown shape '832x480x81': one of 160x96x9\")")
