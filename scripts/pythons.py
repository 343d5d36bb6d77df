"""Try the package on every Python that it declares, without leaving anything behind.

    python scripts/pythons.py [VERSION ...]

For each the dependencies of all extras have to resolve to wheels at the pinned versions. Where an
interpreter of it is found, every file has to compile there, the modules that need nothing beyond
the extra `cpu` have to import, and the command has to run. What cannot be tried, for want of uv, an
index or an interpreter, is skipped and says so. Exits 1 where something was tried and failed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PLATFORM = "x86_64-manylinux_2_34"
SDISTS = ("tensorrt-rtx-cu13", "tensorrt-lean-cu13", "tensorrt-cu13")
"""Published as sdists alone, which name wheels and compile nothing."""
UNREACHABLE = ("error sending request", "failed to fetch", "lookup address", "timed out")
"""Words of uv, in lower case, where an index does not answer."""

IMPORT = """
import importlib, pkgutil, sys

import fastwan
from fastwan.install import EXTRAS

brought = set(EXTRAS["cpu"])
others = {name.partition(".")[0] for names in EXTRAS.values() for name in names} - brought
done, failed = 0, []
for module in pkgutil.walk_packages(fastwan.__path__, "fastwan.", onerror=lambda name: None):
    try:
        importlib.import_module(module.name)
        done += 1
    except ModuleNotFoundError as error:
        if (error.name or "fastwan").partition(".")[0] not in others:
            failed.append(f"{module.name}: {error}")
    except Exception as error:
        failed.append(f"{module.name}: {error!r}")
print(f"{done} modules import")
sys.exit("; ".join(failed) or 0)
"""


class Outcome(NamedTuple):
    """What came of an attempt: `passed` is None where it could not be made."""

    passed: bool | None
    told: str


def uv(*words: str | Path, cwd: Path = ROOT) -> Outcome:
    """Run uv; a failure to reach an index is no failure of the project."""
    # The shims of pyenv answer for the version that is chosen alone.
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    path = [os.environ.get("PATH", ""), *map(str, sorted(pyenv.glob("versions/*/bin")))]
    environment = {**os.environ, "PATH": ":".join(path), "UV_PYTHON_DOWNLOADS": "never"}
    if index := os.environ.get("PIP_INDEX_URL"):
        environment.setdefault("UV_DEFAULT_INDEX", index)
    program = shutil.which("uv") or str(Path(sys.executable).with_name("uv"))
    try:
        done = subprocess.run(
            [program, "--quiet", "--no-progress", *words],
            cwd=cwd, env=environment, capture_output=True, text=True,
        )  # fmt: skip
    except OSError:
        return Outcome(None, "uv is not installed")
    said = " ".join(done.stderr.split())
    if done.returncode == 0:
        return Outcome(True, said)
    if any(word in said.lower() for word in UNREACHABLE):
        return Outcome(None, "no package index answers")
    return Outcome(False, said)


def declared_versions() -> list[str]:
    """Versions of Python that the package's metadata names."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    heads = (each.rpartition(" ")[2] for each in project["classifiers"])
    return [each for each in heads if each.startswith("3.")]


def resolve(version: str) -> Outcome:
    """Find a wheel of every dependency of every extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = [line.partition("==")[0] for line in lines if "==" in line]
    words: list[str | Path] = ["pip", "compile", "pyproject.toml", "-c", "constraints.txt"]
    words += ["--python-version", version, "--python-platform", PLATFORM]
    words += [f"--extra={name}" for name in project["optional-dependencies"]]
    words += [f"--only-binary={name}" for name in pinned if name not in SDISTS]
    with tempfile.TemporaryDirectory() as folder:
        done = uv(*words, "--output-file", Path(folder, "resolved.txt"))
    return done._replace(told="resolves") if done.passed else done


def run_there(version: str) -> Outcome:
    """Install the extra `cpu` in a new environment, import the modules, run the command."""
    if not (found := uv("python", "find", version)).passed:
        return Outcome(None, found.told if found.passed is None else "no interpreter")
    with tempfile.TemporaryDirectory() as folder:
        python = Path(folder, "venv", "bin", "python")
        made = uv("venv", "--python", version, Path(folder, "venv"))
        if made.passed:
            # setuptools leaves what it builds beside the sources.
            left = shutil.ignore_patterns("build", "dist", "*.egg-info", ".*")
            copy = shutil.copytree(ROOT, Path(folder, "copy"), symlinks=True, ignore=left)
            wanted = f"{copy}[cpu]"
            made = uv("pip", "install", "--python", python, "-c", "constraints.txt", wanted)
        if not made.passed:
            return made
        site = next(Path(folder, "venv", "lib").glob("python*/site-packages"))
        for words in (
            ("-W", "error", "-m", "compileall", "-q", "-f", str(site / "fastwan")),
            ("-m", "fastwan", "plan", "--shape", "832x480x81"),
            ("-c", IMPORT),
        ):
            done = subprocess.run(
                [python, *words], cwd=folder, capture_output=True, text=True,
                env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
            )  # fmt: skip
            if done.returncode:
                return Outcome(False, " ".join((done.stdout + done.stderr).split())[-1000:])
    return Outcome(True, done.stdout.strip())


def main(versions: Sequence[str]) -> int:
    """Try the versions; the exit code."""
    code = 0
    for version in versions or declared_versions():
        outcomes = [resolve(version), run_there(version)]
        marks = {True: "", None: "skipped: ", False: "FAILED: "}
        told = [f"{marks[each.passed]}{each.told}" for each in outcomes]
        print(f"Python {version}: {', '.join(told)}", flush=True)
        code |= any(each.passed is False for each in outcomes)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
