"""What is tracked, what is shipped, and what is pinned."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterable
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from testkit.declared import declared_requirements

APACHE_2 = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"
"""SHA-256 of https://www.apache.org/licenses/LICENSE-2.0.txt."""

NEWEST_MINOR = 14
"""Of Python 3, the newest for which every dependency has a wheel; scripts/pythons.sh tries them."""

MAX_LINES = 400
CODE = {".py", ".cu", ".cuh", ".cpp", ".h"}
MACHINE_PATH = re.compile(r"(?:^|[^A-Za-z0-9_.:/])/(?:work|farm|root)/(?!\*)\w")
NATIVE = {".txt", ".cmake", ".cu", ".cuh", ".cpp", ".h", ".map"}
OTHERS = (".py", "/py.typed", ".j2", "/serve.yaml")
RECORDS = "fastwan/quality/built/"
"""What `plan` prices shapes by."""
NODES = "fastwan/comfyui/custom_node/"
"""What is copied into ComfyUI: metadata and workflows beside a module."""
PAGE = "fastwan/serve/page/"
"""Files that the server sends to browsers."""


@pytest.fixture(scope="session")
def project(root: Path) -> dict[str, Any]:
    return tomllib.loads((root / "pyproject.toml").read_text())


@pytest.fixture(scope="session")
def wheel(root: Path, tracked: list[Path], tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Names in a wheel that is built from the tracked files alone, offline."""
    source = tmp_path_factory.mktemp("source")
    for file in tracked:
        target = source / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(root / file, target, follow_symlinks=False)
    built = tmp_path_factory.mktemp("wheel")
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    subprocess.run(
        [sys.executable, "-c", build, str(built)], cwd=source, check=True, capture_output=True
    )
    (archive,) = built.glob("*.whl")
    with zipfile.ZipFile(archive) as opened:
        return set(opened.namelist())


def test_the_wheel_holds_only_the_package(wheel: set[str]) -> None:
    tops = {name.partition("/")[0] for name in wheel}
    assert {re.sub(r"-[\d.]+\.dist-info", ".dist-info", top) for top in tops} == {
        "fastwan",
        "fastwan_export.dist-info",
    }
    for name in wheel:
        if name.startswith("fastwan/") and not name.endswith(OTHERS):
            if name.startswith(RECORDS):
                assert name.endswith(".json.gz"), name
                continue
            if name.startswith(NODES):
                assert name.endswith((".toml", ".json")), name
                continue
            if name.startswith(PAGE):
                assert Path(name).suffix in {".css", ".html", ".js", ".svg"}, name
                continue
            assert name.startswith("fastwan/plugins/"), name
            assert Path(name).suffix in NATIVE, name
    assert any(name.startswith(RECORDS) and name.endswith(".json.gz") for name in wheel)
    licences = {name.partition("/licenses/")[2] for name in wheel if "/licenses/" in name}
    assert licences == {"LICENSE", "THIRD_PARTY_NOTICES.md"}
    assert any(name.startswith(f"{NODES}example_workflows/api/") for name in wheel)


def test_the_wheel_holds_every_module_and_source(wheel: set[str], tracked: list[Path]) -> None:
    folders = ("export", "engines", "runtime", "plugins")
    expected = set()
    for file in tracked:
        if file.parts[0] in folders and file.suffix in NATIVE | {".py"}:
            expected.add(f"fastwan/{file.as_posix()}")
        elif file.parts[:2] == ("src", "fastwan"):
            name = file.relative_to("src").as_posix()
            if file.suffix == ".py" or name.startswith(PAGE):
                expected.add(name)
    assert f"{PAGE}index.html" in expected
    assert expected <= wheel


def test_the_command_is_declared(project: dict[str, Any]) -> None:
    assert project["project"]["scripts"] == {"fastwan-export": "fastwan.cli:main"}


def pins(text: str) -> dict[str, str]:
    """Name and version of each line of a constraints file; every line must be exact."""
    found = {}
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            match = re.fullmatch(r"([A-Za-z0-9._-]+)==([0-9][0-9A-Za-z.]*)", line)
            assert match, f"not an exact public version: {line}"
            name = canonicalize_name(match[1])
            assert name not in found, f"pinned twice: {name}"
            found[name] = match[2]
    return found


def unmet(requirements: list[str], pinned: dict[str, str]) -> list[str]:
    """Requirements without a pin in their range."""
    parsed = [Requirement(each) for each in requirements]
    return [
        str(each)
        for each in parsed
        if not each.specifier.contains(pinned.get(canonicalize_name(each.name), "0a0"))
    ]


def test_pins_satisfy_the_declared_ranges(root: Path, project: dict[str, Any]) -> None:
    pinned = pins((root / "constraints.txt").read_text())
    wanted = [
        each
        for extra, requirements in declared_requirements(root).items()
        for each in requirements
        if extra != "tensorrt" and Requirement(each).name != project["project"]["name"]
    ]
    assert len(wanted) > 20
    assert unmet(wanted, pinned) == []
    assert pinned["torch"] == "2.13.0"


@pytest.mark.parametrize(
    ("pinned", "missing"),
    [({"a-b": "1.5"}, False), ({"a-b": "2.0"}, True), ({"c": "1.5"}, True)],
)
def test_an_unmet_range_is_seen(pinned: dict[str, str], missing: bool) -> None:
    assert bool(unmet(["a_b>=1,<2"], pinned)) is missing


def excluding(
    python: str, distributions: Iterable[Distribution], pinned: dict[str, str]
) -> set[str]:
    """Pinned distributions that ask for another Python, of those installed at their pins."""
    return {
        f"{each.name} asks for {wanted}"
        for each in distributions
        if pinned.get(canonicalize_name(each.name)) == Version(each.version).public
        and (wanted := each.metadata["Requires-Python"])
        and python not in SpecifierSet(wanted)
    }


def test_pins_are_for_every_python_of_the_project(root: Path, project: dict[str, Any]) -> None:
    """From the first release of the oldest: Debian's 3.11 is 3.11.2."""
    oldest = project["project"]["requires-python"].removeprefix(">=")
    pinned = pins((root / "constraints.txt").read_text())
    installed = list(distributions())
    at_pins = [d for d in installed if pinned.get(canonicalize_name(d.name)) == d.version]
    assert len(at_pins) > 50
    assert oldest.count(".") == 1
    assert excluding(f"{oldest}.0", installed, pinned) == set()


@pytest.mark.parametrize(("wanted", "seen"), [(">=3.11", False), (">=3.11.5", True)])
def test_a_pin_for_a_later_python_is_seen(tmp_path: Path, wanted: str, seen: bool) -> None:
    info = tmp_path / "sample-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: sample\nVersion: 1.0\nRequires-Python: {wanted}\n"
    )
    found = excluding("3.11.0", distributions(path=[str(tmp_path)]), {"sample": "1.0"})
    assert bool(found) is seen


