"""Accuracy of a bundle against the reference: checks that can each fail."""

from fastwan.verify.report import Check, Report
from fastwan.verify.run import verify_bundle

__all__ = ["Check", "Report", "verify_bundle"]
