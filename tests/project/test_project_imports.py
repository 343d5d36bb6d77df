"""Imports: light where they must be, possible where packages are missing, in one direction."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from fastwan.cli import COMMANDS

ABSENT = [
    "tensorrt", "tensorrt_rtx", "tensorrt_lean", "modelopt", "av", "transformers", "diffusers",
    "taehv", "ray",
]  # fmt: skip
HEAVY = [
    *ABSENT, "torch", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "numpy", "safetensors",
    "polygraphy", "skimage", "fastapi", "starlette", "uvicorn", "prometheus_client",
]  # fmt: skip
FOLDERS = ("export", "engines", "runtime", "plugins")

IMPORT_ALL = """
import importlib, json, pkgutil, sys

name, absent = sys.argv[1], set(json.loads(sys.argv[2]))

class Absent:
    def find_spec(self, module, path=None, target=None):
        if module.partition(".")[0] in absent:
            raise ModuleNotFoundError(f"No module named {module!r}", name=module)

sys.meta_path.insert(0, Absent())
failed, done = {}, 0
package = importlib.import_module(name)
for module in pkgutil.walk_packages(package.__path__, name + ".", onerror=lambda each: None):
    try:
        importlib.import_module(module.name)
        done += 1
    except Exception as error:
        failed[module.name] = repr(error)
print(json.dumps({"failed": failed, "done": done, "loaded": sorted(sys.modules)}))
"""

HELP = """
import json, sys

from fastwan.cli import main

try:
    main(sys.argv[1:])
except SystemExit as stop:
    assert not stop.code, stop.code
print(json.dumps(sorted(sys.modules)))
"""


WRONG = """
import json, sys

from fastwan.cli import main

codes = []
for words in sys.argv[1:]:
    try:
        main(words.split())
    except SystemExit as stop:
        codes.append(stop.code)
