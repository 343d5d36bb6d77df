"""Accuracy of a bundle against the reference: checks that can each fail."""

from fastwan.quality.verify.report import Check, VerifyReport
from fastwan.quality.verify.run import verify_bundle

__all__ = ["Check", "VerifyReport", "verify_bundle"]
