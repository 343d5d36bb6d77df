"""PSNR, SSIM and the picture of two videos."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from fastwan.errors import BadInput, FastWanWarning
from fastwan.quality.frames import lpips, picture, picture_file, psnr, save_picture, ssim

RANDOM = np.random.default_rng(2)
VIDEO = RANDOM.integers(0, 256, (3, 32, 40, 3), np.uint8)


def test_psnr_is_ten_log_of_the_peak_over_the_error() -> None:
    other = VIDEO ^ 1  # every value one level away
    assert psnr(VIDEO, other) == pytest.approx(20 * np.log10(255))
    assert psnr(VIDEO, VIDEO) == float("inf")
    assert psnr(VIDEO, RANDOM.permuted(VIDEO)) < 10


class Perceived(torch.nn.Module):
    """In place of ``lpips.LPIPS``: the mean difference, of images in 0 .. 1 alone."""

    def __init__(self, net: str, verbose: bool) -> None:
        super().__init__()
        assert (net, verbose) == ("alex", False)

    def forward(self, a: torch.Tensor, b: torch.Tensor, normalize: bool) -> torch.Tensor:
        assert normalize
        assert a.shape == b.shape == (1, 3, 32, 40)
        assert a.dtype == torch.float32
        assert 0.9 < a.max() <= 1
        return (a - b).abs().mean().view(1, 1, 1, 1)


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A stand-in for the package ``lpips``."""
    module = ModuleType("lpips")
    module.__spec__ = ModuleSpec("lpips", None)
    module.LPIPS = Perceived  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lpips", module)
    return module


def test_lpips_is_the_mean_over_the_frames(package: ModuleType) -> None:
    other = VIDEO.copy()
    other[1] = other[1] ^ 1
    assert lpips(VIDEO, VIDEO) == 0
    assert lpips(VIDEO, other) == pytest.approx(1 / 255 / 3)


def test_lpips_that_does_not_load_is_left_out_with_a_warning(package: ModuleType) -> None:
    def broken(**_: object) -> None:
        raise RuntimeError("operator torchvision::nms does not exist")

    package.LPIPS = broken  # type: ignore[attr-defined]
    with pytest.warns(FastWanWarning, match="LPIPS is left out: operator torchvision"):
        assert lpips(VIDEO, VIDEO) is None


def plain_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """The definition window by window, for one channel of one frame."""
    at = np.arange(11) - 5
    line = np.exp(-(at**2) / 4.5)
    weight = np.outer(line, line)
    weight /= weight.sum()
    total = []
    for y in range(a.shape[0] - 10):
        for x in range(a.shape[1] - 10):
            p, q = (each[y : y + 11, x : x + 11].astype(float) for each in (a, b))
            mp, mq = (weight * p).sum(), (weight * q).sum()
            vp, vq = (weight * (p - mp) ** 2).sum(), (weight * (q - mq) ** 2).sum()
            cov = (weight * (p - mp) * (q - mq)).sum()
            c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
            total.append(
                (2 * mp * mq + c1) * (2 * cov + c2) / ((mp**2 + mq**2 + c1) * (vp + vq + c2))
            )
    return float(np.mean(total))


def test_ssim_is_the_definition_window_by_window() -> None:
    other = np.clip(VIDEO.astype(int) + RANDOM.integers(-40, 41, VIDEO.shape), 0, 255)
    changed = other.astype(np.uint8)
    expected = np.mean(
        [plain_ssim(VIDEO[f, :, :, c], changed[f, :, :, c]) for f in range(3) for c in range(3)]
    )
    assert ssim(VIDEO, changed) == pytest.approx(expected, abs=1e-9)
    assert ssim(VIDEO, VIDEO) == pytest.approx(1)
    assert 0.5 < expected < 0.99


def test_a_picture_has_both_frames_and_their_difference(tmp_path: Path) -> None:
    other = VIDEO.copy()
    other[1, 3, 4] = np.where(VIDEO[1, 3, 4] > 127, VIDEO[1, 3, 4] - 5, VIDEO[1, 3, 4] + 5)
    made = picture(VIDEO, other)
    assert made.shape == (32, 120, 3)
    np.testing.assert_array_equal(made[:, :40], VIDEO[1])
    np.testing.assert_array_equal(made[:, 40:80], other[1])
    assert made[3, 84].tolist() == [40, 40, 40]
    assert made[:, 80:].sum() == 120
    path = tmp_path / "p.png"
    for _ in range(2):  # an earlier picture is replaced
        save_picture(picture_file(path), VIDEO, other)
    np.testing.assert_array_equal(np.asarray(Image.open(path)), made)
    assert [each.name for each in tmp_path.iterdir()] == ["p.png"]


@pytest.mark.parametrize("kind", ["text", "png", "folder"])
def test_what_is_not_such_a_picture_stays(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "mine.png"
    if kind == "folder":
        path.mkdir()
    elif kind == "png":
        Image.fromarray(VIDEO[0]).save(path)
    else:
        path.write_text("mine")
    before = path.is_dir() or path.read_bytes()
    with pytest.raises(BadInput, match=r"not made by this tool|is a folder") as caught:
        picture_file(path)
    assert "--force" not in str(caught.value)
    assert (path.is_dir() or path.read_bytes()) == before
