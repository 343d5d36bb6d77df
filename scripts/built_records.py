"""Records of a real build, by which `fastwan-export plan` prices shapes that nobody built.

    python scripts/built_records.py BUNDLE...

Each BUNDLE is a build of the synthetic 1.3 B checkpoint at 832x480x81 with
`--components dit,decoder`; its file in `src/fastwan/quality/built/` is replaced. Also prints what
the row of `plan` says at that shape beside what `inspect` says of the bundle; they are the same.
"""

from __future__ import annotations

import sys
from pathlib import Path

from fastwan.bundle import open_bundle
from fastwan.quality.built_records import BuiltRecords
from fastwan.quality.report import inspect_bundle
from fastwan.quality.video_plan import PlanSpec, planned

FOLDER = Path(__file__).resolve().parent.parent / "src" / "fastwan" / "quality" / "built"


def main(paths: list[str]) -> int:
    """Write the records of each bundle; 1 if a row differs from what `inspect` says."""
    same = True
    for path in paths:
        bundle = open_bundle(path)
        records = BuiltRecords.of(bundle)
        data = records.packed()
        (FOLDER / records.file).write_bytes(data)
        shape = bundle.manifest.onnx.model.shape
        target = bundle.manifest.target
        row = planned(records, shape, PlanSpec(targets=(target,)))
        seen = inspect_bundle(bundle)
        assert seen.prediction is not None
        pair = (
            (row.targets[target].video_ms, row.device_bytes),
            (seen.prediction.video_ms, seen.device_bytes),
        )
        same = same and pair[0] == pair[1]
        print(f"{records.file}: {len(data):,} bytes; plan {pair[0]}, inspect {pair[1]}")
    return int(not same)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
