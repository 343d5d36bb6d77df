"""Times and graphs on the CUDA GPU at hand, for the scripts beside this file."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch


def milliseconds(call: Callable[[], object], repeats: int = 10, warm_up: int = 5) -> float:
    """Median GPU time of `call` by CUDA events, after `warm_up` calls."""
    for _ in range(warm_up):
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
