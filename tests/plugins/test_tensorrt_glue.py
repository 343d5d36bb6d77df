"""TensorRT plugins between two GEMMs: in real registries, and through every capability; no GPU."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fastwan.export.passes.bare_gemm import SCALABLE
from fastwan.plugins.loader import PluginLibrary
from fastwan.plugins.regions import REGIONS
from fastwan.plugins.regions.glue import GlueOp, ScalableOp
from testkit.tensorrt_headers import cuda_include, tensorrt_include

# In a process of its own, because a registry is global.
IN_A_REGISTRY = """
import importlib, json, sys
from pathlib import Path
import numpy as np
trt = importlib.import_module(sys.argv[1])
from fastwan.plugins.registry import CREATORS, load_into_registry
logger = trt.Logger(trt.Logger.ERROR)
load_into_registry(trt, Path(sys.argv[2]))
registry = trt.get_plugin_registry()
good = {"num_heads": 12, "eps": 1e-6, "add_one": 1, "scale": 0.088388346, "scaled": 1}
bad = {"num_heads": 41, "eps": -1.0, "add_one": 2, "scale": 0.0, "scaled": 2}

def create(creator, fields):
    made = []
    for name, value in fields.items():
        real = isinstance(value, float)
        kind = trt.PluginFieldType.FLOAT32 if real else trt.PluginFieldType.INT32
        array = np.array([value], np.float32 if real else np.int32)
        made.append(trt.PluginField(name, array, kind))
    phase = trt.TensorRTPhase.BUILD
    return creator.create_plugin("node", trt.PluginFieldCollection(made), phase) is not None

found = {}
for name, version, domain in CREATORS:
    if name not in sys.argv[3:]:
        continue  # of an attention
    creator = registry.get_creator(name, version, domain)
    fields = {field.name: good[field.name] for field in creator.field_names}
    found[name] = {
        "fields": list(fields),
        "made": create(creator, fields),
        "refused": [each for each in fields if not create(creator, {**fields, each: bad[each]})],
        "missing": [each for each in fields
                    if not create(creator, {k: v for k, v in fields.items() if k != each})],
        "unknown": not create(creator, {**fields, "heads": 1}),
    }
print(json.dumps(found))
"""
NORM, CROSS = ["eps", "add_one"], ["num_heads", "eps", "scale"]
OPTIONAL = "scaled"
FIELDS = {
    "GeluQuantize": [OPTIONAL],
    "Quantize": [],
    "ResidualNormQuantize": [*NORM, OPTIONAL],
    "NormQuantize": NORM,
    "ResidualNorm": [*NORM, OPTIONAL],
    "CrossAttention": [*CROSS, OPTIONAL],
}


@pytest.fixture(scope="module")
def plugin_path(library: PluginLibrary) -> Path:
    if library.build_info["tensorrt"] == "none":
        pytest.skip("the library was built without TensorRT headers")
    return library.path


def test_every_kind_is_named_here() -> None:
    kinds = {name: kind for name, kind in REGIONS.items() if issubclass(kind, GlueOp)}
    assert set(FIELDS) == set(kinds)
    scalable = {name for name, kind in kinds.items() if issubclass(kind, ScalableOp)}
    assert {name for name, fields in FIELDS.items() if OPTIONAL in fields} == scalable
    assert scalable == set(SCALABLE)


@pytest.mark.trt
@pytest.mark.parametrize("module", ["tensorrt_lean", "tensorrt_rtx", "tensorrt"])
def test_a_registry_makes_each_node_and_refuses_other_fields(
    module: str, plugin_path: Path
) -> None:
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    command = [sys.executable, "-c", IN_A_REGISTRY, module, str(plugin_path), *FIELDS]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    assert found == {
        name: {
            "fields": fields,
            "made": True,
            "refused": fields,
            "missing": [field for field in fields if field != OPTIONAL],
            "unknown": True,
        }
        for name, fields in FIELDS.items()
    }
    assert "num_heads 41 is not within 1 .. 40" in result.stderr
    assert "unknown field 'heads'" in result.stderr


def test_every_capability_of_each_node(plugin_path: Path, tmp_path: Path) -> None:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++ is not installed")
    include = ["-isystem", tensorrt_include(), "-isystem", cuda_include()]
    program, source = tmp_path / "harness", Path(__file__).with_name("glue_harness.cpp")
    command = [compiler, "-std=c++17", *include, str(source), "-o", str(program), "-ldl"]
    subprocess.run(command, check=True)
    command = [str(program), str(plugin_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
    said: dict[str, dict[str, int]] = {}
    for line in result.stdout.splitlines():
        if not line.startswith("log "):
            node, name, value = line.split(" ")
            said.setdefault(node, {})[name] = int(value)
    assert {name.partition("/")[0] for name in said} == set(FIELDS)
    # With a gate and without one, and four with a factor of the product.
    assert sum(name.endswith("/scaled") for name in said) == 4
    assert len(said) == 11
    zero = ["outputs", "accepted", "refused", "types", "shapes", "unlike", "configure"]
    zero += ["workspace", "change", "rebuilt"]
    expected = dict.fromkeys(zero, 0) | {"wrong": 1, "fewer": 1, "attached": 1}
    assert said == dict.fromkeys(said, expected)
