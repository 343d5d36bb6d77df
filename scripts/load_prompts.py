"""What the load asks for."""

from __future__ import annotations

PROMPTS = 8
"""Different videos, one after the other."""

SEED = 7


def prompt(number: int) -> str:
    """Prompt of a request."""
    return f"A red fox in the snow, number {number % PROMPTS}."
