"""What both builders share: parse a graph, build it, read the builder's log.

The two Python modules have the same classes, so the module is an argument (`trt`).
"""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import onnx

from fastwan.bundle import TensorSpec
from fastwan.engines.backend import BuiltEngine
from fastwan.engines.layers import parse_layers
from fastwan.engines.source import EngineSource
from fastwan.errors import BadInput, EnvironmentLacks, VerificationFailed
from fastwan.onnx_guard import STANDARD_DOMAINS, all_nodes
from fastwan.progress import Progress

_SCRATCH = re.compile(r"^Total Activation Memory: (\d+) bytes", re.MULTILINE)
_DTYPES = {
    "FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16",
    "INT8": "int8", "UINT8": "uint8", "INT32": "int32", "INT64": "int64", "BOOL": "bool",
    "FP8": "float8_e4m3fn", "FP4": "float4_e2m1fn",
}  # fmt: skip


@dataclass
class BuildLog:
    """Messages of one build that say something about its result.

    Attributes:
        facts: the layer block and the memory figures.
        errors: errors and warnings, newest last.
    """

    facts: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def scratch_bytes(self, engine: str) -> int:
        """Device memory of an execution context in the profile that needs most.

        Raises:
            VerificationFailed: the builder did not say.
        """
        # One line a profile.
        sizes = [int(match[1]) for match in map(_SCRATCH.search, self.facts) if match]
        if sizes:
            return max(sizes)
        raise VerificationFailed(
            "the builder's log does not state the scratch memory",
            where=engine,
            fix="report this version of TensorRT; its engines cannot be checked",
        )


def capturing_logger(trt: Any, log: BuildLog) -> Any:
    """A logger that keeps what `BuildLog` holds and prints nothing."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            # An exception here would cross C++ frames, so nothing may raise.
            if severity <= trt.ILogger.Severity.ERROR:
                log.errors.append(message)
            elif message.startswith(("Layers:", "Total Activation Memory:")):
                log.facts.append(message)

    return Logger()


class Cancel:
    """Whether the user asked to stop."""

    def __init__(self) -> None:
        self.requested = False


@contextmanager
def deferred_interrupt() -> Iterator[Cancel]:
    """Turn Ctrl-C into a request that the build polls, and raise it when the build has returned.

    Raised inside a callback of the builder, KeyboardInterrupt would cross C++ frames and end the
    process. Outside the main thread signals cannot be caught and nothing is changed.
    """
    cancel = Cancel()
    if threading.current_thread() is not threading.main_thread():
        yield cancel
        return

    def request(_signal: int, _frame: object) -> None:
        cancel.requested = True

    previous = signal.signal(signal.SIGINT, request)
    try:
        yield cancel
    finally:
        signal.signal(signal.SIGINT, previous)
    if cancel.requested:
        raise KeyboardInterrupt


def progress_monitor(trt: Any, name: str, progress: Progress, cancel: Cancel) -> Any:
    """A monitor that redraws the current stage and cancels the build on request."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self._report(f"{name}: {phase}")

        def phase_finish(self, phase: str) -> None:
            pass

        def step_complete(self, phase: str, step: int) -> bool:
            self._report(f"{name}: {phase}")
            return not cancel.requested

        def _report(self, note: str) -> None:
            # Nothing may cross C++ frames, and a display is no reason to fail.
            with suppress(Exception):
                progress.advance(0, note)

    return Monitor()


def build_network(
    trt: Any,
    source: EngineSource,
    progress: Progress,
    *,
    network_flags: int,
    configure: Callable[[Any], None],
    plugin_domains: frozenset[str] = frozenset(),
) -> BuiltEngine:
    """Parse and build one source.

    Args:
        trt: the builder's module.
        network_flags: for ``create_network``.
        configure: sets what is the backend's own on an ``IBuilderConfig``.
        plugin_domains: domains whose nodes a registered plugin serves.

    Raises:
        BadInput: parser or builder refuse the graph.
        KeyboardInterrupt: cancelled.
    """
    with deferred_interrupt() as cancel:
        return _build(trt, source, progress, cancel, network_flags, configure, plugin_domains)


def _build(
    trt: Any,
    source: EngineSource,
    progress: Progress,
    cancel: Cancel,
    network_flags: int,
    configure: Callable[[Any], None],
    plugin_domains: frozenset[str],
) -> BuiltEngine:
    log = BuildLog()
    logger = capturing_logger(trt, log)
    builder = trt.Builder(logger)
    network = builder.create_network(network_flags)
    parser = trt.OnnxParser(network, logger)
    check_operators(parser, source.model, source.name, plugin_domains)
    # The path locates the external data; the file itself need not exist.
    if not parser.parse(source.model, f"{source.base_dir}/{source.name}.onnx"):
        raise _parser_error(parser, source.name)
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.max_aux_streams = 0
    configure(config)
    _set_formats(trt, network, source)
    profiles = _set_profiles(builder, network, config, source)
    inputs = tuple(_spec(network.get_input(i), source) for i in range(network.num_inputs))
    outputs = tuple(_spec(network.get_output(i), source) for i in range(network.num_outputs))
    monitor = progress_monitor(trt, source.name, progress, cancel)
    config.progress_monitor = monitor
    plan = builder.build_serialized_network(network, config)
    config.progress_monitor = None
    if cancel.requested:
        raise KeyboardInterrupt
    if plan is None:
        reason = log.errors[-1] if log.errors else "no reason given"
        raise BadInput(f"the builder refused the graph: {reason}", where=source.name)
    return BuiltEngine(
        plan=memoryview(plan),
        layers=parse_layers(log.facts, source.name, profiles),
        scratch_bytes=log.scratch_bytes(source.name),
        inputs=inputs,
        outputs=outputs,
    )


