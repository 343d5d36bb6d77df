"""How far two videos are apart: PSNR, SSIM and a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fastwan.outputs import OutputFile
from fastwan.runtime.model.executor import Array

AMPLIFIED = 8
"""Times that the difference of two frames is shown."""

_WINDOW, _SIGMA = 11, 1.5
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
_PEAK = 255.0


def psnr(expected: Array, got: Array) -> float:
    """Peak signal-to-noise ratio of two uint8 videos in dB, 10 log10(255^2 / mse).

    Infinite where they are equal.
    """
    difference = expected.astype(np.float64) - got.astype(np.float64)
    error = float(np.mean(difference**2))
    return float("inf") if error == 0 else 10 * float(np.log10(_PEAK**2 / error))


def ssim(expected: Array, got: Array, device: torch.device | None = None) -> float:
    """Mean structural similarity of two uint8 videos [F, H, W, 3], channel by channel.

    As Wang et al. 2004, "Image quality assessment: from error visibility to structural
    similarity", define it: a Gaussian window of 11 x 11 with sigma 1.5, K1 = 0.01, K2 = 0.03;
    only windows that lie inside the frame count.

    Args:
        device: where it is computed; by default the CPU.
    """
    total, count = 0.0, 0
    for a, b in zip(expected, got, strict=True):
        values = _ssim(_channels(a, device), _channels(b, device))
        total, count = total + float(values.sum()), count + values.numel()
    return total / count


def _channels(frame: Array, device: torch.device | None) -> Tensor:
    pixels = torch.from_numpy(np.ascontiguousarray(frame)).to(device or torch.device("cpu"))
    return pixels.permute(2, 0, 1)[:, None].double()


def _ssim(a: Tensor, b: Tensor) -> Tensor:
    at = torch.arange(_WINDOW, dtype=torch.float64, device=a.device) - _WINDOW // 2
    line = torch.exp(-(at**2) / (2 * _SIGMA**2))
    line = line / line.sum()

    def mean(x: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(x, line.view(1, 1, -1, 1)), line.view(1, 1, 1, -1))

    mean_a, mean_b = mean(a), mean(b)
    variance_a, variance_b = mean(a * a) - mean_a**2, mean(b * b) - mean_b**2
    covariance = mean(a * b) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + _C1) / (mean_a**2 + mean_b**2 + _C1)
    return luminance * (2 * covariance + _C2) / (variance_a + variance_b + _C2)


def picture(expected: Array, got: Array) -> Array:
    """A frame beside the same frame of the other video beside their amplified difference.

    Args:
        expected, got: [F, H, W, 3] uint8; the middle frame is taken.

    Returns:
        [H, 3 W, 3] uint8.
    """
    a, b = expected[len(expected) // 2], got[len(got) // 2]
    difference = np.abs(a.astype(np.int16) - b.astype(np.int16)) * AMPLIFIED
    return np.concatenate([a, b, np.minimum(difference, 255).astype(np.uint8)], axis=1)


def picture_file(path: Path) -> OutputFile:
    """Where a picture goes, checked; only an earlier one is replaced.

    Raises:
        BadInput: another file lies there, or it cannot be written.
    """
    return OutputFile(path, _is_ours, option="--picture", has_force=False)


def save_picture(place: OutputFile, expected: Array, got: Array) -> None:
    """Write `picture` as PNG."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    told = PngInfo()
    told.add_text(_MADE_BY, _MAKER)
    with place.make() as temporary:
        Image.fromarray(picture(expected, got)).save(temporary, format="PNG", pnginfo=told)


def _is_ours(path: Path) -> bool:
    """Whether a file is a PNG that says that this tool made it."""
    from PIL import Image

    try:
        with Image.open(path, formats=["PNG"]) as image:
            return image.info.get(_MADE_BY) == _MAKER
    except (OSError, ValueError, SyntaxError):
        return False


_MADE_BY, _MAKER = "Software", "fastwan-export verify"
