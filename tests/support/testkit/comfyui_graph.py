"""The graph that most tests of the nodes run."""

from __future__ import annotations

from typing import Any

from testkit.fake_comfyui import Graph

PROMPT = "A red fox in the snow"


def graph(*, bundle: str = "some/tiny", device: str = "cpu", **given: Any) -> Graph:
    """Load and play; `given` are further inputs of the video."""
    inputs = {"bundle": ["load", 0], "prompt": PROMPT, "seed": 7, "sampler": "bundle's own"}
    return {
        "load": {"class_type": "FastWanLoadBundle", "inputs": {"bundle": bundle, "device": device}},
        "play": {"class_type": "FastWanTextToVideo", "inputs": {**inputs, **given}},
    }
