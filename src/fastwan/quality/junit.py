"""Findings as JUnit XML, which CI services show on a page of tests."""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.etree import ElementTree

from fastwan.quality.findings import Finding
from fastwan.quality.findings_text import said

_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit(name: str, findings: Sequence[Finding]) -> str:
    """One test suite a stage and one test a finding.

    What is ``refused`` is an error, other failures are failures, ``skipped`` is skipped.

    Args:
        name: of the whole, e.g. ``fastwan-export gate``.
    """
    root = ElementTree.Element("testsuites", {"name": _text(name), **_counts(findings)})
    for stage in dict.fromkeys(each.stage for each in findings):
        of_stage = [each for each in findings if each.stage == stage]
        named = {"name": _text(stage), "time": "0", **_counts(of_stage)}
        suite = ElementTree.SubElement(root, "testsuite", named)
        for finding in of_stage:
            _test(suite, f"{name}.{stage}", finding)
    ElementTree.indent(root, " ")
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _test(suite: ElementTree.Element, class_name: str, finding: Finding) -> None:
    test = ElementTree.SubElement(
        suite, "testcase", classname=_text(class_name), name=_text(finding.check), time="0"
    )
    line = _text(said(finding))
    if finding.verdict == "skipped":
        ElementTree.SubElement(test, "skipped", message=line)
    elif finding.failed:
        kind = "error" if finding.verdict == "refused" else "failure"
        ElementTree.SubElement(test, kind, message=line, type=finding.verdict).text = line
    elif line:
        ElementTree.SubElement(test, "system-out").text = line


def _counts(findings: Sequence[Finding]) -> dict[str, str]:
    errors = sum(each.verdict == "refused" for each in findings)
    return {
        "tests": str(len(findings)),
        "failures": str(sum(each.failed for each in findings) - errors),
        "errors": str(errors),
        "skipped": str(sum(each.verdict == "skipped" for each in findings)),
    }


def _text(text: str) -> str:
    """Text without characters that XML cannot hold."""
    return _NO_XML.sub("?", text)
