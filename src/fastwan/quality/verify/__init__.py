"""Accuracy of a bundle against the reference: checks that can each fail."""

from fastwan.quality.verify.report import Check, Report
from fastwan.quality.verify.run import verify_bundle

__all__ = ["Check", "Report", "verify_bundle"]
