#!/usr/bin/env python3
"""Everything of this project that a CUDA GPU without FP4 can prove, in one run.

    python3 scripts/first_contact.py -o measured.json [ITEM ...]

Items: prologue (bit for bit, bandwidth), sanitizer, loop (three steps and the decoder as one CUDA
graph), decoder (832x480x81, parallel and streamed, eager and graphed), text (true length and
padded, graphed), engines (TensorRT-RTX on this GPU, with --bundle). Each is independent; one that
fails is recorded as failed and the exit status is 1. Every figure is measured on the GPU named in
the file.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
Record = dict[str, Any]


def milliseconds(call: Callable[[], object], repeats: int = 10) -> float:
    """Median GPU time of `call` by CUDA events, after three calls to warm up."""
    for _ in range(3):
        call()
    times = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times)


def capture(call: Callable[[], Any]) -> tuple[torch.cuda.CUDAGraph, Any]:
    """`call` as a CUDA graph and what it returned, after a warm-up on a side stream."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = call()
    return graph, result


def command(*arguments: str, seconds: int = 400) -> Record:
    """Run a program; its exit status, time and the end of what it printed."""
    begin = time.monotonic()
    done = subprocess.run(
        arguments, cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=False
    )
    lines = (done.stdout + done.stderr).strip().splitlines()
    return {
        "exit_status": done.returncode,
        "seconds": round(time.monotonic() - begin, 1),
        "last_lines": lines[-3:],
        "output": done.stdout,
    }


def require(record: Record) -> Record:
    if record["exit_status"] != 0:
        raise RuntimeError("; ".join(record["last_lines"]))
    return {name: record[name] for name in ("seconds", "last_lines")}


def prologue(arguments: argparse.Namespace) -> Record:
    """The attention's prologue against the reference, bit for bit, and its bandwidth."""
    python = sys.executable
    tests = command(
        python, "-m", "pytest", "tests/plugins/test_gpu_kernels.py", "-m", "gpu", "-q",
        "-p", "no:cacheprovider",
    )  # fmt: skip
    bench = command(python, "scripts/bench_attention.py", "--json")
    require(bench)
    return {"tests": require(tests), "bench": json.loads(bench["output"])}


def sanitizer(arguments: argparse.Namespace) -> Record:
    """memcheck, racecheck, synccheck and initcheck over the prologue."""
    return require(command("bash", "scripts/sanitize_prologue.sh", seconds=540))


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

    from fastwan.runtime.loop import denoise
    from fastwan.runtime.sampler import schedule_for

    checkpoint = _checkpoint("tiny")
    shape = checkpoint.default_shape
    dit = torch_dit(checkpoint, shape)
    decoder = torch_decoder(torch_decoder_module(checkpoint), shape)
    generator = torch.Generator().manual_seed(1024)
    noise = torch.randn(shape.latents(), generator=generator, dtype=torch.bfloat16).float().cuda()
    embeds = torch.randn(dit.text_shape, generator=generator).cuda()
    embeds[:, 20:] = 0
    context = dit.prepare(embeds)
    schedule = schedule_for("unipc")
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
    """The tiny UMT5 encoder: at its true length against padded with the rest cut off, graphed."""
    from fastwan.export.models.umt5 import UMT5Encoder

    checkpoint = _checkpoint("tiny")
    model = UMT5Encoder(checkpoint.text_config).eval()
    store = checkpoint.text_encoder
    model.load_state_dict({name: store.read(name) for name in model.state_dict()})
    model.cuda()
    ids = torch.randint(3, 200, (1, 19), generator=torch.Generator().manual_seed(0)).cuda()

    def encode() -> torch.Tensor:
        with torch.no_grad(), torch.device("cuda"):
            return model(ids)

    eager = encode()
    graph, result = capture(encode)
    graph.replay()
    torch.cuda.synchronize()
    if not torch.equal(eager, result):
        raise RuntimeError("the graphed encoder differs from the eager one")
    cpu = model.cpu()(ids.cpu()).float()
    difference = (cpu - eager.float().cpu()).norm() / cpu.norm()
    model.cuda()
    return {
        "tokens": ids.shape[1],
        "identical_to_eager": True,
        "relative_difference_to_cpu": float(difference),
        "graph_ms": milliseconds(graph.replay),
        "eager_ms": milliseconds(encode),
    }


def engines(arguments: argparse.Namespace) -> Record:
    """Whether TensorRT-RTX loads and runs the engines of --bundle on this GPU."""
    import rtx_engines

    if arguments.bundle is None:
        raise RuntimeError("name a bundle with --bundle")
    return rtx_engines.check(arguments.bundle)


ITEMS: dict[str, Callable[[argparse.Namespace], Record]] = {
    item.__name__: item for item in (prologue, sanitizer, loop, decoder, text, engines)
}


def machine() -> Record:
    """GPU, driver, clocks and commit that the figures belong to."""
    query = "name,driver_version,clocks.sm,clocks.mem,clocks_event_reasons.active"
    smi = command("nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader")
    commit = os.environ.get("FASTWAN_COMMIT") or command("git", "rev-parse", "HEAD")["output"]
    return {
        "gpu": torch.cuda.get_device_name(),
        "nvidia_smi": {"query": query, "value": smi["output"].strip()},
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "commit": commit.strip(),
        "kind": "measured",
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("items", nargs="*", metavar="ITEM", help=", ".join(ITEMS))
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--bundle", type=Path, help="engines to load, for the item engines")
    parser.add_argument("--trace", type=Path, help="profiler trace of the graph's replays")
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.items if name not in ITEMS]:
        parser.error(f"unknown item {unknown[0]!r}; one of {', '.join(ITEMS)}")
    if not torch.cuda.is_available():
        print("error: no CUDA GPU: this script measures on one", file=sys.stderr)
        return 3
    record: Record = {"machine": machine(), "items": {}}
    names = arguments.items or [name for name in ITEMS if name != "engines" or arguments.bundle]
    failed = False
    for name in names:
        try:
            record["items"][name] = {"passed": True, **ITEMS[name](arguments)}
        except Exception as error:  # one item must not keep the others from being measured
            failed = True
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:600]
            record["items"][name] = {"passed": False, "error": reason}
        print(name, json.dumps(record["items"][name]), flush=True)
        arguments.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    record["machine"]["after"] = machine()["nvidia_smi"]["value"]
    arguments.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
