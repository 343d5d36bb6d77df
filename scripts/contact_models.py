"""The items of first_contact.py that run the models through torch."""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from cuda_timing import capture, milliseconds

Record = dict[str, Any]


def _checkpoint(size: str) -> Any:
    from fastwan.export.checkpoint.reader import open_checkpoint
    from fastwan.export.checkpoint.synthetic import make_checkpoint

    folder = Path(tempfile.mkdtemp()) / size
    make_checkpoint(folder, size=size)  # type: ignore[arg-type]
    wanted = ("dit", "decoder", "text_encoder") if size == "tiny" else ("dit", "decoder")
    return open_checkpoint(folder, components=wanted)


def loop(arguments: argparse.Namespace) -> Record:
    """Three steps and the decoder of the tiny model: one graph launch against eager."""
    from torch_executors import combine, torch_decoder, torch_decoder_module, torch_dit

    from fastwan.config import SAMPLERS
    from fastwan.runtime.model.loop import denoise
    from fastwan.runtime.model.samplers import schedule_of

    checkpoint = _checkpoint("tiny")
    shape = checkpoint.default_shape
    dit = torch_dit(checkpoint, shape)
    decoder = torch_decoder(torch_decoder_module(checkpoint), shape)
    generator = torch.Generator().manual_seed(1024)
    noise = torch.randn(shape.latents(), generator=generator, dtype=torch.bfloat16).float().cuda()
    embeds = torch.randn(dit.text_shape, generator=generator).cuda()
    embeds[:, 20:] = 0
    context = dit.prepare(embeds)
    schedule = schedule_of(SAMPLERS["unipc"])
    video = torch.empty(
        (shape.num_frames, shape.height, shape.width, 3), dtype=torch.uint8, device="cuda"
    )
    host = torch.empty(video.shape, dtype=torch.uint8, pin_memory=True)

    def play() -> None:
        latents = denoise(
            lambda x, timestep: dit.velocity(x, timestep, context).float(),
            noise,
            schedule,
            combine=combine,
        )
        for index, frame in enumerate(decoder.frames(latents.half())):
            video[index].copy_(frame)
        host.copy_(video, non_blocking=True)

    play()
    torch.cuda.synchronize()
    eager = host.clone()
    graph, _ = capture(play)
    video.zero_()
    graph.replay()
    torch.cuda.synchronize()
    replayed = host.clone()
    if not torch.equal(eager, replayed):
        raise RuntimeError("frames of the graph differ from those of the eager run")
    if int(eager.min()) == int(eager.max()):
        raise RuntimeError("the video is flat")
    allocations = _allocations()
    trace = _profile(lambda: [graph.replay() for _ in range(5)], arguments)
    grown = _allocations() - allocations
    host_seconds = []
    for _ in range(20):
        begin = time.perf_counter()
        graph.replay()
        host_seconds.append(time.perf_counter() - begin)
        torch.cuda.synchronize()
    return {
        "frames_identical_to_eager": True,
        "frames": list(eager.shape),
        "allocations_in_replay": grown,
        "calls_in_five_replays": trace,
        "host_us_a_video": statistics.median(host_seconds) * 1e6,
        "graph_ms": milliseconds(graph.replay),
        "eager_ms": milliseconds(play),
    }


def _allocations() -> int:
    return int(torch.cuda.memory_stats()["allocation.all.allocated"])


def _profile(call: Callable[[], object], arguments: argparse.Namespace) -> dict[str, int]:
    """Counts of the CUDA runtime calls that `call` makes, from a profiler's trace."""
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        call()
    torch.cuda.synchronize()
    if arguments.trace is not None:
        profiler.export_chrome_trace(str(arguments.trace))
    wanted = ("cudaGraphLaunch", "cudaMalloc", "cudaFree", "Synchronize", "cudaLaunchKernel")
    counts = dict.fromkeys(wanted, 0)
    for event in profiler.events():
        for name in wanted:
            # The profiler itself synchronises once, when it stops.
            if name in event.name:
                counts[name] += 1
    return counts


