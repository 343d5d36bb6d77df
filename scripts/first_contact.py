#!/usr/bin/env python3
"""Everything of this project that a CUDA GPU without FP4 can prove, in one run.

    python3 scripts/first_contact.py -o measured.json [ITEM ...]

Items: prologue (bit for bit, bandwidth), attention (against the reference at each boundary shape
and at full size; needs a library that serves this GPU, on compute capability 9.0 the emulated one),
sage2 (SageAttention2++, likewise, beside torch's own attentions), glue (the kernels between two
GEMMs against theirs, bandwidth), sanitizer, loop (three steps and the decoder as one CUDA graph),
runtime (the same through the runtime's own device, session and kernels), decoder (832x480x81,
parallel and streamed, eager and graphed), text (true length and padded, graphed). What a bundle
does on a GPU is for `fastwan-export selftest`. Each item is independent; one that fails is recorded
as failed and the exit status is 1. Every figure is measured on the GPU named in the file.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from contact_models import decoder, loop, text
from record_machine import QUERY, commit

ROOT = Path(__file__).resolve().parent.parent
Record = dict[str, Any]


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


def attention(arguments: argparse.Namespace) -> Record:
    """The attention against the reference at each shape in both modes, captured, and timed."""
    import contact_attention

    return contact_attention.check()


def sage2(arguments: argparse.Namespace) -> Record:
    """SageAttention2++ against its reference and exact attention, and its time beside torch's."""
    import contact_sage2

    return contact_sage2.check()


def glue(arguments: argparse.Namespace) -> Record:
    """The kernels between two GEMMs against their references, captured, and timed."""
    import contact_glue

    return contact_glue.check()


def sanitizer(arguments: argparse.Namespace) -> Record:
    """memcheck, racecheck, synccheck and initcheck over the kernels, side by side."""
    import contact_sanitizer

    return contact_sanitizer.check()


def runtime(arguments: argparse.Namespace) -> Record:
    """The runtime's own CUDA device, graph capture and small kernels on the tiny model."""
    import device_runtime

    tests = command(
        sys.executable, "-m", "pytest", "tests/plugins/test_elementwise.py", "-m", "gpu", "-q",
        "-p", "no:cacheprovider",
    )  # fmt: skip
    return {"kernels": require(tests), **device_runtime.check()}


ITEMS: dict[str, Callable[[argparse.Namespace], Record]] = {
    item.__name__: item
    for item in (prologue, attention, sage2, glue, sanitizer, loop, runtime, decoder, text)
}


def machine() -> Record:
    """GPU, driver, clocks and commit that the figures belong to."""
    smi = command("nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader")
    return {
        "gpu": torch.cuda.get_device_name(),
        "nvidia_smi": {"query": QUERY, "value": smi["output"].strip()},
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "commit": commit(),
        "kind": "measured",
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("items", nargs="*", metavar="ITEM", help=", ".join(ITEMS))
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--trace", type=Path, help="profiler trace of the graph's replays")
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.items if name not in ITEMS]:
        parser.error(f"unknown item {unknown[0]!r}; one of {', '.join(ITEMS)}")
    if not torch.cuda.is_available():
        print("error: no CUDA GPU: this script measures on one", file=sys.stderr)
        return 3
    record: Record = {"machine": machine(), "items": {}}
    names = arguments.items or list(ITEMS)
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
