"""Sections that several pages have: facts of a bundle, its kernels, frames."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence

from fastwan.quality.cost import Cost
from fastwan.quality.findings import FOUND, Finding
from fastwan.quality.findings_text import with_unit
from fastwan.quality.frames import AMPLIFIED, amplified
from fastwan.quality.gpus import GpuRates
from fastwan.quality.kernels import Kernel
from fastwan.quality.pages.charts import Bar, Point, bars, roofline
from fastwan.quality.pages.document import Block, Chart, Picture, Pictures, Section, Table, Tone
from fastwan.quality.pages.drawing import KIND_COLORS, KIND_NAMES
from fastwan.runtime.model.executor import Array
from fastwan.schema import BundleFacts
from fastwan.shapes import shape_text

_LARGEST = 24
"""Bars of a chart of kernels."""
_WIDEST = 416
"""Pixels of a frame on a page."""


def facts_of(bundle: BundleFacts, prefix: str = "") -> list[tuple[str, str]]:
    """What a report is of."""
    versions = ", ".join(f"{name} {version}" for name, version in bundle.versions.items())
    return [
        (f"{prefix}bundle", bundle.path),
        (f"{prefix}model", f"{bundle.model}, {shape_text(bundle.shape)}"),
        (
            f"{prefix}made of",
            f"recipe {bundle.recipe}, attention {bundle.attention}, fusion {bundle.fusion}",
        ),
        (f"{prefix}for", f"{bundle.target}, sampler {bundle.sampler} ({versions})"),
    ]


def kernel_time(kernels: Iterable[Kernel]) -> Chart | str:
    """Kernels of a denoising step by predicted time, those of all blocks in one bar."""
    sums: dict[tuple[str, str], tuple[Cost, int]] = {}
    for kernel in kernels:
        if kernel.runs == "step":
            key = (kernel.pattern, kernel.kind)
            cost, count = sums.get(key, (Cost(), 0))
            sums[key] = (cost + kernel.cost, count + 1)
    known = {key: each for key, each in sums.items() if each[0].seconds == each[0].seconds}
    if not known:
        return "No rates are known for this target, so there are no times."
    ordered = sorted(known.items(), key=lambda item: -item[1][0].seconds)
    total = sum(cost.seconds for cost, _ in known.values())
    items = [
        Bar(
            name if count == 1 else f"{name} ×{count}",
            cost.seconds * 1e3,
            KIND_COLORS[kind],
            f"{_ms(cost.seconds)} ({_share(cost.seconds / total)})",
        )
        for (name, kind), (cost, count) in ordered[:_LARGEST]
    ]
    rest = [cost.seconds for _, (cost, _) in ordered[_LARGEST:]]
    if rest:
        share = f"{_ms(sum(rest))} ({_share(sum(rest) / total)})"
        items.append(Bar(f"{len(rest)} others", sum(rest) * 1e3, KIND_COLORS["memory"], share))
    label = f"Kernels of one denoising step by time, {_ms(total)} together (predicted)"
    return bars(items, "ms", label, _kinds(kind for (_, kind), _ in ordered))


def kernel_roofline(kernels: Iterable[Kernel], gpu: GpuRates) -> Chart | str:
    """Kernels with matrix arithmetic of a denoising step under the roof of the target."""
    peaks = {name: peak for name, peak in gpu.flops.items() if name not in ("Half",)}
    seen: dict[tuple[str, str], Point] = {}
    for kernel in kernels:
        cost = kernel.cost
        if kernel.runs == "step" and cost.flops and cost.bytes_moved and cost.seconds > 0:
            point = Point(
                kernel.pattern,
                cost.flops / cost.bytes_moved,
                cost.flops / cost.seconds,
                KIND_COLORS[kernel.kind],
            )
            seen.setdefault((kernel.pattern, kernel.kind), point)
    if not seen or not peaks:
        return "No rates are known for this target, so there is no roofline."
    label = (
        f"Roofline of {gpu.name}: what memory and arithmetic allow, and the kernels of a step with "
        "matrix arithmetic as they are predicted, launch included"
    )
    legend = _kinds(kind for _, kind in seen)
    return roofline(list(seen.values()), gpu.bytes_per_second, peaks, label, legend)


def _kinds(kinds: Iterable[str]) -> dict[str, str]:
    """Names of the colours of these kinds, in the order of the table."""
    present = set(kinds)
    return {KIND_COLORS[kind]: KIND_NAMES[kind] for kind in KIND_COLORS if kind in present}


def _share(share: float) -> str:
    return f"{share:.0%}" if share >= 0.005 else "<1%"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:,.3g} ms" if seconds < 1 else f"{seconds * 1e3:,.0f} ms"


def findings_section(findings: Sequence[Finding], title: str = "Checks") -> Section:
    """What failed, improved or was skipped, in this order, and everything folded in."""
    notable = [each for each in findings if each.verdict != "passed"]
    notable.sort(key=lambda each: (not each.failed, each.verdict == "skipped"))
    blocks: list[Block] = []
    if notable:
        blocks.append(_findings(notable, ""))
    blocks.append(_findings(findings, f"all {len(findings)} checks"))
    return Section(title, blocks)


def _findings(findings: Sequence[Finding], folded: str) -> Table:
    rows = []
    for each in findings:
        figures = (
            "" if figure is None else with_unit(figure, each.unit)
            for figure in (each.value, each.baseline, each.limit)
        )
        label = "" if each.value is None else each.label
        rows.append((each.stage, each.check, FOUND[each.verdict], *figures, label, each.text))
    titles = ("stage", "check", "", "value", "baseline", "limit", "", "")
    return Table(titles, rows, frozenset({3, 4, 5}), [tone_of(each) for each in findings], folded)


def tone_of(finding: Finding) -> Tone:
    """How a finding is shown."""
    if finding.failed:
        return "bad"
    return "good" if finding.verdict == "improved" else "plain"


def frames_beside(a: Array, b: Array, names: tuple[str, str], frames: Iterable[int]) -> Pictures:
    """Frames of two videos beside their amplified difference.

    Args:
        frames: which, by index; each once.
    """
    pictures = []
    for index in dict.fromkeys(frames):
        shown = (a[index], b[index], amplified(a[index], b[index]))
        captions = (*names, f"difference, {AMPLIFIED} times")
        pictures += [
            Picture(data_uri(frame), f"frame {index}: {caption}")
            for frame, caption in zip(shown, captions, strict=True)
        ]
    return Pictures(pictures)


def data_uri(frame: Array) -> str:
    """A frame [H, W, 3] uint8 as a JPEG inside a page, at most `_WIDEST` pixels wide."""
    from PIL import Image

    image = Image.fromarray(frame)
    if image.width > _WIDEST:
        image = image.resize((_WIDEST, round(image.height * _WIDEST / image.width)))
    stream = io.BytesIO()
    image.save(stream, format="JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
