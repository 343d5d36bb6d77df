"""``python -m fastwan`` is ``fastwan-export``."""

from __future__ import annotations

from fastwan.cli import main

if __name__ == "__main__":
    main(prog_name="fastwan-export")
