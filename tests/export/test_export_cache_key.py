"""The key of the export's cache: which edits of the package change it."""

from __future__ import annotations

import ast
import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import fastwan
from fastwan.export.cache import content_key, fingerprint, graph_sources

PACKAGE = Path(fastwan.__file__).resolve().parent
EXPORT = """
import json, sys
from dataclasses import replace
from pathlib import Path

from fastwan.config import RECIPES, VideoShape
from fastwan.export.cache import ExportCache
from fastwan.export.checkpoint.reader import open_checkpoint
from fastwan.export.checkpoint.synthetic import make_checkpoint
from fastwan.export.dit_onnx import export_dit

folder = Path(sys.argv[1])
make_checkpoint(folder / "checkpoint", size="tiny")
read = open_checkpoint(str(folder / "checkpoint"), components=("dit",))
config = replace(read.dit_config, num_layers=1)
(folder / "out").mkdir()
export_dit(
    read.transformer, config, VideoShape(32, 32, 5), RECIPES["nvfp4"], folder / "out",
    cache=ExportCache(folder / "cache"),
)
print(json.dumps([name for name in sys.modules if name.split(".")[0] == "fastwan"]))
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package without its links, as a wheel holds it."""
    target = tmp_path_factory.mktemp("package") / "fastwan"
    return Path(
        shutil.copytree(PACKAGE, target, ignore=shutil.ignore_patterns("__pycache__", "csrc"))
    )


def test_a_copy_of_the_package_has_the_same_key(copy: Path) -> None:
    assert fingerprint(copy) == fingerprint(PACKAGE)


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("config.py", True),
        ("manifest.py", True),
        ("parallel.py", True),
        ("files.py", True),
        ("plugins/packing.py", True),
        ("plugins/reference.py", True),
        ("export/models/wan.py", True),
        ("export/passes/hoist.py", True),
        ("export/weights.py", True),
        ("export/brand_new.py", True),
        ("brand_new/module.py", True),
        ("runtime/model/loop.py", False),
        ("engines/build.py", False),
        ("quality/brand_new.py", False),
        ("cli.py", False),
        ("commands/brand_new.py", False),
        ("export/notes.md", False),
    ],
)
def test_an_edit_changes_the_key_where_it_can_change_a_graph(
    copy: Path, file: str, changes: bool
) -> None:
    before = fingerprint(copy)
    path = copy / file
    content = path.read_bytes() if path.exists() else None
    path.parent.mkdir(exist_ok=True)
    path.write_bytes((content or b"") + b"\n# edited\n")
    try:
        assert (fingerprint(copy) != before) == changes
    finally:
        path.unlink()
        if content is not None:
            path.write_bytes(content)
    assert fingerprint(copy) == before


def test_a_module_that_moves_changes_the_key(copy: Path) -> None:
    before = fingerprint(copy)
    (copy / "files.py").rename(copy / "paths.py")
    try:
        assert fingerprint(copy) != before
    finally:
        (copy / "paths.py").rename(copy / "files.py")


def test_the_key_of_an_entry_holds_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    before = content_key("dit", {})
    monkeypatch.setattr("fastwan.export.cache._own_fingerprint", lambda: "other")
    assert content_key("dit", {}) != before


def own_imports(file: Path) -> Iterator[str]:
    """Modules of the package that a file imports, at its top or in a function.

    Not those for the type checker alone, and not what the package hands out by name when it is
    asked for: an export that asks is refused by the import rules.
    """
    for node in running(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] == "fastwan")


def running(node: ast.AST) -> Iterator[ast.AST]:
    """A node and those below it that an export can run."""
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return
    if isinstance(node, ast.FunctionDef) and node.name == "__getattr__":
        return
    yield node
    for child in ast.iter_child_nodes(node):
        yield from running(child)


def test_imports_are_seen_where_they_run(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(
        "import fastwan.one\n"
        "def work():\n    from fastwan.two import x\n"
        "if TYPE_CHECKING:\n    import fastwan.three\n"
        "def __getattr__(name):\n    import fastwan.four\n"
    )
    assert set(own_imports(tmp_path / "a.py")) == {"fastwan.one", "fastwan.two", "fastwan.two.x"}


def file_of(module: str) -> Path | None:
    """Path of a module relative to the package; None for a name that is no module."""
    stem = PACKAGE.joinpath(*module.split(".")[1:])
    for path in (stem / "__init__.py", stem.with_suffix(".py")):
        if path.is_file():
            return path.relative_to(PACKAGE)
    return None


def test_everything_that_export_imports_is_in_the_key() -> None:
    covered = set(graph_sources(PACKAGE))
    waiting = [path for path in covered if path.parts[0] == "export"]
    reached = set(waiting)
    assert len(reached) > 20
    while waiting:
        for module in own_imports(PACKAGE / waiting.pop()):
            path = file_of(module)
            if path is not None and path not in reached:
                reached.add(path)
                waiting.append(path)
    assert {Path("config.py"), Path("manifest.py"), Path("plugins/packing.py")} <= reached
    assert reached <= covered


@pytest.mark.slow
def test_everything_that_an_export_loads_is_in_the_key(tmp_path: Path) -> None:
    if importlib.util.find_spec("modelopt") is None:
        pytest.skip("nvidia-modelopt is not installed")
    done = subprocess.run(
        [sys.executable, "-c", EXPORT, str(tmp_path)], capture_output=True, text=True, check=True
    )
    loaded = json.loads(done.stdout.splitlines()[-1])
    files = {file_of(module) for module in loaded}
    assert Path("plugins/packing.py") in files
    assert files - {None} <= set(graph_sources(PACKAGE))
