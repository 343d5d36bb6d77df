"""``--report DIR``: a folder with a page, its Markdown, JUnit XML and JSON."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fastwan.errors import BadInput
from fastwan.outputs import OutputFolder
from fastwan.quality.findings import Finding
from fastwan.quality.junit import junit
from fastwan.quality.pages import html, markdown
from fastwan.quality.pages.document import Document
from fastwan.schema import Report

PAGE, SUMMARY, JUNIT, JSON = "index.html", "summary.md", "junit.xml", "report.json"


def write_report(
    place: OutputFolder, document: Document, report: Report, findings: Sequence[Finding]
) -> None:
    """Write the four files of a report.

    Raises:
        BadInput: the page is larger than `html.MAX_BYTES`.
        OSError: a file cannot be written.
    """
    page = html.render(document)
    if len(page.encode()) > html.MAX_BYTES:
        raise BadInput(
            f"the page has {len(page.encode()) / 1e6:.1f} MB, more than {html.MAX_BYTES / 1e6:g}",
            where="--report",
            fix="print --json instead",
        )
    files = {
        PAGE: page,
        SUMMARY: markdown.render(document),
        JUNIT: junit(f"fastwan-export {document.command}", findings),
        JSON: report.to_json() + "\n",
    }
    with place.make() as folder:
        for name, text in files.items():
            Path(folder, name).write_text(text, encoding="utf-8")
