"""The TensorRT plugin: in real registries, and driven through every capability; no GPU needed."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fastwan.plugins.loader import PluginLibrary
from fastwan.plugins.regions.sage_attention2 import Sage2Attributes, SageAttention2
from fastwan.plugins.regions.sage_attention3 import SageAttention3, SageAttributes
from testkit.tensorrt_headers import cuda_include, tensorrt_include

# In a process of its own: a registry is global, and an ONNX parser of TensorRT-RTX aborts when it
# finds a creator for one of its nodes.
IN_A_REGISTRY = """
import json, sys
from pathlib import Path
import numpy as np
import importlib
trt = importlib.import_module(sys.argv[1])
from fastwan.plugins.registry import CREATORS, load_into_registry
logger = trt.Logger(trt.Logger.ERROR)
load_into_registry(trt, Path(sys.argv[2]))
load_into_registry(trt, Path(sys.argv[2]))
registry = trt.get_plugin_registry()
(creator,) = (registry.get_creator(*each) for each in CREATORS if each[0] == sys.argv[3])
types = {"i": (np.int32, trt.PluginFieldType.INT32), "f": (np.float32, trt.PluginFieldType.FLOAT32)}

def create(phase, **fields):
    made = []
    for name, value in fields.items():
        dtype, kind = types["f" if isinstance(value, float) else "i"]
        made.append(trt.PluginField(name, np.array([value], dtype), kind))
    return creator.create_plugin("node", trt.PluginFieldCollection(made), phase)

flag = sys.argv[4]
good = {"num_heads": 12, "num_tokens": 32760, "eps": 1e-6, "softmax_scale": 0.088388346, flag: 0}
build, runtime = trt.TensorRTPhase.BUILD, trt.TensorRTPhase.RUNTIME
bad = {"no heads": {"num_heads": 0}, "too many": {"num_heads": 41}, "tokens": {"num_tokens": -1},
       "scale": {"softmax_scale": -1.0}, "eps": {"eps": float("nan")}, "flag": {flag: 2},
       "unknown": {"heads": 12}, "type": {"num_heads": 12.0}, "float": {"eps": 1}}
print(json.dumps({
    "listed": [c.name for c in registry.all_creators].count(sys.argv[3]),
    "fields": [f.name for f in creator.field_names],
    "good": [create(build, **good) is not None, create(runtime, **good) is not None],
    "least": create(build, num_heads=12, softmax_scale=0.1) is not None,
    "bad": {name: create(build, **{**good, **change}) is None for name, change in bad.items()},
}))
"""


THROUGH_A_PARSER = """
import sys
from onnx import TensorProto, helper
import tensorrt_rtx as trt
from pathlib import Path
from fastwan.plugins.registry import load_into_registry

def value(name, kind, shape):
    return helper.make_tensor_value_info(name, kind, shape)

bf16, fp32 = TensorProto.BFLOAT16, TensorProto.FLOAT
inputs = [value("qkv", bf16, [1, 256, 768]), value("scale", fp32, [3]), value("bias", bf16, [768]),
          value("q_norm", bf16, [256]), value("k_norm", bf16, [256]),
          value("cos", fp32, [256, 64]), value("sin", fp32, [256, 64])]
node = helper.make_node(sys.argv[3], [x.name for x in inputs], ["out"], domain="fastwan",
                        num_heads=int(sys.argv[2]), num_tokens=200, eps=1e-6,
                        softmax_scale=0.088388346, **{sys.argv[4]: 0})
graph = helper.make_graph([node], "node", inputs, [value("out", bf16, [1, 256, 256])])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23),
                                                helper.make_opsetid("fastwan", 1)], ir_version=11)