def decoder(arguments: argparse.Namespace) -> Record:
    """TAEHV at 832x480x81: parallel and streamed, eager and graphed."""
    from torch_executors import torch_decoder, torch_decoder_module

    from fastwan.config import VideoShape
    from fastwan.export.models.taehv import to_uint8

    shape = VideoShape()
    checkpoint = _checkpoint("1.3b")
    module = torch_decoder_module(checkpoint)
    streaming = torch_decoder(module, shape)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(shape.latents(), generator=generator).half().cuda()
    video = torch.empty(
        (shape.num_frames, shape.height, shape.width, 3), dtype=torch.uint8, device="cuda"
    )

    def streamed() -> None:
        for index, frame in enumerate(streaming.frames(latents)):
            video[index].copy_(frame)

    def parallel() -> torch.Tensor:
        with torch.no_grad(), torch.device("cuda"):
            frames = module(latents.movedim(1, 2))[0]
        return to_uint8(frames[module.config.frames_to_trim :])

    record: Record = {"shape": [shape.num_frames, shape.height, shape.width]}
    for name, call in (("streamed", streamed), ("parallel", parallel)):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        record[f"{name}_eager_ms"] = milliseconds(call, 5)
        record[f"{name}_peak_bytes"] = torch.cuda.max_memory_allocated() - before
        graph, _ = capture(call)
        record[f"{name}_graph_ms"] = milliseconds(graph.replay, 5)
        graph.reset()
    difference = (parallel().int() - video.int()).abs()
    record["largest_difference_in_levels"] = int(difference.max())
    record["share_of_values_that_differ"] = float((difference > 0).double().mean())
    record["original"] = _original_decoder(checkpoint, latents)
    return record


def _original_decoder(checkpoint: Any, latents: torch.Tensor) -> Record | str:
    """TAEHV's own decoder on the same weights, where it is installed."""
    try:
        from taehv import TAEHV
    except ImportError:
        return "taehv is not installed"
    model = TAEHV(checkpoint_path=None)
    store = checkpoint.decoder
    weights = {name.removeprefix("decoder."): store.read(name) for name in store.names()}
    model.decoder.load_state_dict(weights)
    model = model.half().cuda()

    def decode(parallel: bool) -> torch.Tensor:
        with torch.no_grad():
            return model.decode_video(
                latents.movedim(1, 2), parallel=parallel, show_progress_bar=False
            )

    return {
        "parallel_ms": milliseconds(lambda: decode(True), 5),
        "sequential_ms": milliseconds(lambda: decode(False), 5),
    }


def text(arguments: argparse.Namespace) -> Record:
    """The tiny UMT5 encoder on 19 tokens: graphed against eager, and against 512 padded rows."""
    from fastwan.export.models.umt5 import UMT5Encoder, relative_buckets
    from fastwan.export.recipes import BF16

    checkpoint = _checkpoint("tiny")
    model = UMT5Encoder(checkpoint.text_config, BF16()).eval()
    store = checkpoint.text_encoder
    model.load_state_dict({name: store.read(name) for name in model.state_dict()})
    tokens, padded = 19, 512
    ids = torch.randint(3, 200, (1, tokens), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        cpu = model(ids).float()
    model.cuda()
    table = model.shared.weight

    def encoder(length: int) -> Callable[[], torch.Tensor]:
        rows = torch.zeros((1, length), dtype=torch.int64)
        rows[:, :tokens] = ids
        rows, buckets = rows.cuda(), relative_buckets(checkpoint.text_config, length).cuda()

        def encode() -> torch.Tensor:
            with torch.no_grad():
                hidden = torch.nn.functional.embedding(rows, table)
                for block in model.encoder.block:
                    hidden = block(hidden, buckets)
                return model.encoder(hidden)

        return encode

    record: Record = {"tokens": tokens, "padded_tokens": padded}
    results = {}
    for name, length in (("true_length", tokens), ("padded", padded)):
        encode = encoder(length)
        eager = encode()
        graph, result = capture(encode)
        graph.replay()
        torch.cuda.synchronize()
        if not torch.equal(eager, result):
            raise RuntimeError(f"the graphed encoder differs from the eager one ({name})")
        results[name] = eager[:, :tokens].float().cpu()
        record[f"{name}_eager_ms"] = milliseconds(encode)
        record[f"{name}_graph_ms"] = milliseconds(graph.replay)
    record["graph_identical_to_eager"] = True
    record["relative_difference_to_cpu"] = _relative(results["true_length"], cpu)
    # Without a mask the padding takes part in the attention: the reason for the true length.
    record["change_by_padding"] = _relative(results["padded"], results["true_length"])
    return record


def _relative(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())
