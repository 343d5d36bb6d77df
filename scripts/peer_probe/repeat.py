"""Run a program several times in one process: ``python repeat.py N PROGRAM ARGUMENT...``.

For programs that make one video a run. Weights are loaded every time, outside of what is timed;
compiled kernels and libraries stay.
"""

from __future__ import annotations

import os
import runpy
import sys

if __name__ == "__main__":
    runs, program, arguments = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
    sys.path[0] = os.path.dirname(os.path.abspath(program))  # as if it had been started itself
    for _ in range(runs):
        sys.argv = [program, *arguments]
        runpy.run_path(program, run_name="__main__")
