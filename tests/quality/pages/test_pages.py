"""Report pages: the verdict first, all text escaped, nothing from outside; their other forms."""

from __future__ import annotations

import json
import re
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner

from fastwan.cli import main
from fastwan.errors import BadInput
from fastwan.quality.cost import Cost
from fastwan.quality.findings import Finding
from fastwan.quality.inspection import InspectReport
from fastwan.quality.kernels import Kernel
from fastwan.quality.pages import html, markdown
from fastwan.quality.pages.charts import Bar, Line, Point, bars, grouped, lines, roofline
from fastwan.quality.pages.document import Chart, Document, Section, Table
from fastwan.quality.pages.drawing import SERIES
from fastwan.quality.pages.folder import report_folder
from fastwan.quality.pages.gate_page import gate_page
from fastwan.quality.pages.graph import graph_chart, links, merged, rows, typical_block
from fastwan.quality.pages.parts import findings_section
from fastwan.quality.pages.writing import write_report

FROM_OUTSIDE = re.compile(
    r"""(?:src|href)="(?!data:|#)|url\((?!#|data:)|@import|<script|<link rel="stylesheet""", re.I
)
DOCUMENT = Document("verify", "bad", "2 < 3 & <b>more</b>", [("bundle", "<i>x</i>|y")])


def test_nothing_on_a_page_is_from_outside(documents: dict[str, tuple[Document, Any]]) -> None:
    for name, (document, _) in documents.items():
        page = html.render(document)
        assert not FROM_OUTSIDE.search(page), name
        assert len(page) < html.MAX_BYTES / 3
        assert page.index(document.facts[0][1]) > page.index("<h1>")  # the verdict is first
    assert FROM_OUTSIDE.search('<img src="http://x/y.png">')
    assert FROM_OUTSIDE.search("background: url(x.png)")


def test_text_of_a_report_is_no_markup() -> None:
    page = html.render(DOCUMENT)
    assert "2 &lt; 3 &amp; &lt;b&gt;more&lt;/b&gt;" in page
    assert "<i>x</i>" not in page
    text = markdown.render(DOCUMENT)
    assert "&lt;i>x&lt;/i>\\|y" in text
    assert text.startswith("# ❌ verify: ")


def test_charts_draw_with_the_colours_of_the_page() -> None:
    chart = bars([Bar("a", 2.0, SERIES[0], "2 ms"), Bar("b", 1.0, SERIES[1], "1 ms")], "ms", "x")
    assert chart.svg.startswith("<svg")
    assert "var(--series-1)" in chart.svg
    assert "var(--ink)" in chart.svg
    assert not re.search(r"#[0-9a-f]{6}", chart.svg)
    assert ">2 ms</text>" in chart.svg  # text stays text
    again = bars([Bar("a", 2.0, SERIES[0], "2 ms"), Bar("b", 1.0, SERIES[1], "1 ms")], "ms", "x")
    assert again == chart  # to the byte
    assert chart.table.rows == [("a", "2 ms"), ("b", "1 ms")]


def test_a_roofline_spreads_its_points_over_both_axes() -> None:
    points = [
        Point("a", 2.0, 1e12, SERIES[0]),
        Point("b", 2e4, 9e14, SERIES[1]),
    ]
    chart = roofline(points, 1.8e12, {"FP4": 1.6e15, "BF16": 2e14}, "x", {SERIES[0]: "GEMM"})
    marks = re.findall(r'<use [^>]*x="([\d.]+)" y="([\d.]+)"[^>]*fill: var\(--series', chart.svg)
    (x1, y1), (x2, y2) = (tuple(map(float, each)) for each in marks)
    assert x2 - x1 > 200
    assert y1 - y2 > 100


def test_a_name_of_a_kernel_is_text_in_a_chart() -> None:
    svg = bars([Bar("<script>$x$", 1.0, SERIES[0], "1")], "ms", "x").svg
    assert "<script>" not in svg
    assert "$x$" in svg  # no formula


@pytest.mark.parametrize("values", [[None, None], [1.0, None], []])
def test_charts_of_nothing_are_drawn(values: list[float | None]) -> None:
    places = [str(index) for index in range(len(values))]
    for draw in (grouped, lines):
        assert draw(places, [Line("a", values)], "MB", "x").svg.startswith("<svg")
    assert bars([], "ms", "x").svg.startswith("<svg")


def test_long_tables_are_cut_in_markdown_only() -> None:
    table = Table(("a",), [(f"row {index}",) for index in range(100)])
    document = replace(DOCUMENT, sections=[Section("s", [table, Chart("<svg/>", "c", table)])])
    assert "row 99" in html.render(document)
    text = markdown.render(document)
    assert "row 99" not in text
    assert text.count("and 60 more") == 2


