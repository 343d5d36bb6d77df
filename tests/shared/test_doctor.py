"""doctor, on machines made of fakes that differ from a complete one in a single piece."""

from __future__ import annotations

import importlib
import io
import json
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from fastwan import doctor
from fastwan.cli import main
from fastwan.doctor import Finding, diagnose, render
from fastwan.errors import BadInput, EnvironmentLacks
from fastwan.install import how_to_install
from fastwan.plugins.build import Requirement

Machine = SimpleNamespace
REAL_IMPORT = importlib.import_module
EXPORT = "export a checkpoint to ONNX"
RTX = "build engines with tensorrt-rtx"
TRT = "build engines with tensorrt"
CPU = "make a video on the CPU"
GPU = "make a video on the GPU"
PLUGIN = "build the attention plugin"
MODULES = {package.module for package in (*doctor._PACKAGES, doctor._CUDA_BINDINGS)}


def lacking(what: str) -> Callable[..., Any]:
    def fail(*args: object) -> None:
        raise EnvironmentLacks(what, fix="get one")

    return fail


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    """A machine that has everything; a test takes one piece away."""
    here = Machine(
        broken={},
        devices=1,
        fault="",
        capability=120,
        builds=lambda target: None,
        gpu_run=lambda name: None,
        requirements=[
            Requirement("CMake", "/usr/bin/cmake", True, "install cmake"),
            Requirement("TensorRT headers", "/usr/include", False, "set TENSORRT_ROOT"),
        ],
        find_library=lambda: tmp_path / "lib.so",
        packaged=None,
        find_emulated=lambda: tmp_path / "emulated.so",
        library=lambda path: SimpleNamespace(
            build_info={"cuda": "13.0"},
            compute_capabilities=("9.0",) if path.stem == "emulated" else ("12.0", "12.1"),
        ),
        free=10**12,
    )

    def fake_import(name: str, package: str | None = None) -> ModuleType:
        if name in here.broken:
            raise here.broken[name]
        return ModuleType(name) if name in MODULES else REAL_IMPORT(name, package)

    def backend(name: str) -> SimpleNamespace:
        return SimpleNamespace(check=here.builds)

    patches: dict[str, Any] = {
        "fastwan.doctor.importlib.import_module": fake_import,
        "fastwan.engines.backend.load_backend": backend,
        "fastwan.cuda_driver.compute_capability": lambda: here.capability,
        "fastwan.plugins.build.requirements": lambda: here.requirements,
        "fastwan.plugins.loader.origin": lambda path: "built here",
        "fastwan.plugins.loader.packaged_library": lambda: here.packaged,
        "fastwan.plugins.loader.PluginLibrary": lambda path, emulated: here.library(path),
        "fastwan.plugins.loader.find_library": lambda emulated: (
            here.find_emulated() if emulated else here.find_library()
        ),
        "fastwan.cuda_driver.cuda_device_count": lambda: here.devices,
        "fastwan.cuda_driver.driver_fault": lambda: here.fault,
        "fastwan.runtime.device.choice.resolve_device": lambda name: here.gpu_run(name),
        "fastwan.doctor.shutil.disk_usage": lambda path: SimpleNamespace(free=here.free),
    }
    for target in patches:
        REAL_IMPORT(target.rpartition(".")[0].replace(".importlib", "").replace(".shutil", ""))
    for target, value in patches.items():
        monkeypatch.setattr(target, value)
    monkeypatch.setenv("FASTWAN_CACHE_DIR", str(tmp_path))
    return here


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    named = {finding.name: finding for finding in findings}
    assert len(named) == len(findings), "names are unique"
    for finding in findings:
        assert bool(finding.fix) == (finding.status != "ok"), finding
        assert "\n" not in finding.detail + finding.fix
    return named


def test_a_complete_machine_can_do_everything(machine: Machine) -> None:
    found = by_name(diagnose())
    assert {finding.status for finding in found.values()} == {"ok"}
    abilities = {name for name, finding in found.items() if finding.group == "ability"}
    assert abilities == {EXPORT, RTX, TRT, CPU, GPU, PLUGIN}
    assert "rtx5090" in found[RTX].detail


@pytest.mark.parametrize(
    ("module", "name", "status", "lost"),
    [
        ("torch", "torch", "missing", {EXPORT}),
        ("modelopt.torch.quantization", "ModelOpt", "missing", {EXPORT}),
        ("onnxruntime", "ONNX Runtime", "missing", {CPU}),
        ("av", "PyAV", "optional", set()),
        ("tensorrt", "TensorRT", "optional", set()),
        ("cuda.bindings.runtime", "cuda-bindings", "missing", {GPU}),
    ],
)
def test_a_missing_package_takes_what_rests_on_it(
    machine: Machine, module: str, name: str, status: str, lost: set[str]
) -> None:
    top = module.partition(".")[0]
    machine.broken[module] = ModuleNotFoundError(f"No module named {top!r}", name=top)
    found = by_name(diagnose(load=True))
    assert (found[name].status, found[name].detail) == (status, "not installed")
    assert "pip install" in found[name].fix
    without = {
        key for key, each in found.items() if each.group == "ability" and each.status != "ok"
    }
    assert without == lost
    for ability in lost:
        assert name in found[ability].detail
        assert found[ability].fix == found[name].fix


