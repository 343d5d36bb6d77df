"""Prompts of ComfyUI's interface for `comfyui_gpu.py`: what is sent, and what came of it."""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from figure_sources import ROOT
from PIL import Image

import fastwan.comfyui

sys.path.insert(0, str(ROOT / "tests" / "support"))  # for `comfyui_gpu.py`, too
from testkit.comfyui_server import Server, message

Record = dict[str, Any]
Graph = dict[str, Any]
Hashes = dict[tuple[str, int], str]

LOAD, MAKE, FRAMES = "1", "2", "frames"
"""Nodes of `graph`."""
PROMPTS = tuple(f"A red fox in the snow, take {number}" for number in range(4))
SEEDS = (7, 8)

_WORKFLOW = "custom_node/example_workflows/api/fastwan-text-to-video.json"
_QUEUED = 30
"""Videos of the prompt that is stopped beside its first: one alone might end before."""
_PICTURES = (1, 4)
"""ComfyUI's kinds of binary messages that have a picture."""
_ENDS = ("execution_success", "execution_error", "execution_interrupted")


def graph(bundle: str, device: str, prompt: str = PROMPTS[0], seed: int = SEEDS[0]) -> Graph:
    """The shipped workflow, with its frames saved as PNG, too."""
    nodes: Graph = json.loads((Path(fastwan.comfyui.__file__).parent / _WORKFLOW).read_text())
    nodes[LOAD]["inputs"] |= {"bundle": bundle, "device": device}
    nodes[MAKE]["inputs"] |= {"prompt": prompt, "seed": seed}
    save = {"images": [MAKE, 0], "filename_prefix": FRAMES}
    nodes[FRAMES] = {"class_type": "SaveImage", "inputs": save}
    return nodes


def frames_sha256(server: Server, history: Mapping[str, Any], node: str = FRAMES) -> str:
    """Of the pixels that a node has saved, as `generate` reports it."""
    digest = sha256()
    for file in server.files(history, node):
        digest.update(np.asarray(Image.open(io.BytesIO(file)).convert("RGB")).tobytes())
    return digest.hexdigest()


def watched(server: Server, nodes: Graph, *, stop: bool = False) -> Record:
    """Play a prompt; its history, and the seconds that its parts took.

    Args:
        stop: press the button at its first step.
    """
    client, began, pictures = f"client-{time.monotonic_ns()}", {}, []
    with server.listening(client) as told:
        begin = time.monotonic()
        prompt = server.queue(nodes, client)
        asked = None
        for each in told:
            now, data = time.monotonic() - begin, each["data"]
            if each["type"] == "executing":
                began[data["node"]] = now
            elif each["type"] == "binary" and data in _PICTURES and list(began)[-1] == MAKE:
                pictures.append(now - began[MAKE])
            elif each["type"] == "progress" and stop and asked is None:
                server.post("interrupt", {})
                asked = now
            elif each["type"] in _ENDS:
                break
    order = [*began.values(), now]
    return {
        "history": server.wait(prompt),
        "node": order[list(began).index(MAKE) + 1] - began[MAKE] if MAKE in began else None,
        "prompt": now,
        "pictures": pictures,
        "stopped": None if asked is None else now - asked,
    }


def played(server: Server, nodes: Graph, expected: Hashes) -> Record:
    """`watched` of a prompt that succeeds, and whether its frames are those of `generate`.

    Args:
        expected: SHA-256 of the frames by prompt and seed.
    """
    made = watched(server, nodes)
    assert made["history"]["status"]["status_str"] == "success", server.log[-6000:]
    inputs = nodes[MAKE]["inputs"]
    right = expected[inputs["prompt"], inputs["seed"]]
    return made | {"equal": frames_sha256(server, made["history"]) == right}


def stopped(server: Server, bundle: str, device: str) -> Record:
    """A prompt of many videos that is stopped at its first step."""
    nodes = graph(bundle, device)
    for number in range(_QUEUED):
        make, save = json.loads(json.dumps([nodes[MAKE], nodes[FRAMES]]))
        make["inputs"]["seed"] = 1000 + number
        save["inputs"]["images"] = [f"make_{number}", 0]
        nodes |= {f"make_{number}": make, f"save_{number}": save}
    made = watched(server, nodes, stop=True)
    ended = message(made["history"], "execution_interrupted")
    return {
        "videos_queued": _QUEUED + 1,
        "videos_made": len(made["history"]["outputs"]),
        "node": ended["node_type"],
        "seconds_to_end": round(made["stopped"], 4),
    }


def refused(server: Server, bundle: str, device: str) -> str:
    """What a node says that is asked for another width."""
    nodes = graph(bundle, device)
    nodes[MAKE]["inputs"]["width"] = 16
    ended = message(watched(server, nodes)["history"], "execution_error")
    return f"{ended['node_type']}: {ended['exception_message'].strip()}"
