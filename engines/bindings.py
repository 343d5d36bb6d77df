"""An engine's inputs and outputs: formats, optimization profiles, and their record."""

from __future__ import annotations

from typing import Any

from fastwan.dtypes import TENSORRT_NAMES
from fastwan.engines.source import EngineSource
from fastwan.errors import BadInput
from fastwan.manifest import TensorSpec


def set_formats(trt: Any, network: Any, source: EngineSource) -> None:
    """Set the memory formats that a source asks for.

    Raises:
        BadInput: it asks for one of a tensor that is neither input nor output.
    """
    formats = dict(source.io_formats or {})
    tensors = [network.get_input(i) for i in range(network.num_inputs)]
    tensors += [network.get_output(i) for i in range(network.num_outputs)]
    for tensor in tensors:
        if formats.pop(tensor.name, None) is not None:
            tensor.allowed_formats = 1 << int(trt.TensorFormat.HWC8)
    if formats:
        raise BadInput(f"no input or output named {min(formats)!r} to format", where=source.name)


def set_profiles(builder: Any, network: Any, config: Any, source: EngineSource) -> int:
    """Give every input with a dynamic axis its optimization profiles.

    Returns:
        Number of profiles of the engine, 1 where every shape is fixed.

    Raises:
        BadInput: inputs and profiles do not fit each other, or the builder refuses one.
    """
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


def tensor_spec(tensor: Any, source: EngineSource) -> TensorSpec:
    """Record of a network's input or output.

    Raises:
        BadInput: a dtype that the runtime has no name for.
    """
    name = str(tensor.name)
    dtype = TENSORRT_NAMES.get(tensor.dtype.name)
    if dtype is None:
        raise BadInput(f"{name!r} has dtype {tensor.dtype.name}", where=source.name)
    shape = tuple(
        int(size) if size >= 0 else str(tensor.get_dimension_name(axis) or f"{name}_{axis}")
        for axis, size in enumerate(tensor.shape)
    )
    formatted = (source.io_formats or {}).get(name)
    return TensorSpec(name=name, dtype=dtype, shape=shape, format=formatted or "linear")
