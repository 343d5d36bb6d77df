#!/usr/bin/env python3
"""A whole video of a bundle on a Hopper GPU, with Blackwell's numbers: evidence for benchmarks/.

    python3 scripts/emulated_video.py BUNDLE -o benchmarks/h100_video.json [--verify]
        [--beside OTHER]

Plays the bundle's own size as one CUDA graph several times and call by call once: the frames must
be the same, and nothing may be allocated meanwhile. With --verify, the checks of the full size that
`verify --device emulated` makes follow, without those that need no GPU. --beside is a bundle of the
same checkpoint with another --fusion: it is played likewise, and its frames are compared with those
of the first. Times are those of the emulation, not of a Blackwell GPU.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from figure_sources import sources_now, video_sources
from record_machine import emulating_machine

from fastwan.bundle import Bundle, open_bundle
from fastwan.files import sha256_file
from fastwan.plugins.loader import PluginLibrary
from fastwan.progress import Quiet
from fastwan.quality.emulated.run import check_full_size, cuda_setting, place_picture
from fastwan.quality.frames import psnr
from fastwan.quality.verify.steps import rms
from fastwan.quality.verify.subject import Subject
from fastwan.runtime.device.session import Session
from fastwan.runtime.emulated.platform import emulated_platform
from fastwan.runtime.model.noise import DEFAULT_SEED, draw, generator_for
from fastwan.runtime.model.samplers import schedule_of
from fastwan.shapes import shape_text

Record = dict[str, Any]
VIDEOS = 5


def prompt_embeds(bundle: Bundle, session: Session) -> np.ndarray:
    """Made-up embeddings of a short prompt."""
    shape = session.recording.prompt_embeds.shape
    values = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    values[:, 40:] = 0
    return np.asarray(values.numpy())


def play(bundle: Bundle) -> tuple[Record, np.ndarray]:
    """Videos as one launch each, and one call by call; and the frames."""
    platform = emulated_platform(bundle)
    before = platform.device.free_bytes()
    session = Session(platform, bundle, schedule_of(bundle.manifest.sampler_spec()))
    begin = time.monotonic()
    player = session.load()
    loaded = time.monotonic() - begin
    session.prepare(prompt_embeds(bundle, session))
    generator = generator_for(None, DEFAULT_SEED)
    noises = draw(session.recording.latents.shape, session.recording.schedule, generator)
    first = session.video(noises).copy()
    gc.collect()  # what the comparison of kernels at load held would be given back meanwhile
    free = platform.device.free_bytes()
    seconds, stages, hashes = [], [], []
    for _ in range(VIDEOS):
        begin = time.monotonic()
        frames = session.video(noises)
        seconds.append(time.monotonic() - begin)
        stages.append(session.milliseconds())
        hashes.append(hashlib.sha256(frames.tobytes()).hexdigest())
    for tensor, noise in zip(session.recording.noises, noises, strict=True):
        player.memory.write(tensor, noise)
    player.enqueue(session.recording.video)
    player.synchronize()
    assert session.recording.frames is not None
    eager = player.memory.view(session.recording.frames)
    record = {
        "gpu": platform.device.info.name,
        "frames": list(first.shape),
        "frames_sha256": hashes[0],
        "videos_identical": set(hashes) == {hashlib.sha256(first.tobytes()).hexdigest()},
        "call_by_call_identical": bool(np.array_equal(eager, first)),
        "one_graph": session.eager_reason == "",
        "bytes_taken_by_videos": free - platform.device.free_bytes(),
        "bytes_in_use": before - platform.device.free_bytes(),
        "bytes_planned": session.plan.total,
        "load_seconds": round(loaded, 2),
        "video_seconds": [round(each, 4) for each in seconds],
        "median_stage_ms": {
            name: round(float(np.median([each[name] for each in stages])), 3) for name in stages[0]
        },
        "mean_level": float(first.mean()),
    }
    record["passed"] = bool(
        record["videos_identical"]
        and record["call_by_call_identical"]
        and record["one_graph"]
        and record["bytes_taken_by_videos"] <= 0  # another process may have given some back
    )
    session.close()
    return record, first


def kept(output: Path, machine: Record) -> Record:
    """Items of an earlier record of the same GPU, driver and torch, whose sources are those of now.

    So one item can be made again without the others, which take minutes.
    """
    if not output.exists():
        return {}
    record = json.loads(output.read_text())

    def told(machine: Record) -> tuple[object, ...]:
        name, driver, *_ = machine["nvidia_smi"]["value"].split(", ")
        return name, driver, machine["torch"], machine["cuda"]

    if told(record["machine"]) != told(machine):
        return {}
    return {
        name: item
        for name, item in record["items"].items()
        if item["sources"] == sources_now(item["sources"])
    }


def made_from(bundle: Bundle) -> Record:
    """The sources that decide a bundle's frames."""
    return video_sources(bundle.manifest.fusion)