print(json.dumps(codes))
print(json.dumps(sorted(sys.modules)))
"""


def import_all(
    package: str, *, path: Path | None = None, absent: Sequence[str] = ABSENT
) -> dict[str, object]:
    completed = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, package, json.dumps(absent)],
        capture_output=True, text=True, check=True, cwd=path,
    )  # fmt: skip
    return json.loads(completed.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def bare() -> dict[str, object]:
    return import_all("fastwan")


def test_every_module_imports_in_a_bare_environment(bare: dict[str, object], root: Path) -> None:
    assert bare["failed"] == {}
    files = [
        file
        for folder in (*FOLDERS, "src/fastwan")
        for file in (root / folder).rglob("*.py")
        if not file.is_symlink()
    ]
    seen = {file.resolve() for file in files}
    assert bare["done"] == len(seen) - 1  # all but fastwan itself


@pytest.mark.parametrize("line", ["import av", "import json"])
def test_the_bare_environment_lacks_packages(tmp_path: Path, line: str) -> None:
    package = tmp_path / "sample"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "module.py").write_text(line)
    failed = import_all("sample", path=tmp_path)["failed"]
    assert bool(failed) == (line == "import av")


def test_no_folder_is_imported_under_its_own_name(bare: dict[str, object]) -> None:
    loaded = bare["loaded"]
    assert isinstance(loaded, list)
    assert "fastwan.export" in loaded
    assert not set(FOLDERS) & set(loaded)
    assert not set(FOLDERS) & sys.modules.keys()


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_imports_nothing_heavy(command: str) -> None:
    completed = subprocess.run(
        [sys.executable, "-c", HELP, *command.split(), "--help"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    *text, loaded = completed.stdout.splitlines()
    assert text[0].startswith("Usage:")
    assert "click" in json.loads(loaded)
    assert not set(HEAVY) & set(json.loads(loaded))


def test_what_is_wrong_with_the_words_is_said_before_anything_heavy_is_imported(
    tmp_path: Path,
) -> None:
    """Each in one process of its own would take as long as the commands."""
    there = tmp_path / "there"
    there.mkdir()
    (there / "note.txt").touch()
    words = (
        "inspect nowhere", "inspect {there}", "generate nowhere fox -o x.mp4",
        "generate nowhere fox -o x.mp4 --repeat 0", "bench nowhere", "bench nowhere --runs 0",
        "verify nowhere", "verify nowhere --lora x", "compare nowhere nowhere",
        "gate nowhere --against x", "selftest nowhere", "goldens make nowhere x",
        "swap-weights nowhere --checkpoint nowhere -o x", "build-engine --checkpoint nowhere -o x",
        "build-engine --checkpoint owner/name -o {there}", "make-checkpoint {there} --size tiny",
        "build-engine --checkpoint owner/name -o x --height 17",
        "build-engine --checkpoint owner/name -o x --components dot",
        "plan --model none", "serve nowhere", "serve nowhere --port 99999",
    )  # fmt: skip
    completed = subprocess.run(
        [sys.executable, "-c", WRONG, *(each.format(there=there) for each in words)],
        capture_output=True, text=True, check=True, cwd=tmp_path,
    )  # fmt: skip
    codes, loaded = map(json.loads, completed.stdout.splitlines())
    assert codes == [2] * len(words), completed.stderr
    assert "click" in loaded
    assert not set(HEAVY) & set(loaded)


def test_doctor_imports_what_takes_seconds_only_when_asked() -> None:
    completed = subprocess.run(
        [sys.executable, "-c", HELP, "doctor", "--json"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    loaded = json.loads(completed.stdout.splitlines()[-1])
    assert "onnx" in loaded
    assert not {"torch", "modelopt", "onnxscript"} & set(loaded)


SHARED = (
    "bundle", "bundle_folder", "cache_entry", "cache_folder", "config", "console",
    "content_cache", "cuda_driver", "dtypes", "errors", "files", "held_folder", "hub.bundle",
    "hub.cache", "hub.download",
    "hub.errors", "hub.ids", "hub.links", "hub.repository", "install", "manifest",
    "manifest_exported", "manifest_fields", "manifest_reader", "manifest_records",
    "manifest_sources", "onnx_guard", "outputs", "ownership", "parallel", "progress", "schema",
    "shapes", "staging", "strict_json", "tables",
)  # fmt: skip
COMMON = {"fastwan", *(f"fastwan.{name}" for name in SHARED)}
MAY_IMPORT = {
    "plugins": {"fastwan.plugins"},
    "export": {"fastwan.export", "fastwan.plugins"},
    "engines": {
        "fastwan.engines", "fastwan.export.attentions", "fastwan.export.passes",
        "fastwan.export.recipes", "fastwan.plugins",
    },
    "runtime": {"fastwan.runtime", "fastwan.plugins"},
    "runtime/model": {"fastwan.runtime.model"},
    "runtime/recording": {"fastwan.runtime.model", "fastwan.runtime.recording", "fastwan.plugins"},
    "runtime/device": {
        "fastwan.runtime.model", "fastwan.runtime.recording", "fastwan.runtime.device",
        "fastwan.runtime.components", "fastwan.runtime.text", "fastwan.runtime.timings",
        "fastwan.plugins",
    },
    "runtime/emulated": {
        "fastwan.runtime.recording", "fastwan.runtime.device", "fastwan.runtime.emulated",
        "fastwan.plugins",
    },
    "runtime/cpu": {
        "fastwan.runtime.model", "fastwan.runtime.cpu", "fastwan.runtime.components",
        "fastwan.runtime.text", "fastwan.runtime.timings",
    },
    "src/fastwan/serve": {"fastwan.runtime", "fastwan.serve"},
    "src/fastwan/comfyui": {
        "fastwan.comfyui", "fastwan.doctor", "fastwan.runtime", "fastwan.failures",
    },
}  # fmt: skip
"""What a folder may import beside COMMON; a name stands for everything below it. The longest row
that a file lies in counts."""

MAY_NOT_IMPORT = {
    "src/fastwan": {"fastwan.cli"},
    "src/fastwan/commands": {"fastwan.cli"},
    "src/fastwan/quality": {"fastwan.cli"},
}
"""The rest of the package may import all but these; only the commands import `quality`."""

ONLY_FOR = {
    "fastwan.comfyui": (
        "src/fastwan/commands/", "src/fastwan/comfyui/", "src/fastwan/quality/schemas.py",
    ),
    "fastwan.commands": ("src/fastwan/cli.py", "src/fastwan/commands/"),
    "fastwan.quality": ("src/fastwan/commands/", "src/fastwan/quality/"),
    "fastwan.serve": (
        "src/fastwan/commands/", "src/fastwan/serve/", "src/fastwan/quality/schemas.py",
    ),
}  # fmt: skip


def imported(tree: ast.AST) -> Iterator[str]:
    """Modules that a file imports, at its top or in a function."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            assert node.module is not None
            if node.module == "fastwan":
                for alias in node.names:
                    yield "fastwan" if alias.name.startswith("_") else f"fastwan.{alias.name}"
            else:
                yield node.module


