"""Where finished work is kept, and how much of it."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Literal

from fastwan.errors import EnvironmentLacks

DIRECTORY_VARIABLE = "FASTWAN_CACHE_DIR"
SIZE_VARIABLE = "FASTWAN_CACHE_MAX_BYTES"
DEFAULT_MAX_BYTES = 30 << 30


def cache_root() -> Path:
    """``$FASTWAN_CACHE_DIR``, or ``fastwan`` in the user's cache folder.

    Raises:
        EnvironmentLacks: this user has no home folder.
    """
    named = os.environ.get(DIRECTORY_VARIABLE)
    try:
        if named:
            return Path(os.path.abspath(Path(named).expanduser()))
        if sys.platform == "win32":
            base = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
        else:
            # The XDG specification has relative values ignored.
            base = os.environ.get("XDG_CACHE_HOME") or ""
            base = base if os.path.isabs(base) else "~/.cache"
        return Path(base).expanduser() / "fastwan"
    except RuntimeError:
        raise EnvironmentLacks(
            "no home folder to keep a cache in",
            where=named or "~",
            fix=f"set {DIRECTORY_VARIABLE} to a folder that can be written",
        ) from None


def cache_dir(kind: Literal["exports", "engines", "runtime", "plugins"]) -> Path:
    """Folder of one kind of finished work; see `cache_root`."""
    return cache_root() / kind


def max_cache_bytes() -> int:
    """``$FASTWAN_CACHE_MAX_BYTES`` or 30 GiB: what all entries together may take.

    Raises:
        EnvironmentLacks: the variable is no number of bytes.
    """
    text = os.environ.get(SIZE_VARIABLE, "")
    if not text:
        return DEFAULT_MAX_BYTES
    # int() also takes signs, spaces, underscores and other scripts' digits.
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise EnvironmentLacks(
            f"{text!r} is no number of bytes",
            where=SIZE_VARIABLE,
            fix=f"digits alone, e.g. {DEFAULT_MAX_BYTES}",
        )
    return int(text)