logger = trt.Logger(trt.Logger.VERBOSE)
load_into_registry(trt, Path(sys.argv[1]))
network = trt.Builder(logger).create_network(0)
trt.OnnxParser(network, logger).parse(model.SerializeToString())
"""


@pytest.fixture(scope="module")
def plugin_path(library: PluginLibrary) -> Path:
    if library.build_info["tensorrt"] == "none":
        pytest.skip("the library was built without TensorRT headers")
    return library.path


NODES = pytest.mark.parametrize(
    ("node", "flag"), [("SageAttention3", "exact_max"), ("SageAttention2", "per_warp")]
)


@pytest.mark.trt
@NODES
@pytest.mark.parametrize("module", ["tensorrt_lean", "tensorrt_rtx", "tensorrt"])
def test_registry_takes_the_library_and_makes_plugins(
    module: str, node: str, flag: str, plugin_path: Path
) -> None:
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    result = subprocess.run(
        [sys.executable, "-c", IN_A_REGISTRY, module, str(plugin_path), node, flag],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    assert found["listed"] == 1
    fields = ["num_heads", "num_tokens", "eps", "softmax_scale", flag]
    assert found["fields"] == fields + ["row_scaled"] * (node == "SageAttention2")
    assert found["good"] == [True, True]
    assert found["least"]
    assert len(found["bad"]) == 9
    assert all(found["bad"].values()), found["bad"]
    assert "num_heads 41 is not within 1 .. 40" in result.stderr
    assert "unknown field 'heads'" in result.stderr


@pytest.mark.trt
@NODES
@pytest.mark.parametrize(("heads", "made"), [(2, True), (41, False)])
def test_a_parser_finds_the_plugin_for_the_node(
    heads: int, made: bool, node: str, flag: str, plugin_path: Path
) -> None:
    if importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip("tensorrt_rtx is not installed")
    command = [sys.executable, "-c", THROUGH_A_PARSER, str(plugin_path), str(heads), node, flag]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    # What comes after does not count: TensorRT-RTX has a parser for plugins, but no network.
    said = result.stdout + result.stderr
    assert (f"Successfully created plugin: {node}" in said) == made, said[-2000:]
    assert ("num_heads 41 is not within 1 .. 40" in said) != made


@pytest.mark.parametrize(
    ("node", "flag", "row_scaled"),
    [
        ("SageAttention3", "exact_max", False),
        ("SageAttention2", "per_warp", False),
        ("SageAttention2", "per_warp", True),
    ],
)
def test_every_capability_of_the_plugin(
    node: str, flag: str, row_scaled: bool, plugin_path: Path, tmp_path: Path
) -> None:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++ is not installed")
    include = ["-isystem", tensorrt_include(), "-isystem", cuda_include()]
    program = tmp_path / "harness"
    source = Path(__file__).with_name("plugin_harness.cpp")
    command = [compiler, "-std=c++17", *include, str(source), "-o", str(program), "-ldl"]
    subprocess.run(command, check=True)
    command = [str(program), str(plugin_path), node, flag, *["row_scaled"] * row_scaled]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
    lines = [line.partition(" ") for line in result.stdout.splitlines()]
    said = {name: value for name, _, value in lines if name != "log"}
    rows, inputs = 3 * 2 * 256, 8 if row_scaled else 7
    workspace = int(said.pop("workspace"))
    attended = {
        "SageAttention3": SageAttention3(3, 256, SageAttributes(2, 200)),
        "SageAttention2": SageAttention2(
            3, 256, Sage2Attributes(2, 200, per_warp=True, row_scaled=row_scaled)
        ),
    }
    assert workspace == attended[node].workspace_bytes >= 3 * rows * 72
    assert said == {
        "creators": f"8 fastwan {node} 1",
        "core": f"fastwan {node} 1",
        "metadata": f"num_heads=2 num_tokens=200 eps=1e-06 softmax_scale=0.0883883 {flag}=1"
        + " row_scaled=1" * row_scaled,
        "formats": f"{inputs + 1} {2 * (inputs + 1)}",
        "type": "0 1",
        "shape": "0 3 1 1 256",
        "configure": "0",
        "configure-narrow": "1",
        "shapes": "0",
        "shapes-last": "1",
        "shapes-short": "1",
        "one-more": "1",
        "serialised": "5 0" if node == "SageAttention3" else "6 0",
        "attached": "1",
    }
    logged = [value for name, _, value in lines if name == "log"]
    assert logged == [
        "qkv must be [B, L, 768]",
        "row_scale must be [B, L, 1]"
        if row_scaled
        else "rope_cos and rope_sin must be [L, 64] with a row for each token",
        "qkv has fewer rows than num_tokens",
        f"needs {inputs} inputs and 1 output",
    ]
