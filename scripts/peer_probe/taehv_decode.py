"""Decode latents with TAEHV several times: ``taehv_decode.py CHECKPOINT WIDTH HEIGHT FRAMES RUNS``.

What the decoder takes does not depend on what the latents show. Needs the package ``taehv``.
"""

from __future__ import annotations

import sys

import torch
from taehv import TAEHV

if __name__ == "__main__":
    width, height, frames, runs = map(int, sys.argv[2:6])
    decoder = TAEHV(checkpoint_path=sys.argv[1]).to("cuda", torch.float16).eval()
    latents = torch.randn(
        1, (frames - 1) // 4 + 1, 16, height // 8, width // 8, device="cuda", dtype=torch.float16
    )
    with torch.no_grad():
        for _ in range(runs):
            decoder.decode_video(latents, parallel=True, show_progress_bar=False)
