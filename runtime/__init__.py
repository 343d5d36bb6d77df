"""Engine bundle to frames: the denoise loop, executors, decoding and video files."""
