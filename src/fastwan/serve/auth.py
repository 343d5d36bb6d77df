"""Who asks: a bearer token, or an address where there are no tokens."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from pathlib import Path

from fastwan.errors import BadInput

_SHORTEST = 16
"""Characters of a token."""


class Clients:
    """Tells clients apart.

    Args:
        tokens: that are let in; empty lets everybody in.
    """

    def __init__(self, tokens: Sequence[str]) -> None:
        self._digests = [_digest(token) for token in tokens]

    @property
    def are_private(self) -> bool:
        """Whether a client sees its own jobs only."""
        return bool(self._digests)

    def identify(self, token: str | None, address: str) -> str | None:
        """Name of a client; None for one that is not let in.

        A token is compared with all of them, by hash and in constant time.

        Args:
            token: of the request.
            address: that it came from.
        """
        if not self._digests:
            return f"address {address}"
        digest = _digest(token or "")
        found = [hmac.compare_digest(digest, each) for each in self._digests]
        if not any(found):
            return None
        return f"token {digest.hex()[:16]}"


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def read_tokens(path: Path) -> tuple[str, ...]:
    """Tokens of a file, one a line.

    Raises:
        BadInput: no text, none in it, or a short one.
    """
    try:
        lines = path.read_text("ascii").split("\n")
    except UnicodeDecodeError as error:
        raise BadInput("tokens are not ASCII", where=str(path)) from error
    tokens = tuple(line.strip() for line in lines if line.strip())
    if not tokens:
        raise BadInput("no tokens, one a line", where=str(path))
    if any(len(token) < _SHORTEST or " " in token for token in tokens):
        raise BadInput(
            f"a token is shorter than {_SHORTEST} characters, or has a blank in it",
            where=str(path),
            fix="openssl rand -hex 32",
        )
    return tokens
