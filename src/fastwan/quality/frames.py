"""How far two videos are apart: PSNR, SSIM, LPIPS and a picture."""

from __future__ import annotations

import importlib
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fastwan.errors import FastWanWarning, first_line
from fastwan.outputs import OutputFile
from fastwan.parallel import in_order, workers
from fastwan.runtime.model.executor import Array

if TYPE_CHECKING:
    from torch import Tensor

AMPLIFIED = 8
"""Times that the difference of two frames is shown."""

PEAK = 255.0
"""Largest level of a pixel."""


def psnr(expected: Array, got: Array) -> float:
    """Peak signal-to-noise ratio of two uint8 videos in dB, 10 log10(255^2 / mse).

    Infinite where they are equal.
    """
    from skimage.metrics import peak_signal_noise_ratio

    if np.array_equal(expected, got):
        return float("inf")
    return float(peak_signal_noise_ratio(expected, got, data_range=PEAK))


def ssim(expected: Array, got: Array) -> float:
    """Mean structural similarity of two uint8 videos [F, H, W, 3], channel by channel.

    As Wang et al. 2004, "Image quality assessment: from error visibility to structural
    similarity", define it: a Gaussian window of 11 x 11 with sigma 1.5, K1 = 0.01, K2 = 0.03;
    only windows that lie inside the frame count.
    """
    pairs = list(zip(expected, got, strict=True))
    return float(np.mean([value for _, value in in_order(_frame_ssim, pairs, workers())]))


def _frame_ssim(pair: tuple[Array, Array]) -> float:
    from skimage.metrics import structural_similarity

    similarity = structural_similarity(
        *pair,
        data_range=PEAK,
        channel_axis=-1,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    return float(similarity)


def lpips(expected: Array, got: Array) -> float | None:
    """Learned perceptual distance of two uint8 videos [F, H, W, 3], the mean over frames.

    Zhang et al. 2018, of AlexNet; None where the package ``lpips`` is not installed, and with a
    warning where it does not load: its weights are fetched, and its torchvision has to fit torch.
    """
    if find_spec("lpips") is None:
        return None
    import torch

    try:
        model = importlib.import_module("lpips").LPIPS(net="alex", verbose=False)
    except Exception as error:  # of whatever it is made of: the other figures are told without it
        reason = f"LPIPS is left out: {first_line(error)}"
        warnings.warn(reason, FastWanWarning, stacklevel=2)
        return None
    with torch.no_grad():
        values = [
            model(_pixels(a) / PEAK, _pixels(b) / PEAK, normalize=True).mean()
            for a, b in zip(expected, got, strict=True)
        ]
    return float(torch.stack(values).mean())


def largest_difference(expected: Array, got: Array) -> int:
    """Largest difference of two uint8 videos in levels."""
    return int(np.abs(expected.astype(np.int16) - got.astype(np.int16)).max())


def worst_frame(expected: Array, got: Array) -> int:
    """Index of the frame with the largest mean square difference."""
    difference = expected.astype(np.float32) - got.astype(np.float32)
    return int(np.argmax(np.mean(difference**2, axis=(1, 2, 3))))


def _pixels(frame: Array) -> Tensor:
    import torch

    return torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1)[None].float()


def amplified(expected: Array, got: Array) -> Array:
    """`AMPLIFIED` times the difference of two uint8 frames."""
    difference = np.abs(expected.astype(np.int16) - got.astype(np.int16)) * AMPLIFIED
    return np.asarray(np.minimum(difference, 255).astype(np.uint8))


def picture(expected: Array, got: Array) -> Array:
    """A frame beside the same frame of the other video beside their amplified difference.

    Args:
        expected, got: [F, H, W, 3] uint8; the middle frame is taken.

    Returns:
        [H, 3 W, 3] uint8.
    """
    a, b = expected[len(expected) // 2], got[len(got) // 2]
    return np.concatenate([a, b, amplified(a, b)], axis=1)


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
