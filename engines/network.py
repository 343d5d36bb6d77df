"""One build, from a source to an engine, with either of the two builders.

The two Python modules have the same classes, so the module is an argument (`trt`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastwan.engines.backend import BuiltEngine
from fastwan.engines.bindings import set_formats, set_profiles, tensor_spec
from fastwan.engines.build_log import BuildLog, capturing_logger
from fastwan.engines.layers import parse_layers
from fastwan.engines.monitor import Cancel, deferred_interrupt, progress_monitor
from fastwan.engines.parser import check_operators, parser_error
from fastwan.engines.source import EngineSource
from fastwan.errors import BadInput, EnvironmentLacks
from fastwan.install import extra_of, how_to_install
from fastwan.progress import Progress


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
        raise parser_error(parser, source.name)
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.max_aux_streams = 0
    configure(config)
    set_formats(trt, network, source)
    profiles = set_profiles(builder, network, config, source)
    inputs = tuple(tensor_spec(network.get_input(i), source) for i in range(network.num_inputs))
    outputs = tuple(tensor_spec(network.get_output(i), source) for i in range(network.num_outputs))
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
            f"{package} cannot be loaded: {error}",
            where=module,
            fix=how_to_install(extra_of(module)),
        ) from None
