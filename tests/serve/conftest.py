"""What the tests of the server share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from testkit.fake_player import FakePlayer, serving


@pytest.fixture(scope="session")
def root() -> Path:
    """Root of the checkout."""
    return Path(__file__).resolve().parents[2]


@pytest.fixture
def player() -> FakePlayer:
    return FakePlayer()


@pytest.fixture
def client(tmp_path: Path, player: FakePlayer) -> Iterator[TestClient]:
    """A client of a server over `player`."""
    with serving(tmp_path / "videos", player) as client:
        yield client
