"""A server that makes pictures one by one, over HTTP, for those who watch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from testkit.fake_player import WAIT
from testkit.picture_player import Listening, PicturePlayer, listening


@pytest.fixture
def player() -> PicturePlayer:
    return PicturePlayer()


@pytest.fixture
def server(tmp_path: Path, player: PicturePlayer) -> Iterator[Listening]:
    with listening(tmp_path / "videos", player) as server:
        yield server


@pytest.fixture
def client(server: Listening) -> Iterator[Any]:
    with httpx2.Client(base_url=server.address, timeout=WAIT) as client:
        yield client
