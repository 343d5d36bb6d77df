"""Videos of an accuracy set on the CPU reference, and what decides their numbers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial

import numpy as np

from fastwan.quality.goldens.record import Video
from fastwan.quality.verify.components import Runtime
from fastwan.quality.verify.steps import checked_sampler
from fastwan.quality.verify.subject import Subject
from fastwan.runtime.cpu.components import CpuComponents
from fastwan.runtime.model.executor import Array
from fastwan.runtime.model.loop import combine, denoise, guided
from fastwan.runtime.model.noise import draw, generator_for
from fastwan.runtime.model.samplers import schedule_of
from fastwan.shapes import shape_text

Arrays = dict[str, Array]
"""``text`` and, of a guided sampler, ``negative``; ``step_0`` ..; ``frames``; in the order in which
a video goes through them. Latents are fp32 [1, C, T, h, w], frames uint8 [F, H, W, 3]."""


def play(subject: Subject, videos: Sequence[Video]) -> Iterator[Arrays]:
    """What the CPU reference makes of each video, at the shape where ``verify`` runs graphs.

    Without a text encoder the embeddings are drawn by the seed; without a decoder there are no
    frames.

    Raises:
        BadInput, VerificationFailed: a graph that cannot be played.
    """
    runtime = Runtime(subject)
    dit = runtime.dit(lambda: subject.lowered.executors(subject.lowered.parts))
    schedule = schedule_of(checked_sampler(subject))
    shape = subject.check_shape.latents(subject.dit_config.in_channels)
    with runtime.decoder() as decoder:
        for video in videos:
            texts = runtime.embeds_of(video.prompt, video.seed)
            made: Arrays = dict(zip(("text", "negative"), texts, strict=False))

            def keep(step: int, _timestep: int, latents: Array, made: Arrays = made) -> None:
                made[f"step_{step}"] = latents

            noises = draw(shape, schedule, generator_for(None, video.seed))
            runs = [partial(dit.velocity, context=dit.prepare(text)) for text in texts]
            velocity = guided(runs, schedule.guidance, combine=combine)
            clean = denoise(
                velocity, noises[0], schedule, noises[1:], combine=combine, on_step=keep
            )
            if decoder is not None:
                made["frames"] = np.stack([frame.copy() for frame in decoder.frames(clean)])
            yield made


def made_of(subject: Subject) -> dict[str, str]:
    """What decides the numbers of `play` but for the graphs and the machine, by name."""
    manifest = subject.manifest
    model = manifest.onnx.model
    extra = {
        name: manifest.files[f"onnx/{name}"].sha256
        for name in manifest.onnx.extra_files
        if f"onnx/{name}" in manifest.files
    }
    return {
        "model": model.name,
        "recipe": model.recipe,
        "attention": subject.attention.name,
        "shape": shape_text(subject.check_shape),
        "sampler": json.dumps(asdict(checked_sampler(subject)), sort_keys=True),
        "components": ", ".join(sorted(subject.present)),
        "weights": _digest(dict(manifest.onnx.tensor_digests)),
        "tokenizer": _digest(extra),
    }


def graphs_of(subject: Subject) -> dict[str, str]:
    """SHA-256 of the files of the graphs, those that are lowered for the CPU where there are."""
    return {
        name: subject.manifest.files[f"onnx/{graph.cpu_file or graph.file}"].sha256
        for name, graph in subject.graphs.items()
    }


def runs_on(subject: Subject) -> str:
    """Processor and library."""
    return CpuComponents(subject.bundle).runs_on


def _digest(digests: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()
