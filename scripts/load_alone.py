"""Makes a video and its file in this process for each line of stdin, and prints the seconds.

    python scripts/load_alone.py BUNDLE cpu

``generate`` counts the frames alone: the file is finished behind its last measurement.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from load_prompts import SEED, prompt

from fastwan.runtime.pipeline import FastWanPipeline
from fastwan.runtime.request import Request
from fastwan.runtime.video import open_output, parse_output


def main(bundle: str, device: str) -> None:
    with (
        FastWanPipeline.from_bundle(bundle, device) as pipeline,
        tempfile.TemporaryDirectory() as folder,
    ):
        place = parse_output(Path(folder) / "x.mp4")
        shape = pipeline.components.shape
        request = Request(prompt=prompt(0), seed=SEED)
        for _ in sys.stdin:
            begin = time.perf_counter()
            with open_output(place, height=shape.height, width=shape.width) as write:
                for frame in pipeline.frames(request):
                    write(frame)
            print(time.perf_counter() - begin, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
