"""A repository of two commits on a stand-in hub, and fetching it as a build does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fastwan.hub.repository import open_repository
from testkit import stand_in_hub
from testkit.stand_in_hub import COMMITS, REPO, StandInHub

OLD, NEW = COMMITS[:2]
FIRST = {
    "README.md": b"# A model",
    "config.json": b'{"a": 1}',
    "weights/a[1].safetensors": bytes(range(256)) * 40,
    "weights/b.safetensors": bytes(1000),
}
SECOND = FIRST | {"config.json": b'{"a": 2}', "weights/b.safetensors": bytes(1001)}
NEEDED = ["config.json", "weights/a[1].safetensors", "weights/b.safetensors"]
"""All files but the first, which nobody needs."""


@contextmanager
def two_commits(monkeypatch: pytest.MonkeyPatch, home: Path) -> Iterator[StandInHub]:
    """A hub whose main branch is at the older of the commits, and a cache in `home`."""
    stand_in = StandInHub({OLD: FIRST, NEW: SECOND}, {"main": OLD, "v1": OLD})
    with stand_in_hub.serve(stand_in) as address:
        stand_in_hub.use(monkeypatch, address, home)
        yield stand_in


def fetch(source: str = REPO, revision: str | None = None, **options: Any) -> Path:
    """Fetch `NEEDED` as a build does."""
    repository = open_repository(source, revision)
    folder = repository.get(NEEDED, **options)
    repository.keep()
    return folder


def content(folder: Path) -> dict[str, bytes]:
    """What was fetched."""
    return {name: (folder / name).read_bytes() for name in NEEDED}


def of(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """What should have been."""
    return {name: files[name] for name in NEEDED}
