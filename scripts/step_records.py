"""Engines, regions and layer records of a bundle as one small file, for tests/quality.

    python scripts/step_records.py BUNDLE tests/quality/full_size.json.gz

BUNDLE is a real build of the synthetic 1.3 B checkpoint, `--components dit,decoder`.
"""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

from fastwan.bundle import Bundle, open_bundle


def step_records(bundle: Bundle) -> bytes:
    """The compressed file; the same bytes for the same engines."""
    manifest = bundle.manifest
    engines = {
        name: engine.model_dump(mode="json", exclude={"linears"})
        for name, engine in manifest.engines.items()
    }
    regions = {name: region.model_dump(mode="json") for name, region in manifest.regions.items()}
    parts = {"engines": engines, "regions": regions, "layers": bundle.layers}
    return gzip.compress(json.dumps(parts).encode(), 9, mtime=0)


if __name__ == "__main__":
    Path(sys.argv[2]).write_bytes(step_records(open_bundle(sys.argv[1])))
