"""The counted cost of the attention node, and that the page about it says the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fastwan.plugins.loader import PluginLibrary, checkout_root
from fastwan.plugins.regions.sage_attention3 import SageAttention3, SageAttributes

FULL = SageAttention3(1, 32760, SageAttributes(12, 32760))


def test_prologue_moves_less_than_425_megabytes() -> None:
    assert sum(FULL.prologue_traffic().values()) < 425e6


def test_prologue_traffic_of_a_small_region_by_hand() -> None:
    region = SageAttention3(2, 140, SageAttributes(3, 130))
    assert region.prologue_traffic() == {
        "read qkv": 2 * 130 * 3 * 384 * 2,
        "read RoPE tables": 2 * 130 * 64 * 4,
        "read bias, norms, scales": (3 + 1 + 1) * 384 * 2 + 12,
        "write packed q, k, v": 3 * 2 * 3 * 256 * 72,
        "write zero term": 2 * 3 * 256 * 4,
        "write rows behind the tokens": 2 * 10 * 384 * 2,
    }


def test_operations_are_two_products_of_two() -> None:
    region = SageAttention3(2, 100, SageAttributes(3, 100))
    assert region.operations() == 2 * (2 * 3 * 2 * 100 * 100 * 128)


def test_the_published_path_pads_and_slices_only_where_it_has_to() -> None:
    whole = SageAttention3(1, 256, SageAttributes(12, 256)).published_traffic()
    assert whole["pad q, k, v"] == whole["slice output"] == 0
    assert FULL.published_traffic()["pad q, k, v"] > 0


def test_the_workspace_is_what_the_two_launches_exchange(library: PluginLibrary) -> None:
    written = FULL.prologue_traffic()
    exchanged = written["write packed q, k, v"] + written["write zero term"]
    assert FULL.split_bytes == 192 * (128 * 128 + 2 * 128) * 4
    assert 0 <= FULL.workspace_bytes - exchanged - FULL.split_bytes < 8192
    assert library.workspace_bytes(FULL) == FULL.workspace_bytes


@pytest.fixture(scope="module")
def page() -> dict[str, float]:
    """Rows of the page's tables: name to megabytes."""
    root = checkout_root()
    if root is None:
        pytest.skip("not a source checkout")
    text = Path(root, "docs", "attention-cost.md").read_text()
    rows = re.findall(r"^\| ([^|*]+?) \|(?:.*\|)? +([\d,.]+) \|$", text, re.MULTILINE)
    return {name: float(value.replace(",", "")) for name, value in rows}


def test_the_page_has_every_row(page: dict[str, float]) -> None:
    counted = FULL.prologue_traffic() | FULL.attention_traffic()
    counted |= FULL.published_traffic()
    counted.pop("write rows behind the tokens")
    assert page == {name: pytest.approx(size / 1e6, abs=0.051) for name, size in counted.items()}


@pytest.mark.parametrize("count", ["prologue_traffic", "attention_traffic", "published_traffic"])
def test_the_page_has_the_sums(count: str) -> None:
    root = checkout_root()
    if root is None:
        pytest.skip("not a source checkout")
    total = sum(getattr(FULL, count)().values()) / 1e6
    text = Path(root, "docs", "attention-cost.md").read_text()
    assert f"**{total:,.1f}**" in text