def test_a_folder_has_the_page_and_its_other_forms(
    documents: dict[str, tuple[Document, Any]], tmp_path: Path
) -> None:
    document, report = documents["inspect"]
    for _ in range(2):  # an earlier report is replaced
        write_report(report_folder(tmp_path / "r"), document, report, ())
    assert {path.name for path in (tmp_path / "r").iterdir()} == {
        "index.html", "summary.md", "junit.xml", "report.json", "fastwan-export.json",
    }  # fmt: skip
    read = InspectReport.model_validate_json((tmp_path / "r" / "report.json").read_text())
    assert read == report
    (tmp_path / "r" / "mine.txt").write_text("mine")
    with pytest.raises(BadInput, match=r"mine\.txt.*name another one with --report, or remove it"):
        report_folder(tmp_path / "r")


def test_what_failed_comes_first_and_what_was_skipped_is_told() -> None:
    verdicts = ("passed", "improved", "skipped", "worse", "passed", "refused")
    findings = [Finding(stage="static", check=each, verdict=each) for each in verdicts]
    notable, everything = findings_section(findings).blocks
    assert isinstance(notable, Table)
    assert isinstance(everything, Table)
    assert [row[1] for row in notable.rows] == ["worse", "refused", "improved", "skipped"]
    assert [row[1] for row in everything.rows] == list(verdicts)


@pytest.mark.parametrize(("place", "refused"), [("bundle/report", True), ("bundle-report", False)])
def test_no_report_goes_into_a_bundle(tmp_path: Path, place: str, refused: bool) -> None:
    """The manifest would not list it, and the next `verify` would call the bundle damaged."""
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    with pytest.raises(BadInput, match="would lie in the bundle") if refused else nullcontext():
        report_folder(tmp_path / place, [bundle])


def test_a_page_that_is_too_large_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, documents: dict[str, tuple[Document, Any]]
) -> None:
    monkeypatch.setattr(html, "MAX_BYTES", 1000)
    document, report = documents["inspect"]
    with pytest.raises(BadInput, match="MB"):
        write_report(report_folder(tmp_path / "r"), document, report, ())
    assert not (tmp_path / "r").exists()


@pytest.mark.trt
def test_inspect_writes_its_report_and_the_picture(tiny_bundle: Path, tmp_path: Path) -> None:
    folders = {option: tmp_path / option for option in ("report", "graph")}
    options = [text for name, path in folders.items() for text in (f"--{name}", str(path))]
    done = CliRunner().invoke(main, ["inspect", str(tiny_bundle), *options, "--block", "1"])
    assert done.exit_code == 0, done.output
    for folder in folders.values():
        assert "blocks.1.attn1.qkv" in (folder / "index.html").read_text()
    suite = ElementTree.parse(folders["report"] / "junit.xml").getroot()
    assert (suite.get("tests"), suite.get("failures")) == ("3", "0")
    done = CliRunner().invoke(main, ["inspect", str(tiny_bundle), *options, "--block", "2"])
    assert done.exit_code == 2
    assert "no block 2" in done.output


@pytest.mark.trt
def test_a_gate_writes_its_report_whatever_it_finds(tiny_bundle: Path, tmp_path: Path) -> None:
    baseline, folder = tmp_path / "baseline.json", tmp_path / "report"
    line = ["gate", str(tiny_bundle), "--against", str(baseline), "--stage", "static"]
    line += ["--report", str(folder)]
    done = CliRunner().invoke(main, [*line, "--update-baseline"])
    assert done.exit_code == 0, done.output
    for kernels, code in ((0, 0), (-1, 5)):
        fields = json.loads(baseline.read_text())
        fields["stages"]["static"]["dit.kernels"] += kernels
        baseline.write_text(json.dumps(fields))
        assert CliRunner().invoke(main, line).exit_code == code
        page = (folder / "index.html").read_text()
        assert ('<header class="bad">' in page) == (code == 5)
        suite = ElementTree.parse(folder / "junit.xml").getroot()
        assert suite.get("failures") == str(int(code == 5))


