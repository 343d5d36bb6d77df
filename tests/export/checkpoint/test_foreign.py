"""What other tools write: read where nothing is lost, else named, with the way out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from fastwan.config import DiTConfig
from fastwan.errors import BadInput
from fastwan.export.checkpoint.names import expected_dit_tensors
from fastwan.export.checkpoint.reader import open_checkpoint

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
Tensors = dict[str, torch.Tensor]
Edit = Callable[[Path, Callable[[Tensors], object]], None]


def same_as(tiny: Path, other: Path, **options: Any) -> bool:
    ours = open_checkpoint(tiny, components=("dit",)).transformer
    theirs = open_checkpoint(other, components=("dit",), **options).transformer
    return set(ours.names()) == set(theirs.names()) and all(
        torch.equal(ours.read(name), theirs.read(name)) for name in ours.names()
    )


def renamed(tensors: Tensors, rename: Callable[[str], str]) -> None:
    changed = {rename(name): tensor for name, tensor in tensors.items()}
    tensors.clear()
    tensors.update(changed)


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "diffusion_model."])
@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("place", ["folder", "file"])
def test_wans_names_and_comfyuis_prefix_are_read(
    tiny: Path, copy: Path, edit_tensors: Edit, wan_name: Callable[[str], str],
    prefix: str, native: bool, place: str,
) -> None:  # fmt: skip
    edit_tensors(
        copy / WEIGHTS,
        lambda tensors: renamed(tensors, lambda n: prefix + (wan_name(n) if native else n)),
    )
    assert same_as(tiny, copy if place == "folder" else copy / WEIGHTS)


def test_one_file_tells_its_shape_and_says_what_it_does_not_tell(copy: Path) -> None:
    checkpoint = open_checkpoint(copy / WEIGHTS, components=("dit",))
    assert checkpoint.dit_config == open_checkpoint(copy, components=()).dit_config
    assert checkpoint.scheduler is None
    assert checkpoint.tokenizer is None
    assert any("assuming" in note for note in checkpoint.notes)
    assert any("epsilon" in note for note in checkpoint.notes)
    taehv = copy / "taew2_1.safetensors"
    assert open_checkpoint(copy / WEIGHTS, components=("dit", "decoder"), taehv=taehv).decoder
    with pytest.raises(BadInput, match=r"transformer alone.*--components dit"):
        open_checkpoint(copy / WEIGHTS)
    with pytest.raises(BadInput, match=r"no TAEHV decoder.*--taehv"):
        open_checkpoint(copy / WEIGHTS, components=("decoder",))


def test_one_file_is_named_by_its_name(tiny: Path, tmp_path: Path) -> None:
    for name, model in (("FastWan-QAD-1.3B", "FastWan-QAD-1.3B"), ("x", "FastWan-QAD-1.3B")):
        shutil.copy(tiny / WEIGHTS, tmp_path / f"{name}.safetensors")
        path = tmp_path / f"{name}.safetensors"
        assert open_checkpoint(path, components=("dit",)).model_name == model
    shutil.copy(tiny / WEIGHTS, tmp_path / "FastWan2.1-T2V-14B.safetensors")
    with pytest.raises(BadInput, match=r"T2V-14B is not supported"):
        open_checkpoint(tmp_path / "FastWan2.1-T2V-14B.safetensors", components=("dit",))


def _fill(name: str, tensor: torch.Tensor) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.update({name: tensor})


def _fp8(tensors: Tensors) -> None:
    name = "blocks.0.ffn.net.2.weight"
    tensors[name] = tensors[name].to(torch.float8_e4m3fn)


def _gates(tensors: Tensors) -> None:
    for part, shape in (("weight", (256, 256)), ("bias", (256,))):
        tensors[f"blocks.0.to_gate_compress.{part}"] = torch.zeros(shape)


ONE, EIGHT = torch.ones(()), torch.zeros(2).to(torch.float8_e4m3fn)
FOREIGN: dict[str, tuple[Callable[[Tensors], object], str]] = {
    "comfyui fp8": (_fill("scaled_fp8", EIGHT), "fp8-scaled.*ComfyUI.*bf16"),
    "scale_weight": (_fill("blocks.0.attn1.to_q.scale_weight", ONE), "fp8-scaled.*bf16"),
    "plain fp8": (_fp8, "float8_e4m3fn.*bf16"),
    "fp8 and more": (lambda t: (_fp8(t), t.update(extra=ONE)), "fp8 weights.*bf16"),
    "lora": (_fill("blocks.0.attn1.to_q.lora_A.default.weight", torch.ones(4, 256)),
             "LoRA.*not merged.*merge"),
    "kohya": (_fill("lora_unet_blocks_0_attn1_to_q.lora_down.weight", ONE), "LoRA.*merge"),
    "base_layer": (_fill("blocks.0.attn1.to_q.base_layer.weight", ONE), "LoRA.*merge"),
    "diff": (_fill("blocks.0.norm2.diff_b", ONE), "LoRA.*merge"),
    "sparse": (_gates, "sparse attention.*VSA.*full attention"),
    "sla": (_fill("blocks.0.attn1.local_attn.proj_l.weight", ONE), "sparse attention"),
    "bitsandbytes": (_fill("blocks.0.ffn.net.2.weight.absmax", ONE), "quantised already.*bf16"),
    "modelopt": (_fill("blocks.0.ffn.net.2.weight_scale_2", ONE), "quantised already"),
    "modelopt state": (_fill("blocks.0.ffn.net.2.weight_quantizer._amax", ONE), "quantised"),
    "nunchaku": (_fill("blocks.0.attn1.to_q.qweight", ONE), "quantised already"),
    "image": (_fill("condition_embedder.image_embedder.norm1.weight", ONE), "image-to-video"),
    "native image": (_fill("blocks.0.cross_attn.k_img.weight", ONE), "image-to-video"),
    "vace": (_fill("vace_blocks.0.proj_in.weight", ONE), "control inputs"),
    "whole file": (_fill("first_stage_model.decoder.conv_in.weight", ONE), "whole pipeline"),
    "training": (_fill("fake_score.blocks.0.norm2.weight", ONE), "state of a training"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "message"), FOREIGN.values(), ids=FOREIGN)
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize("place", ["folder", "file"])
def test_other_weights_are_named(
    copy: Path, edit_tensors: Edit, change: Callable[[Tensors], object], message: str,
    prefix: str, place: str,
) -> None:  # fmt: skip
    source = copy if place == "folder" else copy / WEIGHTS
    edit_tensors(copy / WEIGHTS, lambda tensors: renamed(tensors, lambda name: prefix + name))
    assert open_checkpoint(source, components=("dit",)).transformer

    def both(tensors: Tensors) -> None:
        renamed(tensors, lambda name: name.removeprefix(prefix))
        change(tensors)
        if not any(name.startswith("first_stage") for name in tensors):
            renamed(tensors, lambda name: prefix + name)

    edit_tensors(copy / WEIGHTS, both)
    with pytest.raises(BadInput, match=message) as caught:
        open_checkpoint(source, components=("dit",))
    assert len(str(caught.value).splitlines()) == 1


def test_a_file_that_is_no_transformer_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a.lora_A.weight": torch.ones(4, 4), "a.lora_B.weight": torch.ones(4, 4)}, path)
    with pytest.raises(BadInput, match=r"file holds LoRA.*merge"):
        open_checkpoint(path, components=("dit",))
    save_file({"token_embedding.weight": torch.ones(4, 4)}, path)
    with pytest.raises(BadInput, match=r"text encoder under Wan's own names.*-Diffusers"):
        open_checkpoint(path, components=("dit",))
    save_file({"x": torch.ones(4, 4)}, path)
    with pytest.raises(BadInput, match="holds no transformer: patch_embedding"):
        open_checkpoint(path, components=("dit",))
    save_file({"patch_embedding.weight": torch.ones(256, 36, 1, 2, 2)}, path)
    with pytest.raises(BadInput, match=r"not of a Wan 2.1 text-to-video"):
        open_checkpoint(path, components=("dit",))


@pytest.mark.parametrize("drop", sorted(expected_dit_tensors(DiTConfig(num_layers=1)))[::6])
def test_one_file_with_a_tensor_less_is_refused(copy: Path, edit_tensors: Edit, drop: str) -> None:
    assert open_checkpoint(copy / WEIGHTS, components=("dit",)).transformer
    edit_tensors(copy / WEIGHTS, lambda tensors: tensors.pop(drop))
    with pytest.raises(BadInput, match="missing"):
        open_checkpoint(copy / WEIGHTS, components=("dit",))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wan2.1-t2v-1.3b-Q4_K_M.gguf", "GGUF.*bf16"),
        ("wan2.1.ckpt", "a pickle.*safetensors"),
        ("diffusion_pytorch_model.bin", "a pickle.*save_pretrained"),
        ("pytorch_lora_weights.bin", "LoRA"),
        ("flax_model.msgpack", "JAX"),
        ("video.mp4", "file of another kind.*model_index"),
    ],
)
def test_other_files_are_named(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / name).write_bytes(b"\0" * 64)
    with pytest.raises(BadInput, match=message):
        open_checkpoint(tmp_path / name)


def _native(folder: Path) -> Iterator[str]:
    (folder / "config.json").write_text(json.dumps({"_class_name": "WanModel", "dim": 1536}))
    yield from ("diffusion_pytorch_model.safetensors", "models_t5_umt5-xxl-enc-bf16.pth")


@pytest.mark.parametrize(
    ("fill", "message"),
    [
        (_native, "Wan's own layout.*-Diffusers"),
        (lambda folder: [".metadata", "__0_0.distcp"], "DCP.*dcp_to_torch"),
        (lambda folder: ["pytorch_lora_weights.safetensors"], "LoRA.*merge"),
        (lambda folder: ["adapter_config.json", "adapter_model.safetensors"], "LoRA.*merge"),
        (lambda folder: ["wan-Q8_0.gguf", "README.md"], "GGUF"),
        (lambda folder: ["wan2.1_t2v_1.3B_bf16.safetensors"], "that file itself"),
        (lambda folder: ["pytorch_model.bin"], "a pickle"),
        (lambda folder: [], "holds no model_index.json.*diffusers pipeline"),
    ],
)
def test_other_folders_are_named(
    tmp_path: Path, fill: Callable[[Path], Iterator[str]], message: str
) -> None:
    for name in fill(tmp_path):
        (tmp_path / name).write_bytes(b"\0")
    with pytest.raises(BadInput, match=message):
        open_checkpoint(tmp_path)


def test_a_part_of_a_checkpoint_is_named(tiny: Path) -> None:
    with pytest.raises(BadInput, match=r"one part of a pipeline, a WanTransformer3DModel.*above"):
        open_checkpoint(tiny / "transformer")
    with pytest.raises(BadInput, match=r"UMT5EncoderModel.*folder above"):
        open_checkpoint(tiny / "text_encoder")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["diffusion_pytorch_model.bin"], "diffusion_pytorch_model.bin: a pickle"),
        (["diffusion_pytorch_model.bin.index.json"], "a pickle"),
        (["wan-Q4_0.gguf"], "GGUF"),
        (["__0_0.distcp", ".metadata"], "DCP"),
        (["diffusion_pytorch_model-00001-of-00002.safetensors"], "shards without their index"),
        (["diffusion_pytorch_model.safetensors.incomplete"], "interrupted download"),
        (["diffusion_flax_model.msgpack"], "JAX"),
        (["model.safetensors"], r"but model\.safetensors.*rename it"),
        (["diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.ema.safetensors"],
         "the variants ema, fp16"),
        ([], "neither diffusion_pytorch_model.safetensors nor.*download"),
    ],
)  # fmt: skip
def test_other_weights_of_a_part_are_named(copy: Path, files: list[str], message: str) -> None:
    assert open_checkpoint(copy, components=("dit",)).transformer
    (copy / WEIGHTS).unlink()
    for name in files:
        (copy / "transformer" / name).write_bytes(b"\0" * 16)
    with pytest.raises(BadInput, match=message):
        open_checkpoint(copy, components=("dit",))
