"""Accuracy of a bundle against the reference; the entry is `fastwan.verify.run.verify_bundle`."""
