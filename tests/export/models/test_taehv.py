"""The TAEHV decoder against a plain walk over its layers, against itself, and the original."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from fastwan.config import DecoderConfig
from fastwan.export.models.taehv import MemBlock, TAEHVDecoder, TGrow, to_uint8

TINY = DecoderConfig(channels=(24, 16, 8, 8))


def _decoder(config: DecoderConfig = TINY) -> TAEHVDecoder:
    torch.manual_seed(0)
    decoder = TAEHVDecoder(config).eval().requires_grad_(False)
    for parameter in decoder.parameters():
        parameter.mul_(2)  # default initialisation lets the signal die away
    return decoder


def _plain(decoder: TAEHVDecoder, latents: torch.Tensor) -> torch.Tensor:
    """One video [T, C, h, w], the layers in the published order, all frames at once."""
    x = latents
    for layer in decoder.decoder:
        if isinstance(layer, MemBlock):
            x = layer(x, F.pad(x, (0, 0, 0, 0, 0, 0, 1, 0))[:-1])
        else:
            x = layer(x)
    return x


def test_growing_time_before_space_changes_nothing() -> None:
    decoder = _decoder()
    latents = torch.randn(2, 3, 16, 4, 6)
    frames = decoder(latents)
    assert frames.shape == (2, 12, 3, 32, 48)
    assert frames.std() > 0.01
    for video in range(2):
        torch.testing.assert_close(
            frames[video], _plain(decoder, latents[video]), atol=1e-6, rtol=1e-5
        )


@pytest.mark.parametrize("chunks", [[1, 1, 1, 1], [2, 1, 1]])
def test_streaming_equals_parallel(chunks: list[int]) -> None:
    decoder = _decoder()
    latents = torch.randn(2, 4, 16, 4, 6)
    memories = decoder.zero_memories(4, 6, batch=2)
    pieces = []
    for chunk in latents.split(chunks, dim=1):
        frames, memories = decoder.step(chunk, memories)
        pieces.append(frames)
    assert [tuple(m.shape) for m in memories] == decoder.memory_shapes(4, 6, batch=2)
    torch.testing.assert_close(torch.cat(pieces, 1), decoder(latents), atol=1e-6, rtol=0)


def test_memories_matter() -> None:
    decoder = _decoder()
    latents = torch.randn(1, 2, 16, 4, 6)
    _, memories = decoder.step(latents[:, :1], decoder.zero_memories(4, 6))
    for index in range(len(memories)):
        changed = [m if i != index else m + 1 for i, m in enumerate(memories)]
        same, _ = decoder.step(latents[:, 1:], memories)
        other, _ = decoder.step(latents[:, 1:], changed)
        assert not torch.equal(same, other), f"memory {index} has no influence"


def test_published_names_and_shapes() -> None:
    with torch.device("meta"):
        state = TAEHVDecoder(DecoderConfig()).state_dict()
    expected = {
        "decoder.1.weight": (256, 16, 3, 3),
        "decoder.1.bias": (256,),
        "decoder.3.conv.0.weight": (256, 512, 3, 3),
        "decoder.5.conv.4.bias": (256,),
        "decoder.7.conv.weight": (256, 256, 1, 1),
        "decoder.8.weight": (128, 256, 3, 3),
        "decoder.13.conv.weight": (256, 128, 1, 1),
        "decoder.14.weight": (64, 128, 3, 3),
        "decoder.19.conv.weight": (128, 64, 1, 1),
        "decoder.20.weight": (64, 64, 3, 3),
        "decoder.22.weight": (3, 64, 3, 3),
        "decoder.22.bias": (3,),
    }
    assert {name: tuple(state[name].shape) for name in expected} == expected
    # 9 blocks of 3 convolutions with bias; 2 with bias and 6 without around them
    assert len(state) == 9 * 6 + 2 * 2 + 6


def test_pixels_are_clamped_and_truncated() -> None:
    values = torch.tensor([-0.5, 0.0, 0.5, 0.999, 1.0, 1.5]).reshape(2, 3, 1, 1)
    assert to_uint8(values).flatten().tolist() == [0, 0, 127, 254, 255, 255]
    assert to_uint8(torch.zeros(4, 3, 5, 7)).shape == (4, 5, 7, 3)


@pytest.mark.parametrize("config", [DecoderConfig(), DecoderConfig(time_growth=(1, 1, 2))])
def test_equals_the_original(config: DecoderConfig) -> None:
    taehv = pytest.importorskip("taehv", reason="madebyollin/taehv is not on PYTHONPATH")
    torch.manual_seed(1)
    original = taehv.TAEHV(
        checkpoint_path=None, decoder_time_upscale=tuple(g == 2 for g in config.time_growth)
    ).eval()
    original.requires_grad_(False)
    for parameter in original.decoder.parameters():
        parameter.mul_(1.5)
    decoder = TAEHVDecoder(config).eval()
    decoder.load_state_dict(
        {k: v for k, v in original.state_dict().items() if k.startswith("decoder.")}
    )
    assert sum(isinstance(layer, TGrow) for layer in decoder.decoder) == 3
    latents = torch.randn(1, 3, 16, 4, 6)
    for parallel in (True, False):
        expected = original.decode_video(latents, parallel=parallel, show_progress_bar=False)
        with torch.no_grad():
            frames = decoder(latents)[:, config.frames_to_trim :].clamp(0, 1)
        assert frames.std() > 0
        torch.testing.assert_close(frames, expected, atol=1e-6, rtol=0)
