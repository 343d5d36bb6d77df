"""Keys and values that stay from the prompt before: whether a run at full size shows them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fastwan.quality.emulated import checks
from fastwan.quality.emulated.full_size import FullSize
from fastwan.quality.verify.graphs import relative_difference
from fastwan.runtime.device.session import Session


def assert_stale_keys_show(
    full: FullSize, again: Callable[[], FullSize], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hold a sound run within the limit of its first step, and one that prepares one prompt beyond.

    Args:
        full: the sound one.
        again: opens another run of the same bundle.
    """
    prepared: list[Any] = []
    prepare = Session.prepare

    def once(self: Session, prompt_embeds: Any) -> None:
        if not prepared:
            prepare(self, prompt_embeds)
        prepared.append(prompt_embeds)

    latents, timestep, good = full.velocities[0]
    expected = full.reference.velocity(latents, timestep, full.context)
    with full.reference.moved(1):
        moved = full.reference.velocity(latents, timestep, full.context)
    limit = checks.MARGIN * relative_difference(expected, moved)
    assert relative_difference(expected, good) < limit
    monkeypatch.setattr(Session, "prepare", once)
    stale = again()
    _, _, got = stale.velocities[0]
    stale.close()
    assert len(prepared) == 2
    assert not np.array_equal(prepared[0], prepared[1])
    assert relative_difference(expected, got) > limit
