#!/usr/bin/env python3
"""The processes of serve_gpus.py: direct calls of a bundle, or a server over it.

    python3 scripts/served_bundle.py --device emulated direct BUNDLE REQUESTS
    python3 scripts/served_bundle.py --device emulated serve BUNDLE FOLDER

Prints a line of JSON for each video, or one with the port.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from fastwan.runtime.model.executor import Array
from fastwan.runtime.pipeline import FastWanPipeline
from fastwan.runtime.request import Request
from fastwan.runtime.timings import Timings
from fastwan.runtime.video import Output, WriteFrame
from fastwan.serve import frame_file
from fastwan.serve.app import create_app
from fastwan.serve.bundle_player import BundlePlayer
from fastwan.serve.jobs import Asked
from fastwan.serve.offer import resolve
from fastwan.serve.player import Watch
from fastwan.serve.server import listen, serve
from fastwan.serve.settings import Settings
from fastwan.serve.wire import CreateVideo

_LONGEST = 4096
_TOKENS = 40


@dataclass
class MadeUpText:
    """Stands in for a text encoder: every prompt has embeddings of its own, [1, L, C] fp32."""

    shape: tuple[int, ...]
    dtype = np.dtype(np.float32)

    def token_ids(self, _prompt: str) -> list[int]:
        return [0] * _TOKENS

    def encode(self, prompt: str) -> Array:
        generator = np.random.default_rng(list(sha256(prompt.encode()).digest()))
        values = generator.standard_normal(self.shape, np.float32)
        values[:, _TOKENS:] = 0
        return values


@contextmanager
def digests(output: Output, *, height: int, width: int) -> Iterator[WriteFrame]:
    """Stands in for the encoder: a SHA-256 of each frame, which is computed as an encoder does its
    work, beside the interpreter and with few bytes to show for it."""
    with output.path.open("wb") as file:
        yield lambda frame: file.write(sha256(np.ascontiguousarray(frame).data).digest())


def open_pipeline(bundle: Path, device: str) -> FastWanPipeline:
    """A bundle, whatever it lacks."""
    pipeline = FastWanPipeline.from_bundle(bundle, device)
    if "text_encoder" not in pipeline.bundle.manifest.onnx.graphs:
        text = MadeUpText(pipeline.components.text_shape)
        vars(pipeline.components)["text_encoder"] = text  # in the place of the cached property
    return pipeline


def known(pipeline: FastWanPipeline, request: dict[str, Any], *, watched: bool) -> Timings:
    """Timings of a video whose prompt was the latest one, so that all of it is kept.

    Args:
        watched: somebody looks after each step, as a server does: on a GPU each step is a graph.
            Otherwise one graph is the whole video.
    """
    timings = Timings()
    on_step = (lambda *_: None) if watched else None
    asked = Request(**request, output_type="uint8", on_step=on_step, on_frames=lambda _: None)
    with timings.measure("total"):
        pipeline.stream(asked, timings=timings)
    return timings


def alone(player: BundlePlayer, request: dict[str, Any]) -> Timings:
    """Timings of a video by a direct call whose frames go nowhere."""
    watch = Watch(on_step=lambda _: None, on_frame=lambda _: None, cancelled=lambda: False)
    return player.play(_asked(player, request), watch)


def written(player: BundlePlayer, request: dict[str, Any], path: Path) -> dict[str, Any]:
    """Seconds and content of a video by a direct call, each frame written when it is there."""
    asked = _asked(player, request)
    begin = time.monotonic()
    with frame_file.open_output(
        Output("mp4", path), height=asked.height, width=asked.width
    ) as write:
        player.play(asked, Watch(on_step=lambda _: None, on_frame=write, cancelled=lambda: False))
    seconds = time.monotonic() - begin
    return {"seconds": seconds, "sha256": sha256(path.read_bytes()).hexdigest()}


def _asked(player: BundlePlayer, request: dict[str, Any]) -> Asked:
    return resolve(player.offer, CreateVideo(**request), longest_prompt=_LONGEST)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", required=True)
    parser.add_argument("how", choices=("direct", "serve"))
    parser.add_argument("bundle", type=Path)
    parser.add_argument("told", help="requests as JSON, or the server's folder")
    arguments = parser.parse_args()
    content = "mp4"
    if find_spec("av") is None:
        content, frame_file.open_output = "SHA-256 of each frame", digests
    if arguments.how == "direct":
        pipeline = open_pipeline(arguments.bundle, arguments.device)
        player = BundlePlayer(pipeline)
        player.warm_up()
        with TemporaryDirectory() as folder:
            for request in json.loads(arguments.told):
                other = {**request, "prompt": f"{request['prompt']}, unwritten"}
                made = {"content": content, "timings": alone(player, other)}
                made |= written(player, request, Path(folder) / "video.mp4")
                for name, watched in (("a_graph_a_step", True), ("one_graph", False)):
                    made[name] = known(pipeline, request, watched=watched)
                print(json.dumps(made), flush=True)
        player.close()
        return
    settings = Settings(folder=Path(arguments.told), port=0)
    with listen(settings) as listening:
        player = BundlePlayer(open_pipeline(arguments.bundle, arguments.device))
        print(json.dumps({"port": listening.getsockname()[1]}), flush=True)
        serve(create_app(settings, player), listening)


if __name__ == "__main__":
    main()
