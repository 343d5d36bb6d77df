"""What the ONNX parser may be asked to read, and why it refused."""

from __future__ import annotations

import re
from typing import Any

import onnx

from fastwan.errors import BadInput
from fastwan.onnx_guard import STANDARD_DOMAINS, all_nodes


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


def parser_error(parser: Any, engine: str) -> BadInput:
    """The error for a graph that the parser refused; names the node and the reason."""
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
