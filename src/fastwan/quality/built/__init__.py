"""Records of real builds at 832x480x81, written by `scripts/built_records.py`."""
