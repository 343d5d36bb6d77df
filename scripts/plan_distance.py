"""How near `plan` is: what it derives from one bundle, beside other bundles at their own shapes.

    python scripts/plan_distance.py BUNDLE OTHER...

BUNDLE and each OTHER are builds of one model with `--components dit,decoder`, which differ in
their shape alone. Prints by how much the derived bytes, times and memory of a video are more than
those that `inspect` says of OTHER; all are predicted.
"""

from __future__ import annotations

import sys

from fastwan.bundle import open_bundle
from fastwan.quality.built_records import BuiltRecords
from fastwan.quality.report import inspect_bundle
from fastwan.quality.video_plan import PlanSpec, planned
from fastwan.shapes import shape_text

ONCE = "tables"
"""Stage that runs when a bundle is loaded, which no video counts."""


def main(path: str, others: list[str]) -> int:
    """Print a line for each of the other bundles."""
    records = BuiltRecords.of(open_bundle(path))
    for other in others:
        bundle = open_bundle(other)
        shape, target = bundle.manifest.onnx.model.shape, bundle.manifest.target
        row = planned(records, shape, PlanSpec(targets=(target,)))
        seen, video = inspect_bundle(bundle), row.targets[target]
        assert seen.prediction is not None
        assert seen.device_bytes is not None
        stages = [each for name, each in seen.prediction.stages.items() if name != ONCE]
        pairs = {
            "operations": (video.flops, sum(each.flops for each in stages)),
            "bytes": (video.bytes_moved, sum(each.bytes_moved for each in stages)),
            "peak time": (video.video_ms, seen.prediction.video_ms),
            "attained time": (video.sober_video_ms, seen.prediction.sober_video_ms),
            "memory": (row.device_bytes.total, seen.device_bytes.total),
        }
        more = [f"{name} {a / b - 1:+.2%}" for name, (a, b) in pairs.items() if a and b]
        print(f"{shape_text(shape)} for {target}: {', '.join(more)} (predicted)")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]) if len(sys.argv) > 2 else __doc__)