def test_verify_writes_its_report_and_the_frames_that_it_made(
    documents: dict[str, tuple[Document, Any]],
    videos: list[Any],
    tiny_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = videos
    for name, code in (("verify", 0), ("verify-failed", 4)):
        report = documents[name][1]

        def verify(path: Path, *, videos: list[Any], report: Any = report, **_: Any) -> Any:
            videos += made
            return report

        monkeypatch.setattr("fastwan.quality.verify.run.verify_bundle", verify)
        line = ["verify", str(tiny_bundle), "--report", str(tmp_path / "report")]
        assert CliRunner().invoke(main, line).exit_code == code
        page = (tmp_path / "report" / "index.html").read_text()
        assert ('<header class="bad">' in page) == (code == 4)
        assert page.count("data:image/jpeg") == 9
        suite = ElementTree.parse(tmp_path / "report" / "junit.xml").getroot()
        assert suite.get("failures") == str(int(code == 4))


def test_a_history_shows_its_own_cohort_alone(documents: dict[str, tuple[Document, Any]]) -> None:
    document, _ = documents["gate"]
    section = next(each for each in document.sections if each.title == "History of the cohort")
    (chart,) = section.blocks
    assert isinstance(chart, Chart)
    assert len(chart.table.rows) == 21
    assert [*chart.table.titles] == ["", "total", "step_0"]


def kernel(
    title: str, block: int | None, reads: str = "", writes: str = "", place: str = "e"
) -> Kernel:
    return Kernel(
        name=title, place=place, component="dit", runs="step", kind="memory", dtype="bf16",
        nodes=(), reads=tuple(reads.split()), writes=tuple(writes.split()), weight_bytes=0,
        cost=Cost(1, 10, 10, 0, 1e-6), block=block,
    )  # fmt: skip


KERNELS = [
    kernel("embed", None, "x", "h0"),
    *(
        each
        for block in range(4)
        for each in (
            kernel("norm", block, f"h{block}", "t"),
            kernel("add", block, f"t h{block}", f"h{block + 1}"),
        )
    ),
    kernel("head", None, "h4", "y"),
]


def test_the_picture_folds_all_blocks_but_one() -> None:
    shown = merged(rows(KERNELS, 1))
    titles = [row.title for row in shown]
    assert titles == ["embed", "block 0", "norm", "add", "blocks 2 to 3", "head"]
    assert [row.unfolded for row in shown] == [False, False, True, True, False, False]
    assert shown[4].cost.bytes_moved == 40
    # The residual goes past the norm.
    assert set(links(shown)) == {(0, 1), (1, 2), (1, 3), (2, 3), (3, 4), (4, 5)}
    with pytest.raises(BadInput, match="no block 4"):
        rows(KERNELS, 4)


def test_the_unfolded_block_is_one_like_most() -> None:
    assert typical_block(KERNELS) == 0
    assert typical_block([kernel("first", 0), *KERNELS]) == 1
    assert typical_block(KERNELS[:1]) is None
    assert graph_chart(KERNELS[:1]).table.rows == [
        ("embed", "glue, the builder's", "bf16", "0.00", "0.0010")
    ]


def test_names_of_other_engines_do_not_link() -> None:
    one = [kernel("a", None, "", "t", "one"), kernel("b", None, "", "t", "two")]
    reader = kernel("c", None, "t", "", "one")
    assert links(rows([*one, reader], None)) == [(0, 2)]
    assert links(rows([*one, replace(reader, place="two")], None)) == [(1, 2)]


def test_a_chart_of_times_has_times_of_one_size(
    documents: dict[str, tuple[Document, Any]],
) -> None:
    """Neither loading nor bytes; and of an emulation it is labelled."""
    document, report = documents["gate"]
    section = next(each for each in document.sections if each.title == "History of the cohort")
    (chart,) = section.blocks
    assert isinstance(chart, Chart)
    assert list(chart.table.titles) == ["", "total", "step_0"]
    assert chart.label.endswith("(measured)")
    found = [
        Finding(
            stage="times", check=check, verdict="passed", value=1.0, baseline=1.0, unit="ms",
            label="emulated",
        )
        for check in ("step_0", "loading", "drift.step_0")
    ]  # fmt: skip
    changed = report.model_copy(update={"findings": tuple(found)})
    against = next(
        each for each in gate_page(changed).sections if each.title == "Against the baseline"
    )
    (stages,) = (each for each in against.blocks if isinstance(each, Chart))
    assert [row[0] for row in stages.table.rows] == ["step_0"]
    assert stages.label.endswith("(emulated)")


def test_what_was_not_compared_is_said_so(documents: dict[str, tuple[Document, Any]]) -> None:
    _, report = documents["gate"]
    refused = Finding(stage="baseline", check="model", verdict="refused", text="another")
    page = gate_page(report.model_copy(update={"findings": (refused,)}))
    assert ["No figure was compared with the baseline's."] in [s.blocks for s in page.sections]
    checks = page.sections[0].blocks[0]
    assert isinstance(checks, Table)
    assert checks.rows[0] == ("baseline", "model", "REFUSED", "", "", "", "", "another")
