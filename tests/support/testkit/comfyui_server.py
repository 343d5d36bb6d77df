"""A real ComfyUI, started without a page and asked over HTTP.

It is not part of the tests' environment: `ROOT` and `PYTHON` say where one is. This module itself
imports nothing of theirs: `scripts/comfyui_gpu.py` starts one on a GPU with it.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import fastwan

ROOT = "FASTWAN_COMFYUI"
"""Environment variable: folder of ComfyUI, the one with main.py."""
PYTHON = "FASTWAN_COMFYUI_PYTHON"
"""Environment variable: a Python that has its requirements, and onnxruntime, onnx and ml_dtypes."""

_SECONDS = 300
_SETTINGS = {
    "Comfy.TutorialCompleted": True,
    "Comfy.Minimap.Visible": False,
    "Comfy.Graph.CanvasInfo": False,
}
"""Of the page: no greeting in front of the graph."""

_NOTHING = {
    "image": {
        "class_type": "EmptyImage",
        "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 0},
    },
    "show": {"class_type": "PreviewImage", "inputs": {"images": ["image", 0]}},
}
"""A prompt of ComfyUI's own nodes."""

_LISTEN = """
import asyncio, json, sys
import aiohttp

async def listen():
    async with aiohttp.ClientSession() as session:
        async with session.ws_connect(sys.argv[1], max_msg_size=0) as socket:
            print('"open"', flush=True)
            async for message in socket:
                binary = message.type == aiohttp.WSMsgType.BINARY
                told = {"type": "binary", "data": message.data[3]} if binary else message.data
                print(json.dumps(told) if binary else told, flush=True)

asyncio.run(listen())
"""
"""Prints what the server tells a client; of binary messages the kind."""


class Server:
    """A running ComfyUI.

    Attributes:
        base: its folder of models, outputs and custom nodes.
        python: what runs it.
    """

    def __init__(self, base: Path, python: str, port: int) -> None:
        self.base = base
        self.python = python
        self.address = f"127.0.0.1:{port}"

    @property
    def log(self) -> str:
        """What it has written so far."""
        return (self.base / "log.txt").read_text(errors="replace")

    def get(self, path: str) -> bytes:
        with urllib.request.urlopen(f"http://{self.address}/{path}", timeout=60) as answer:
            content: bytes = answer.read()
        return content

    def post(self, path: str, data: Mapping[str, Any]) -> Any:
        """The answer, also where it is an error; None for an empty one."""
        request = urllib.request.Request(
            f"http://{self.address}/{path}",
            json.dumps(data).encode(),
            {"Content-Type": "application/json"},
        )
        try:
            content = urllib.request.urlopen(request, timeout=60).read()
        except urllib.error.HTTPError as error:
            content = error.read()
        return json.loads(content) if content else None

    def queue(self, graph: Mapping[str, Any], client: str = "tests") -> str:
        """Queue a prompt; its id."""
        answer = self.post("prompt", {"prompt": graph, "client_id": client})
        assert "prompt_id" in answer, answer
        return str(answer["prompt_id"])

    def wait(self, prompt: str) -> dict[str, Any]:
        """The history of a prompt, when it has ended."""
        end = time.monotonic() + _SECONDS
        while time.monotonic() < end:
            if found := json.loads(self.get(f"history/{prompt}")):
                history: dict[str, Any] = found[prompt]
                return history
            time.sleep(0.1)
        raise AssertionError(f"no end of {prompt}: {self.log[-3000:]}")

    def play(self, graph: Mapping[str, Any]) -> dict[str, Any]:
        """The history of a prompt that is queued and succeeds."""
        history = self.wait(self.queue(graph))
        assert history["status"]["status_str"] == "success", history["status"]["messages"]
        return history

    def free(self, *, results: bool) -> None:
        """Have it unload its models; `results`: and forget what its nodes have made.

        It looks for that between two prompts, perhaps after the one that was queued next.
        """
        self.post("free", {"unload_models": True, "free_memory": results})
        self.play(_NOTHING)

    def files(self, history: Mapping[str, Any], node: str) -> list[bytes]:
        """What a node has saved, over HTTP."""
        saved = history["outputs"][node]["images"]
        return [self.get(f"view?{urlencode(each)}") for each in saved]

    @contextmanager
    def listening(self, client: str) -> Iterator[Iterator[Any]]:
        """What it tells a client, message by message."""
        url = f"ws://{self.address}/ws?clientId={client}"
        with subprocess.Popen(
            [self.python, "-c", _LISTEN, url], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            messages = (json.loads(line) for line in process.stdout)
            assert next(messages) == "open"
            try:
                yield messages
            finally:
                process.terminate()


def message(history: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """The message of this kind in a history."""
    (found,) = [data for name, data in history["status"]["messages"] if name == kind]
    assert isinstance(found, dict)
    return found


@contextmanager
def running(
    base: Path, root: Path, python: str, options: Sequence[str] = ("--cpu",)
) -> Iterator[Server]:
    """A ComfyUI without a page, with the nodes of this project.

    Args:
        base: folder of models, and of custom nodes, in which it also writes.
        root: folder of ComfyUI's source, the one with main.py.
        python: a Python that has its requirements.
        options: further ones of its command line.
    """
    settings = base / "user" / "default" / "comfy.settings.json"
    settings.parent.mkdir(parents=True, exist_ok=True)
    settings.write_text(json.dumps(_SETTINGS))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    paths = [str(Path(fastwan.__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    command = [
        python, "main.py", "--port", str(port), "--base-directory", str(base),
        "--disable-api-nodes", "--database-url", "sqlite:///:memory:", "--preview-method", "auto",
        *options,
    ]  # fmt: skip
    with (base / "log.txt").open("w") as log:
        process = subprocess.Popen(command, cwd=root, env=environment, stdout=log, stderr=log)
    server = Server(base, python, port)
    try:
        end = time.monotonic() + _SECONDS
        while True:
            assert process.poll() is None, server.log[-6000:]
            try:
                server.get("system_stats")
                break
            except OSError:
                assert time.monotonic() < end, server.log[-6000:]
                time.sleep(0.3)
        yield server
    finally:
        process.terminate()
        process.wait(60)