def test_the_license_is_apache_2(root: Path, project: dict[str, Any]) -> None:
    assert hashlib.sha256((root / "LICENSE").read_bytes()).hexdigest() == APACHE_2
    assert project["project"]["license"] == "Apache-2.0"


def test_every_code_of_others_in_the_library_is_noticed(root: Path) -> None:
    pinned = (root / "plugins" / "cmake" / "kernel_headers.txt").read_text().splitlines()
    versions = {line.split()[0].partition("==")[2] for line in pinned if "==" in line}
    heads = (root / "THIRD_PARTY_NOTICES.md").read_text().split("\n## ")[1:]
    titles = [head.splitlines()[0] for head in heads]
    assert len(versions) == 3
    assert {title.rpartition(" ")[2] for title in titles} == versions | {"runtime"}


def test_the_project_says_what_it_is(project: dict[str, Any]) -> None:
    declared = project["project"]
    assert declared["authors"] == [{"name": "The fastwan-export project"}]
    assert declared["classifiers"] == sorted(declared["classifiers"])
    oldest = int(declared["requires-python"].removeprefix(">=3."))
    pythons = [each for each in declared["classifiers"] if ":: Python :: 3." in each]
    assert pythons == [
        f"Programming Language :: Python :: 3.{minor}" for minor in range(oldest, NEWEST_MINOR + 1)
    ]


def test_no_tracked_file_names_a_path_of_a_machine(root: Path, tracked: list[Path]) -> None:
    found = []
    for file in tracked:
        if (root / file).is_symlink() or (root / file).is_dir():
            assert not (root / file).readlink().is_absolute(), file
            continue
        text = (root / file).read_bytes().decode("utf-8", errors="replace")
        lines = enumerate(text.splitlines(), 1)
        found += [f"{file}:{number}: {line}" for number, line in lines if MACHINE_PATH.search(line)]
    assert found == []


@pytest.mark.parametrize("folder", ["work", "root"])
def test_a_path_of_a_machine_is_seen(folder: str) -> None:
    assert MACHINE_PATH.search(f'open("/{folder}/someone/data.bin")')
    assert MACHINE_PATH.search(f"/{folder}/someone")
    assert not MACHINE_PATH.search(f'open("{folder}/someone/data.bin")')
    assert not MACHINE_PATH.search(f"https://example.org/{folder}/someone")


def test_files_stay_short(root: Path, tracked: list[Path]) -> None:
    code = [file for file in tracked if file.suffix in CODE]
    lengths = {str(file): len((root / file).read_text().splitlines()) for file in code}
    assert lengths
    long = {n: lines for n, lines in lengths.items() if lines > MAX_LINES}
    assert long == {}


def test_the_folders_are_relative_links(root: Path) -> None:
    for name in ("export", "engines", "runtime", "plugins"):
        assert str((root / "src" / "fastwan" / name).readlink()) == f"../../{name}"
