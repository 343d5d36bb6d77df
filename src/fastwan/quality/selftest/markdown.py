"""A report as a page to attach to an issue, and as lines for a terminal."""

from __future__ import annotations

from fastwan.quality.selftest.report import Figure, SelftestReport, StageResult
from fastwan.shapes import shape_text

_DEVICES = {
    "cuda": "on the GPU that the bundle is for",
    "emulated": "emulated on a Hopper GPU: the numbers of a Blackwell GPU, not its times",
    "host": "without a GPU",
}


def markdown(report: SelftestReport) -> str:
    """The whole report; what the JSON beside it says, for a reader."""
    bundle = report.bundle
    versions = ", ".join(f"{name} {version}" for name, version in bundle.versions.items())
    lines = [
        "# fastwan-export selftest",
        "",
        f"- result: {_verdict(report)}",
        f"- run: {_DEVICES[report.device]}",
        f"- bundle: {bundle.model}, {bundle.recipe}, attention {bundle.attention}, "
        f"fusion {bundle.fusion}, weights {bundle.weights}, "
        f"{shape_text(bundle.shape)}, for {bundle.target} by "
        f"{bundle.backend} ({versions}), manifest {bundle.manifest_sha256[:16]}",
    ]
    if report.gpu is not None:
        gpu = report.gpu
        lines.append(
            f"- GPU: {gpu.name}, compute capability {gpu.compute_capability / 10:.1f}, "
            f"CUDA {gpu.driver_cuda}, driver {gpu.driver or 'unknown'}, "
            f"{gpu.total_bytes / 1e9:.1f} GB"
        )
    packages = ", ".join(f"{name} {version}" for name, version in report.software.packages.items())
    lines.append(f"- software: {report.software.system}, Python {report.software.python}")
    lines += [f"- packages: {packages}", "", "| stage | | |", "|---|---|---|"]
    lines += [f"| {each.title} | {each.status} | {_cell(_said(each))} |" for each in report.stages]
    for each in report.stages:
        if each.status == "failed":
            lines += ["", f"## {each.title}", "", f"Cause: {each.cause}"]
            lines += ["", f"To mend it: {each.fix}"] if each.fix else []
            lines += ["", f"Still works: {each.still_works}"]
    if any(each.figures for each in report.stages):
        lines += [
            "",
            "## Figures",
            "",
            "| stage | figure | value | limit | |",
            "|---|---|---|---|---|",
        ]
    for each in report.stages:
        lines += [f"| {each.name} | {_row(figure)} |" for figure in each.figures]
    return "\n".join(lines) + "\n"


def render(report: SelftestReport) -> str:
    """One line a stage, and what a failure leaves."""
    lines = []
    for each in report.stages:
        said = _said(each)
        lines.append(f"{each.status:>11}  {each.title}" + (f": {said}" if said else ""))
        if each.status == "failed":
            lines += [f"{'':>11}  -> {each.fix}"] if each.fix else []
            lines.append(f"{'':>11}  still works: {each.still_works}")
    return "\n".join([*lines, _verdict(report)])


def _verdict(report: SelftestReport) -> str:
    passed = sum(each.status == "passed" for each in report.stages)
    if report.failed is None:
        return f"passed, {passed} of {len(report.stages)} stages run"
    return f"failed at {report.failed}, {passed} of {len(report.stages)} stages passed before it"


def _said(stage: StageResult) -> str:
    return stage.cause if stage.status == "failed" else stage.note


def _row(figure: Figure) -> str:
    value = f"{figure.value:.6g} {figure.unit}".strip()
    limit = "" if figure.limit is None else f"{figure.limit:.6g}"
    return f"{_cell(figure.name)} | {value} | {limit} | {figure.label}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
