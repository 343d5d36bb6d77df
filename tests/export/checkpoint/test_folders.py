"""Which weights of a folder are read, and that the others are told of."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fastwan.errors import BadInput
from fastwan.export.checkpoint.reader import open_checkpoint

STEM, MODEL = "diffusion_pytorch_model", "model"
WEIGHTS = f"transformer/{STEM}.safetensors"
ENCODER = f"text_encoder/{MODEL}.safetensors"
GENERATOR = "generator_inference_transformer"
Edit = Callable[..., None]


def shard(source: Path, folder: Path, stem: str, value: float, variant: str = "") -> None:
    """Two shards and an index, all values `value`."""
    folder.mkdir(exist_ok=True)
    tensors = {n: torch.full_like(t, value) for n, t in load_file(source).items()}
    names = sorted(tensors)
    weight_map = {}
    for part, chosen in enumerate((names[::2], names[1::2]), 1):
        file = f"{stem}{variant}-{part:05d}-of-00002.safetensors"
        save_file({name: tensors[name] for name in chosen}, folder / file)
        weight_map |= dict.fromkeys(chosen, file)
    index = f"{stem}.safetensors.index{variant}.json"
    (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def opened(root: Path) -> Any:
    return open_checkpoint(root, components=("dit", "text_encoder"))


def about(root: Path, word: str) -> list[str]:
    return [note for note in opened(root).notes if word in note]


@pytest.mark.parametrize("sharded", [False, True])
def test_a_distilled_folder_is_read_and_the_other_is_told_of(copy: Path, sharded: bool) -> None:
    assert about(copy, GENERATOR) == []
    if sharded:
        shard(copy / WEIGHTS, copy / GENERATOR, STEM, 3)
    else:
        (copy / GENERATOR).mkdir()
        tensors = {n: torch.full_like(t, 3) for n, t in load_file(copy / WEIGHTS).items()}
        save_file(tensors, copy / GENERATOR / f"{STEM}.safetensors")
    store = opened(copy).transformer
    assert store.read("proj_out.bias").eq(3).all()
    assert about(copy, GENERATOR) == [
        f"the weights of {GENERATOR} are read, those of transformer are not"
    ]
    (copy / WEIGHTS).unlink()
    assert opened(copy).transformer.read("proj_out.bias").eq(3).all()
    assert about(copy, GENERATOR) == []


def test_a_distilled_folder_has_its_own_configuration(copy: Path, edit_json: Edit) -> None:
    shard(copy / WEIGHTS, copy / GENERATOR, STEM, 3)
    config = (copy / "transformer/config.json").read_text()
    (copy / GENERATOR / "config.json").write_text(config)
    edit_json(copy / "transformer/config.json", eps=1e-3)
    assert opened(copy).dit_config.eps == 1e-6
    (copy / GENERATOR / "config.json").unlink()
    assert opened(copy).dit_config.eps == 1e-3


def test_a_distilled_folder_without_weights_is_refused(copy: Path) -> None:
    (copy / GENERATOR).mkdir()
    with pytest.raises(BadInput, match=f"neither {STEM}.safetensors.*{GENERATOR}"):
        opened(copy)


def test_diffusers_reads_an_index_first_and_transformers_the_single_file(
    copy: Path,
) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    shard(copy / WEIGHTS, copy / "transformer", STEM, 3)
    shard(copy / ENCODER, copy / "text_encoder", MODEL, 3)
    checkpoint = opened(copy)
    assert checkpoint.transformer.read("proj_out.bias").eq(3).all()
    assert len(about(copy, f"transformer: {STEM}.safetensors.index.json is read, not {STEM}")) == 1
    assert len(about(copy, "text_encoder: model.safetensors is read, not model-0")) == 1
    theirs = transformers.UMT5EncoderModel.from_pretrained(copy / "text_encoder").state_dict()
    for name in checkpoint.text_encoder.names():
        assert torch.equal(checkpoint.text_encoder.read(name), theirs[name].bfloat16())


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("variant", ["fp16", "bf16", "non_ema"])
def test_a_variant_is_read_where_there_is_nothing_else(
    copy: Path, sharded: bool, variant: str
) -> None:
    tensors = load_file(copy / WEIGHTS)
    if sharded:
        shard(copy / WEIGHTS, copy / "transformer", STEM, 3, f".{variant}")
    else:
        changed = {name: torch.full_like(tensor, 3).half() for name, tensor in tensors.items()}
        save_file(changed, copy / "transformer" / f"{STEM}.{variant}.safetensors")
    assert not opened(copy).transformer.read("proj_out.bias").eq(3).all()
    (copy / WEIGHTS).unlink()
    assert opened(copy).transformer.read("proj_out.bias").eq(3).all()
    assert len(about(copy, "is a variant")) == 1


@pytest.mark.parametrize(
    ("place", "word"),
    [
        ("pytorch_lora_weights.safetensors", "LoRA"),
        ("my_lora.safetensors", "LoRA"),
        ("loras/readme.txt", "LoRA"),
        ("adapter_config.json", "LoRA"),
        ("transformer/adapter_config.json", "LoRA"),
        ("transformer/adapter_model.safetensors", "LoRA"),
        ("transformer/pytorch_model.bin", "pickle"),
        ("transformer/optimizer.pt", "pickle"),
        ("transformer/other.safetensors", "other.safetensors"),
        ("text_encoder/model.gguf", "GGUF"),
        ("dit_v2.safetensors", "dit_v2.safetensors"),
        ("taehv/taew2_1.pth", "taew2_1.pth"),
    ],
)
def test_what_lies_beside_is_told_of(copy: Path, place: str, word: str) -> None:
    before = open_checkpoint(copy).notes
    assert not any(word in note for note in before)
    (copy / place).parent.mkdir(exist_ok=True)
    (copy / place).write_bytes(b"{}")
    after = open_checkpoint(copy).notes
    told = [note for note in after if note not in before]
    assert len(told) == 1
    assert word in told[0]
    assert str(copy) not in told[0]


def test_adapters_that_transformers_would_apply_are_refused(copy: Path) -> None:
    assert opened(copy)
    (copy / "text_encoder/adapter_config.json").write_text("{}")
    with pytest.raises(BadInput, match=r"text encoder has LoRA adapters.*merge"):
        opened(copy)


@pytest.mark.parametrize(
    ("fields", "folder", "message"),
    [
        ({"transformer_2": ["diffusers", "WanTransformer3DModel"]}, None, "second transformer"),
        ({}, "transformer_2", "second transformer"),
        ({"boundary_ratio": 0.9}, None, r"second transformer.*boundary_ratio"),
        ({"expand_timesteps": True}, None, "expand_timesteps"),
        ({"image_encoder": ["transformers", "CLIPVisionModel"]}, None, "image encoder"),
        ({"transformer": ["diffusers", "WanVACETransformer3DModel"]}, None, "WanVACE"),
        ({"text_encoder": ["transformers", "T5EncoderModel"]}, None, "T5EncoderModel"),
        ({"scheduler": "UniPC"}, None, None),
        ({"scheduler": ["diffusers"]}, None, r"scheduler is \['diffusers'\]"),
        ({"scheduler": ["diffusers", 3]}, None, "expected .library, class."),
    ],
)
def test_pipelines_of_other_parts_are_refused(
    copy: Path, edit_json: Edit, fields: dict[str, Any], folder: str | None, message: str | None
) -> None:
    none = {"transformer_2": [None, None], "image_encoder": [None, None]}
    edit_json(copy / "model_index.json", boundary_ratio=None, expand_timesteps=False, **none)
    assert not any("model_index" in note for note in opened(copy).notes)
    edit_json(copy / "model_index.json", **fields)
    if folder is not None:
        (copy / folder).mkdir()
    if message is None:
        assert opened(copy)
    else:
        with pytest.raises(BadInput, match=message):
            opened(copy)


def test_parts_that_are_not_read_are_told_of(copy: Path, edit_json: Edit) -> None:
    edit_json(copy / "model_index.json", upsampler=["diffusers", "X"], boost=2, off=False)
    (note,) = [note for note in opened(copy).notes if "model_index" in note]
    assert "upsampler, boost" in note


def test_fields_that_the_transformer_does_not_have_are_told_of(copy: Path, edit_json: Edit) -> None:
    edit_json(copy / "transformer/config.json", sliding_window=4, gate=False, _note="x")
    (note,) = [note for note in opened(copy).notes if "transformer/config.json" in note]
    assert "sliding_window" in note
    assert "gate" not in note


def test_notes_are_the_same_wherever_the_checkpoint_lies(tiny: Path, copy: Path) -> None:
    assert open_checkpoint(tiny).notes == open_checkpoint(copy).notes
    assert all(len(note.splitlines()) == 1 for note in open_checkpoint(tiny).notes)
