"""The JSON schemas of what the commands print: ``python -m fastwan.quality.schemas docs/schema``.

They are generated from the models and committed; a test holds the files to them, and the output of
every command to the files.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from fastwan.cache_list import CacheReport
from fastwan.comfyui.install import ComfyuiReport
from fastwan.doctor import DoctorReport
from fastwan.export.checkpoint.synthetic import CheckpointReport
from fastwan.plugins.build import PluginReport
from fastwan.quality.bench_report import BenchReport
from fastwan.quality.compare.report import CompareReport
from fastwan.quality.findings import GateReport
from fastwan.quality.goldens.record import GoldensReport
from fastwan.quality.inspection import BuildReport, InspectReport, SwapReport
from fastwan.quality.plan_report import PlanReport
from fastwan.quality.selftest.report import SelftestReport
from fastwan.quality.verify.report import VerifyReport
from fastwan.runtime.report import GenerateReport
from fastwan.schema import Report
from fastwan.serve.triton.repository import TritonReport

REPORTS: dict[str, type[Report]] = {
    report.model_fields["kind"].default: report
    for report in (
        CheckpointReport, BuildReport, SwapReport, InspectReport, CompareReport, PlanReport,
        GenerateReport, BenchReport, VerifyReport, GateReport, GoldensReport, SelftestReport,
        PluginReport, ComfyuiReport, TritonReport, CacheReport, DoctorReport,
    )
}  # fmt: skip
"""By command; the name is also the report's ``kind``."""


class _Untitled(GenerateJsonSchema):
    """A property's title would only repeat its name."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def json_schema(report: type[Report]) -> dict[str, Any]:
    """JSON schema (draft 2020-12) of what a command prints; ``label`` says how a figure was got."""
    schema = report.model_json_schema(mode="serialization", schema_generator=_Untitled)
    fields = report.model_fields
    name = f"{fields['kind'].default}:{fields['schema_version'].default}"
    head = {"$schema": GenerateJsonSchema.schema_dialect, "$id": f"urn:fastwan-export:{name}"}
    return {**head, **schema}


def schema_files() -> dict[str, str]:
    """Contents of the published files by name."""
    return {
        f"{command}.json": json.dumps(json_schema(report), indent=1) + "\n"
        for command, report in REPORTS.items()
    }


if __name__ == "__main__":
    for name, text in schema_files().items():
        Path(sys.argv[1], name).write_text(text, encoding="utf-8")