def test_a_package_that_does_not_load_is_told_from_one_that_is_absent(machine: Machine) -> None:
    machine.broken["torch"] = OSError("libcudart.so.13: cannot open\nshared object file")
    assert by_name(diagnose(load=True))["torch"].detail == (
        "does not load: OSError: libcudart.so.13: cannot open shared object file"
    )
    unloaded = by_name(diagnose())["torch"]
    assert unloaded.status == "ok"
    assert "not loaded" in unloaded.detail
    machine.broken["torch"] = ModuleNotFoundError("No module named 'sympy'", name="sympy")
    assert "sympy" in by_name(diagnose(load=True))["torch"].detail


def test_a_package_that_takes_seconds_is_looked_for_all_the_same(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = metadata.version

    def version(name: str) -> str:
        if name == "nvidia-modelopt":
            raise metadata.PackageNotFoundError(name)
        return real(name)

    assert by_name(diagnose())["ModelOpt"].status == "ok"
    monkeypatch.setattr("fastwan.doctor.metadata.version", version)
    found = by_name(diagnose())
    assert (found["ModelOpt"].status, found["ModelOpt"].detail) == ("missing", "not installed")
    assert found[EXPORT].detail == "without ModelOpt"


def test_the_python_is_held_against_the_oldest(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert by_name(diagnose())["Python"].status == "ok"
    monkeypatch.setattr(doctor, "OLDEST_PYTHON", (99, 0))
    found = by_name(diagnose())
    assert found["Python"].fix == "install Python 99.0 or newer"
    assert found[EXPORT].status == found[CPU].status == "missing"


def test_a_backend_speaks_for_itself(machine: Machine) -> None:
    def only_blackwell(target: Any) -> None:
        if target.compute_capability < 120:
            lacking("no FP4")(target)

    machine.builds = only_blackwell
    assert by_name(diagnose())[RTX].detail == "for rtx5090, gb10, rtx5080, rtxpro6000"
    machine.builds = lacking("tensorrt_rtx cannot be loaded")
    found = by_name(diagnose())
    assert found[RTX] == Finding(
        "ability", RTX, "missing", "tensorrt_rtx cannot be loaded", "get one"
    )
    assert found[TRT].status == "optional"


def test_an_unexpected_failure_is_a_finding(machine: Machine) -> None:
    def crash(target: object) -> None:
        raise RuntimeError("driver\nexploded")

    machine.builds = crash
    assert by_name(diagnose())[RTX].detail == (
        "could not be looked at: RuntimeError: driver exploded"
    )


@pytest.mark.parametrize(
    ("devices", "capability", "status", "words"),
    [(1, 120, "ok", "RTX 5090"), (2, 75, "optional", "no target"), (1, None, "optional", "None")],
)
def test_the_gpu_is_held_against_the_targets(
    machine: Machine, devices: int, capability: int | None, status: str, words: str
) -> None:
    machine.devices, machine.capability = devices, capability
    found = by_name(diagnose())
    assert found["CUDA device"].detail == f"{devices} visible"
    assert found["compute capability"].status == status
    assert words in found["compute capability"].detail


def test_a_driver_that_cannot_be_used_is_a_fault(machine: Machine) -> None:
    assert by_name(diagnose())["CUDA device"].status == "ok"
    machine.fault = "NVIDIA's driver does not start: CUDA error 803"
    found = by_name(diagnose())["CUDA device"]
    assert (found.status, found.detail) == ("missing", machine.fault)
    assert "driver 580" in found.fix


def test_no_gpu_is_no_fault(machine: Machine) -> None:
    machine.devices, machine.gpu_run = 0, lacking("no CUDA device is visible")
    found = by_name(diagnose())
    assert found["CUDA device"].status == "optional"
    assert "compute capability" not in found
    assert (found[GPU].status, found[GPU].fix) == ("missing", "get one")


@pytest.mark.parametrize("absent", ["cuda", "cuda.bindings", "cuda.bindings.runtime"])
def test_the_bindings_are_looked_for_where_there_is_a_gpu(machine: Machine, absent: str) -> None:
    assert by_name(diagnose())["cuda-bindings"].status == "ok"
    module = "cuda.bindings.runtime"
    machine.broken[module] = ModuleNotFoundError(f"No module named {absent!r}", name=absent)
    found = by_name(diagnose())
    assert found["cuda-bindings"].detail == "not installed"
    assert found[GPU].detail == "without cuda-bindings"
    assert "[gpu]" in found[GPU].fix
    machine.devices, machine.gpu_run = 0, lacking("no CUDA device is visible")
    found = by_name(diagnose())
    assert "cuda-bindings" not in found
    assert found[GPU].detail == "no CUDA device is visible"


@pytest.mark.parametrize(("needed", "status"), [(True, "missing"), (False, "optional")])
def test_what_the_plugin_build_lacks_is_explained(
    machine: Machine, needed: bool, status: str
) -> None:
    machine.requirements.append(Requirement("CUDA compiler", "", needed, "install CUDA 12.8"))
    found = by_name(diagnose())
    assert found["CUDA compiler"].status == status
    assert found["CUDA compiler"].fix == "install CUDA 12.8"
    if needed:
        assert found[PLUGIN].detail == "without CUDA compiler"
        assert found[PLUGIN].fix == "install CUDA 12.8"
    else:
        assert found[PLUGIN].status == "ok"


@pytest.mark.parametrize("packaged", [True, False])
def test_a_wheel_with_the_library_needs_no_compiler(
    machine: Machine, packaged: bool, tmp_path: Path
) -> None:
    machine.packaged = tmp_path / "lib.so" if packaged else None
    machine.requirements.append(Requirement("CUDA compiler", "", True, "install CUDA 12.8"))
    found = by_name(diagnose())
    assert found["CUDA compiler"].status == ("optional" if packaged else "missing")
    assert found[PLUGIN].status == ("optional" if packaged else "missing")
    assert ("the wheel has the library" in found[PLUGIN].detail) is packaged


def test_the_plugin_library_is_loaded(machine: Machine) -> None:
    assert "cuda=13.0" in by_name(diagnose())["plugin library"].detail

    def wrong(path: Path) -> None:
        raise BadInput("plugin library has interface 7, this package needs 1", fix="build it")

    machine.library = wrong
    found = by_name(diagnose())
    assert found["plugin library"].status == "missing"
    assert "interface 7" in found["plugin library"].detail
    assert found[PLUGIN].status == "ok"
    machine.find_library = lacking("the plugin library is missing")
    assert by_name(diagnose())["plugin library"].status == "optional"


def test_each_library_says_which_gpus_it_serves(machine: Machine) -> None:
    found = by_name(diagnose())
    assert "serves compute capability 12.0, 12.1;" in found["plugin library"].detail
    assert "serves compute capability 9.0;" in found["emulated plugin library"].detail


@pytest.mark.parametrize(("capability", "wanted"), [(90, True), (120, False), (None, False)])
def test_the_emulated_library_is_asked_for_on_hopper_alone(
    machine: Machine, capability: int | None, wanted: bool
) -> None:
    machine.find_emulated = lacking("the emulated plugin library is missing")
    machine.capability = capability
    found = by_name(diagnose())
    assert ("emulated plugin library" in found) is wanted
    assert found["plugin library"].status == found[PLUGIN].status == "ok"
    if wanted:
        assert found["emulated plugin library"].status == "optional"


def test_the_cache_is_measured_and_tried(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FASTWAN_CACHE_MAX_BYTES", "5000000")
    (tmp_path / "key").mkdir()
    (tmp_path / "key" / "engine.plan").write_bytes(bytes(3_000_000))
    assert by_name(diagnose())["cache"].detail == f"3 MB of 5 MB in {tmp_path}"
    blocker = tmp_path / "file"
    blocker.touch()
    monkeypatch.setenv("FASTWAN_CACHE_DIR", str(blocker / "cache"))
    found = by_name(diagnose())["cache"]
    assert found.status == "missing"
    assert "FASTWAN_CACHE_DIR" in found.fix


def test_a_full_disk_is_seen(machine: Machine) -> None:
    machine.free = doctor.NEEDED_DISK_BYTES
    assert by_name(diagnose())["disk here"].status == "ok"
    machine.free -= 1
    assert by_name(diagnose())["disk here"].status == "optional"


def test_the_text_shows_fixes_literally(machine: Machine) -> None:
    from rich.console import Console

    machine.broken["torch"] = ModuleNotFoundError("No module named 'torch'", name="torch")
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(render(diagnose(load=True)))
    text = console.export_text()
    assert how_to_install("build") in text
    assert text.index("Packages") < text.index("This machine can")


def test_the_command_prints_one_object(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def noisy(name: str, package: str | None = None) -> ModuleType:
        print("a package that greets on stdout")
        return ModuleType(name)

    assert main.commands["doctor"].name == "doctor"  # so that its module is there
    monkeypatch.setattr("fastwan.doctor.importlib.import_module", noisy)
    result = CliRunner().invoke(main, ["doctor", "--json"])
    assert result.exit_code == 0
    findings = json.loads(result.stdout)["findings"]
    assert {"group", "name", "status", "detail", "fix"} == findings[0].keys()
    assert len(findings) == len(diagnose())


def test_this_machine_can_be_looked_at() -> None:
    found = by_name(diagnose())
    assert found["Python"].status == "ok"
    assert {EXPORT, CPU, GPU, PLUGIN} <= found.keys()
