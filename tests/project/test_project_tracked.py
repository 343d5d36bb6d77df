"""What is tracked: folders that the project has, and nothing that a build leaves behind."""

from __future__ import annotations

from pathlib import Path

import pytest

TOP = {
    ".ci", ".gitignore", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "README.md",
    "THIRD_PARTY_NOTICES.md", "action.yml", "benchmarks", "constraints.txt", "docs", "engines",
    "export", "plugins", "pyproject.toml", "runtime", "scripts", "src", "tests",
}  # fmt: skip
"""Files and folders at the root; action.yml is where GitHub looks for it."""

BINARY = {".gz", ".png"}


def strays(names: list[Path]) -> list[str]:
    """Of `names`, those with no place at the root."""
    return [str(name) for name in names if name.parts[0] not in TOP]


def binaries(root: Path, names: list[Path]) -> list[str]:
    """Of `names`, those of another format than text, records and pictures."""
    return [
        str(name)
        for name in names
        if name.suffix not in BINARY
        and (root / name).is_file()
        and b"\0" in (root / name).read_bytes()
    ]


def test_every_tracked_file_has_a_place(root: Path, tracked: list[Path]) -> None:
    assert len(tracked) > 100
    assert strays(tracked) == []
    assert binaries(root, tracked) == []


@pytest.mark.parametrize(
    ("name", "content", "stray", "binary"),
    [
        ("libfastwan.sm_90.cubin", b"\x7fELF\0", True, True),
        ("notes.txt", b"text", True, False),
        ("plugins/libfastwan.so", b"\x7fELF\0", False, True),
        ("plugins/csrc/kernel.cu", b"text", False, False),
        ("docs/images/frame.png", b"\x89PNG\0", False, False),
    ],
)
def test_what_a_build_leaves_is_seen(
    tmp_path: Path, name: str, content: bytes, stray: bool, binary: bool
) -> None:
    file = tmp_path / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    assert strays([Path(name)]) == [name] * stray
    assert binaries(tmp_path, [Path(name)]) == [name] * binary