def below(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def forbidden(file: str, source: str) -> list[str]:
    """Imports in a file of the project that point the wrong way."""
    own = [name for name in imported(ast.parse(source)) if name.partition(".")[0] == "fastwan"]
    wrong = [
        name
        for name in own
        for package, users in ONLY_FOR.items()
        if below(name, package) and not file.startswith(users)
    ]
    folders = [each for each in (*MAY_IMPORT, *MAY_NOT_IMPORT) if file.startswith(each + "/")]
    folder = max(folders, key=len)
    if folder in MAY_NOT_IMPORT:
        return [*wrong, *(name for name in own if name in MAY_NOT_IMPORT[folder])]
    allowed = MAY_IMPORT[folder]
    return [
        *wrong,
        *(n for n in own if n not in COMMON and not any(below(n, each) for each in allowed)),
    ]


def test_imports_point_one_way(root: Path, tracked: list[Path]) -> None:
    wrong = {}
    checked = 0
    for file in tracked:
        if file.suffix != ".py" or file.parts[0] not in (*FOLDERS, "src"):
            continue
        if file.name == "__main__.py":  # it is the command line
            continue
        checked += 1
        if found := forbidden(file.as_posix(), (root / file).read_text()):
            wrong[str(file)] = found
    assert wrong == {}
    assert checked > 50


@pytest.mark.parametrize("folder", [*MAY_IMPORT, *MAY_NOT_IMPORT])
def test_every_folder_with_a_rule_has_files(folder: str, root: Path) -> None:
    assert list((root / folder).rglob("*.py"))


@pytest.mark.parametrize(
    ("file", "bad", "good"),
    [
        ("runtime/x.py", "fastwan.export.models.wan", "fastwan.bundle"),
        ("runtime/x.py", "fastwan.engines.layers", "fastwan.plugins.loader"),
        ("runtime/x.py", "fastwan.quality.bench", "fastwan.runtime.cpu.executor"),
        ("runtime/model/x.py", "fastwan.runtime.recording.tensors", "fastwan.runtime.model.dit"),
        ("runtime/model/x.py", "fastwan.plugins.nvfp4", "fastwan.config"),
        ("runtime/recording/x.py", "fastwan.runtime.device.cuda", "fastwan.runtime.model.dit"),
        ("runtime/device/x.py", "fastwan.runtime.cpu.executor", "fastwan.runtime.components"),
        ("runtime/device/x.py", "fastwan.runtime.outputs", "fastwan.runtime.recording.record"),
        ("runtime/emulated/x.py", "fastwan.runtime.pipeline", "fastwan.runtime.device.session"),
        ("runtime/cpu/x.py", "fastwan.runtime.device.session", "fastwan.runtime.model.dit"),
        ("engines/x.py", "fastwan.export.quantize", "fastwan.export.passes.split_dit"),
        ("engines/x.py", "fastwan.export.weights", "fastwan.export.recipes"),
        ("engines/x.py", "fastwan.export.models.wan", "fastwan.export.attentions"),
        ("export/x.py", "fastwan.engines.layers", "fastwan.plugins.nvfp4"),
        ("plugins/x.py", "fastwan.export.ops", "fastwan.errors"),
        ("src/fastwan/x.py", "fastwan.cli", "fastwan.engines.build"),
        ("src/fastwan/comfyui/x.py", "fastwan.engines.layers", "fastwan.runtime.pipeline"),
        ("src/fastwan/x.py", "fastwan.comfyui.host", "fastwan.runtime.pipeline"),
        ("src/fastwan/x.py", "fastwan.commands.running", "fastwan.engines.build"),
        ("src/fastwan/commands/x.py", "fastwan.cli", "fastwan.quality.report"),
        ("src/fastwan/quality/x.py", "fastwan.commands.options", "fastwan.quality.report"),
        ("src/fastwan/x.py", "fastwan.quality.report", "fastwan.engines.build"),
        ("src/fastwan/quality/x.py", "fastwan.cli", "fastwan.quality.report"),
        ("src/fastwan/quality/x.py", "fastwan.serve.app", "fastwan.quality.report"),
        ("src/fastwan/serve/x.py", "fastwan.engines.build", "fastwan.runtime.pipeline"),
        ("src/fastwan/serve/x.py", "fastwan.quality.report", "fastwan.serve.app"),
    ],
)
def test_a_wrong_direction_is_seen(file: str, bad: str, good: str) -> None:
    parent, _, name = bad.rpartition(".")
    in_function = f"def run():\n    from {bad} import x\n"
    assert forbidden(file, f"import {bad}")
    assert forbidden(file, in_function)
    assert forbidden(file, f"from {bad} import x")
    assert not forbidden(file, in_function.replace(bad, good))
    if parent == "fastwan":
        assert forbidden(file, f"from fastwan import {name}")


TO_BUILD = {
    "diffusers", "jinja2", "matplotlib", "modelopt", "onnx_ir", "onnxscript", "polygraphy",
    "skimage", "torch", "transformers",
}  # fmt: skip
"""What no part of the runtime imports, at the top of a file or in a function; torch only for
types. What a caller gives of torch's is found in what the process has imported."""

TORCH_DEVICE = "runtime/emulated/"
"""The one part of the runtime that computes with torch."""


def heavy_imports(file: str, source: str) -> set[str]:
    """Packages for building that a file of the runtime imports."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    found = {name.partition(".")[0] for name in imported(tree)} & TO_BUILD
    return found - {"torch"} if file.startswith(TORCH_DEVICE) else found


def test_the_runtime_imports_nothing_to_build_with(root: Path, tracked: list[Path]) -> None:
    files = [f for f in tracked if f.parts[0] == "runtime" and f.suffix == ".py"]
    assert len(files) > 50
    found = {str(f): heavy_imports(f.as_posix(), (root / f).read_text()) for f in files}
    assert {name: heavy for name, heavy in found.items() if heavy} == {}


@pytest.mark.parametrize(
    ("file", "source", "seen"),
    [
        ("runtime/x.py", "def run():\n    import torch", True),
        ("runtime/x.py", "from torch.nn import functional", True),
        ("runtime/x.py", "if TYPE_CHECKING:\n    import torch", False),
        ("runtime/emulated/x.py", "import torch", False),
        ("runtime/emulated/x.py", "import onnx_ir", True),
        ("runtime/x.py", "import numpy", False),
    ],
)
def test_a_heavy_import_of_the_runtime_is_seen(file: str, source: str, seen: bool) -> None:
    assert bool(heavy_imports(file, source)) is seen


def test_the_runtime_is_imported_without_torch() -> None:
    """Nor does what it imports of the shared modules and the plugins."""
    done = import_all("fastwan.runtime", absent=[*ABSENT, *sorted(TO_BUILD)])
    failed, loaded = done["failed"], done["loaded"]
    assert isinstance(failed, dict)
    assert isinstance(loaded, list)
    assert failed
    assert all(name.startswith("fastwan.runtime.emulated.") for name in failed), failed
    assert "fastwan.runtime.device.engines" in loaded
    assert not TO_BUILD & set(loaded)


def test_a_command_imports_no_other() -> None:
    """So that the command line starts as fast however many commands it has."""
    completed = subprocess.run(
        [sys.executable, "-c", HELP, "inspect", "--help"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    loaded = set(json.loads(completed.stdout.splitlines()[-1]))
    modules = {name: f"fastwan.commands.{name.replace('-', '_')}" for name in COMMANDS}
    assert loaded & set(modules.values()) == {modules["inspect"]}