def video(bundle: Bundle) -> tuple[Record, np.ndarray]:
    """What was played, of what, and the frames."""
    manifest, library = bundle.manifest, PluginLibrary(emulated=True)
    model, (played, frames) = manifest.onnx.model, play(bundle)
    record = {
        "sources": made_from(bundle),
        "library": {"build": library.build_info, "sha256": sha256_file(library.path)},
        "bundle": {
            "model": model.name,
            "recipe": model.recipe,
            "attention": manifest.attention,
            "fusion": manifest.fusion,
            "size": shape_text(model.shape),
            "tokens": model.shape.num_tokens,
            "components": list(manifest.components),
            "sampler": manifest.sampler_spec().name,
            "dit_data_sha256": manifest.files["onnx/dit.data"].sha256,
            "weights": "synthetic",
        },
        **played,
    }
    return record, frames


def verified(bundle: Bundle, picture: Path | None) -> Record:
    """The checks of the full size."""
    begin = time.monotonic()
    result = check_full_size(
        Subject(bundle),
        cuda_setting(bundle),
        picture=place_picture(bundle, picture),
        progress=Quiet(),
    )
    return {
        "sources": made_from(bundle),
        "seconds": round(time.monotonic() - begin, 1),
        "checks": [check.model_dump() for check in result.checks],
        "fp4": None if result.fp4 is None else result.fp4.model_dump(),
        "unchecked": list(result.unchecked),
        "passed": result.fp4 is not None and all(check.passed for check in result.checks),
    }


def beside(frames: np.ndarray, other: np.ndarray, checks: Sequence[Record]) -> Record:
    """How far the frames of one bundle are from those of another one of the same checkpoint.

    Args:
        checks: those of the first bundle, of which `emulated_frames` has the limit; none where it
            was not verified.
    """
    apart = rms(frames, other)
    limits = [check["limit"] for check in checks if check["name"] == "emulated_frames"]
    return {
        "rms_levels": apart,
        "psnr": psnr(frames, other) if apart else None,
        "limit_levels": limits[0] if limits else None,
        "within": apart <= limits[0] if limits else None,
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--verify", action="store_true")
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--beside", type=Path)
    arguments = parser.parse_args()
    machine = emulating_machine()
    items = kept(arguments.output, machine)
    record: Record = {"machine": machine, "items": items}

    def write() -> None:
        arguments.output.write_text(json.dumps(record, indent=1) + "\n")

    bundle = open_bundle(arguments.bundle)
    items["video"], frames = video(bundle)
    write()
    if arguments.verify:
        items["verify"] = verified(bundle, arguments.picture)
        write()
    if arguments.beside:
        item, other = video(open_bundle(arguments.beside))
        apart = beside(frames, other, items["verify"]["checks"] if arguments.verify else ())
        same = items["video"]["bundle"]["dit_data_sha256"] == item["bundle"]["dit_data_sha256"]
        passed = item["passed"] and same and apart["within"] is not False
        items["video_beside"] = {**item, "to_the_first": apart, "passed": passed}
        write()
    return 0 if all(item["passed"] for item in items.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
