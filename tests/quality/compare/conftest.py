"""A bundle that is not quantised, beside the tiny one."""

from __future__ import annotations

from pathlib import Path

import pytest

from testkit.once import Once
from testkit.tiny_bundles import guided_bundle


@pytest.fixture(scope="session")
def unquantised_bundle(once: Once, tiny_checkpoint: Path) -> Path:
    """Transformer and decoder of the tiny checkpoint in bf16, for an Ada GPU; read only."""
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx-cu13 is not installed")
    return guided_bundle(once, tiny_checkpoint)
