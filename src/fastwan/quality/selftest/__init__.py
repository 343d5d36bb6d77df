"""``selftest``: from the driver to a video in stages, each proven before the next is tried."""
