"""``text_encoder/`` as transformers loads it: one embedding, and the encoder of a whole UMT5."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fastwan.errors import BadInput
from fastwan.export.checkpoint.reader import open_checkpoint

FILE = "text_encoder/model.safetensors"
SHARED, TIED = "shared.weight", "encoder.embed_tokens.weight"
Tensors = dict[str, torch.Tensor]
Edit = Callable[[Path, Callable[[Tensors], object]], None]


def opened(root: Path) -> Any:
    return open_checkpoint(root, components=("text_encoder",))


def judged(root: Path) -> Tensors:
    """What transformers loads of the same folder."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    model = transformers.UMT5EncoderModel.from_pretrained(root / "text_encoder")
    return {name: tensor.bfloat16() for name, tensor in model.state_dict().items()}


def test_a_folder_that_transformers_wrote_is_read_as_transformers_reads_it(copy: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    theirs = transformers.UMT5EncoderModel.from_pretrained(copy / "text_encoder")
    for path in (copy / "text_encoder").iterdir():
        path.unlink()
    theirs.save_pretrained(copy / "text_encoder")
    store, expected = opened(copy).text_encoder, judged(copy)
    assert set(store.names()) == set(expected) - {TIED}
    assert all(torch.equal(store.read(name), expected[name]) for name in store.names())


def test_a_whole_umt5_gives_its_encoder(copy: Path, edit_json: Callable[..., None]) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = transformers.UMT5Config.from_pretrained(copy / "text_encoder")
    torch.manual_seed(0)
    whole = transformers.UMT5ForConditionalGeneration(config).bfloat16()
    assert not any("whole UMT5" in note for note in opened(copy).notes)
    (copy / FILE).unlink()
    whole.save_pretrained(copy / "text_encoder")
    checkpoint, expected = opened(copy), judged(copy)
    store = checkpoint.text_encoder
    assert set(store.names()) == set(expected) - {TIED}
    assert all(torch.equal(store.read(name), expected[name]) for name in store.names())
    (note,) = [note for note in checkpoint.notes if "whole UMT5" in note]
    assert "not read" in note


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_equal_tables_are_one(copy: Path, edit_tensors: Edit, dtype: torch.dtype) -> None:
    edit_tensors(copy / FILE, lambda t: t.update({TIED: t[SHARED].to(dtype).clone()}))
    assert TIED not in opened(copy).text_encoder
    assert torch.equal(opened(copy).text_encoder.read(SHARED), judged(copy)[SHARED])


@pytest.mark.parametrize("row", [0, 200, 511])
def test_tables_that_differ_are_refused(copy: Path, edit_tensors: Edit, row: int) -> None:
    def change(tensors: Tensors) -> None:
        tensors[TIED] = tensors[SHARED].clone()
        tensors[TIED][row, 3] += 1

    edit_tensors(copy / FILE, change)
    theirs = judged(copy)
    assert not torch.equal(theirs[SHARED], theirs[TIED])  # transformers unties them
    with pytest.raises(BadInput, match=r"differs from shared\.weight.*one embedding.*delete"):
        opened(copy)


def test_a_comfyui_encoder_is_named(copy: Path, edit_tensors: Edit) -> None:
    assert opened(copy)
    marker = torch.zeros(2).to(torch.float8_e4m3fn)
    edit_tensors(copy / FILE, lambda t: t.update({"scaled_fp8": marker}))
    with pytest.raises(BadInput, match=r"text encoder holds fp8-scaled.*ComfyUI.*bf16"):
        opened(copy)