def check_operators(
    parser: Any, serialized: bytes, engine: str, plugin_domains: frozenset[str]
) -> None:
    """Ask the parser about every operator before it parses: some abort the process.

    Raises:
        BadInput: an operator of the graph is not supported; names the node.
    """
    model = onnx.load_model_from_string(serialized)
    local = {(function.domain, function.name) for function in model.functions}
    asked: dict[tuple[str, str], bool] = {}
    for node in all_nodes(model):
        key = (node.domain, node.op_type)
        if key in local:
            continue
        if key not in asked:
            served = node.domain in STANDARD_DOMAINS or node.domain in plugin_domains
            asked[key] = served and bool(parser.supports_operator(node.op_type))
        if not asked[key]:
            operator = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
            raise BadInput(
                f"operator {operator} of node {node.name!r} is not supported",
                where=engine,
                fix="cut the graph at it, lower it, or use a backend with the plugin",
            )


def _parser_error(parser: Any, engine: str) -> BadInput:
    if not parser.num_errors:
        return BadInput("the parser refused the graph without a reason", where=engine)
    error = parser.get_error(0)
    # The lines after the first repeat it from the builder's point of view, CUDA notes included.
    lines = [line for line in error.desc().splitlines() if "cudaError" not in line]
    reason = re.sub(r"\. In \w+ at /\S+", "", " ".join(lines))
    return BadInput(
        f"the parser refused node {error.node_name()!r} ({error.node_operator()}): {reason}",
        where=engine,
    )


def _set_formats(trt: Any, network: Any, source: EngineSource) -> None:
    formats = dict(source.io_formats or {})
    tensors = [network.get_input(i) for i in range(network.num_inputs)]
    tensors += [network.get_output(i) for i in range(network.num_outputs)]
    for tensor in tensors:
        if formats.pop(tensor.name, None) is not None:
            tensor.allowed_formats = 1 << int(trt.TensorFormat.HWC8)
    if formats:
        raise BadInput(f"no input or output named {min(formats)!r} to format", where=source.name)


def _set_profiles(builder: Any, network: Any, config: Any, source: EngineSource) -> int:
    """Number of optimization profiles of the engine, 1 where every shape is fixed."""
    profiles = dict(source.profiles or {})
    dynamic = []
    for i in range(network.num_inputs):
        tensor = network.get_input(i)
        if any(size < 0 for size in tensor.shape):
            dynamic.append(tensor.name)
    if set(profiles) != set(dynamic):
        name = min(set(profiles) ^ set(dynamic))
        fault = "has no profile" if name in dynamic else "has a profile but no dynamic axis"
        raise BadInput(f"input {name!r} {fault}", where=source.name)
    counts = {len(shapes) for shapes in profiles.values()}
    if len(counts) > 1:
        raise BadInput("inputs have different numbers of profiles", where=source.name)
    count = max(counts, default=0)
    for index in range(count):
        profile = builder.create_optimization_profile()
        for name, shapes in profiles.items():
            try:
                profile.set_shape(name, *shapes[index])
            except (ValueError, RuntimeError, TypeError) as error:
                raise BadInput(
                    f"profile of {name!r} is refused: {error}", where=source.name
                ) from None
        if config.add_optimization_profile(profile) < 0:
            raise BadInput(f"profiles of {sorted(profiles)} are refused", where=source.name)
    return max(count, 1)


def _spec(tensor: Any, source: EngineSource) -> TensorSpec:
    name = str(tensor.name)
    dtype = _DTYPES.get(tensor.dtype.name)
    if dtype is None:
        raise BadInput(f"{name!r} has dtype {tensor.dtype.name}", where=source.name)
    shape = tuple(
        int(size) if size >= 0 else str(tensor.get_dimension_name(axis) or f"{name}_{axis}")
        for axis, size in enumerate(tensor.shape)
    )
    formatted = (source.io_formats or {}).get(name)
    return TensorSpec(name=name, dtype=dtype, shape=shape, format=formatted or "linear")


def import_builder(module: str, package: str) -> Any:
    """A builder's module.

    Raises:
        EnvironmentLacks: it is not installed or cannot be loaded.
    """
    from importlib import import_module

    try:
        return import_module(module)
    except (ImportError, OSError) as error:
        raise EnvironmentLacks(
            f"{package} cannot be loaded: {error}", where=module, fix=f"pip install {package}"
        ) from None
