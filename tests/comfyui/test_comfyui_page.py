"""The shipped workflows in ComfyUI's page, in a real browser: loaded, queued, watched."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

import fastwan.comfyui
from testkit.browser import KEPT, browser
from testkit.comfyui_server import Server
from testkit.devtools import Page, opened

WORKFLOWS = Path(fastwan.comfyui.__file__).parent / "custom_node" / "example_workflows"
NAMES = sorted(path.stem for path in WORKFLOWS.glob("*.json"))
READY = "!!(window.app?.graph && window.app.extensionManager && document.querySelector('canvas'))"


@pytest.fixture(scope="module")
def page(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """ComfyUI's page."""
    browser()
    folder = tmp_path_factory.mktemp("browser")
    with opened(f"http://{server.address}/", folder, width=1280, height=800) as tab:
        tab.wait(READY)
        tab.wait("Object.keys(LiteGraph.registered_node_types).includes('FastWanTextToVideo')")
        yield tab


@pytest.mark.parametrize("name", NAMES)
def test_a_workflow_of_the_templates_loads_and_plays(
    page: Page, server: Server, name: str, tmp_path: Path
) -> None:
    assert json.loads(server.get("api/workflow_templates"))["fastwan-export"].count(name) == 1
    page.run(
        f"fetch('/api/workflow_templates/fastwan-export/{name}.json').then(a => a.json())"
        f".then(graph => app.loadGraphData(graph, true, true, '{name}'))"
    )
    prompt = json.loads((WORKFLOWS / "api" / f"{name}.json").read_text())
    page.wait(f"app.graph._nodes.length === {len(prompt)}")
    exported = json.loads(page.run("app.graphToPrompt().then(made => JSON.stringify(made.output))"))
    for node in exported.values():
        del node["_meta"]
    assert exported == prompt
    page.run("app.extensionManager.command.execute('Comfy.Canvas.FitView')")
    before = len(json.loads(server.get("history")))
    page.run("app.queuePrompt(0)")
    page.wait(f"fetch('/history').then(a => a.json()).then(h => Object.keys(h).length > {before})")
    page.wait("[...document.querySelectorAll('video')].some(each => each.readyState >= 2)")
    assert page.errors == []
    kept = Path(os.environ.get(KEPT, tmp_path))
    kept.mkdir(parents=True, exist_ok=True)
    picture = kept / f"comfyui-{name}.png"
    page.picture(picture)
    with Image.open(picture) as image:
        colors = image.convert("RGB").getcolors(1 << 24)
    assert colors is not None
    assert len(colors) > 1000  # the video itself


def test_the_page_shows_what_a_bundle_makes_and_refuses(page: Page, server: Server) -> None:
    name = "fastwan-text-to-video"
    graph = json.loads((WORKFLOWS / f"{name}.json").read_text())
    page.run(f"app.loadGraphData({json.dumps(graph)}, true, true, '{name}')")
    page.wait("app.graph._nodes.length === 3")
    rows = page.run("app.graph.getNodeById(1).widgets[0].options.values")
    assert "fastwan-qad 160x96x9" in rows
    page.run("app.graph.getNodeById(1).widgets[0].value = 'fastwan-qad 832x480x81'")
    page.run("app.queuePrompt(0)")
    page.wait("document.body.innerText.includes(\"unknown shape '832x480x81': one of 160x96x9\")")
