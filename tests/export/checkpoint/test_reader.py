"""Opening checkpoints: what is taken from where, and every refusal."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fastwan.config import DecoderConfig, VideoShape
from fastwan.errors import BadInput
from fastwan.export.checkpoint.reader import open_checkpoint
from fastwan.export.checkpoint.synthetic import PRESETS

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
Edit = Callable[[Path, Callable[[dict[str, torch.Tensor]], object]], None]

# diffusers name -> FastVideo name, in the part of the name that differs
TO_FASTVIDEO = (
    ("condition_embedder.text_embedder.linear_1", "condition_embedder.text_embedder.fc_in"),
    ("condition_embedder.text_embedder.linear_2", "condition_embedder.text_embedder.fc_out"),
    ("condition_embedder.time_embedder.linear_", "condition_embedder.time_embedder.mlp.linear_"),
    ("mlp.linear_1", "mlp.fc_in"),
    ("mlp.linear_2", "mlp.fc_out"),
    ("time_proj", "time_modulation.linear"),
    ("patch_embedding", "patch_embedding.proj"),
    (".attn1.", "."),
    ("to_out.0", "to_out"),
    ("net.0.proj", "fc_in"),
    ("net.2", "fc_out"),
    ("norm2", "self_attn_residual_norm.norm"),
)


def fastvideo_name(name: str) -> str:
    for theirs, ours in TO_FASTVIDEO:
        name = name.replace(theirs, ours)
    return name


def test_a_checkpoint_is_opened_whole(tiny: Path) -> None:
    checkpoint = open_checkpoint(str(tiny))
    preset = PRESETS["tiny"]
    assert checkpoint.root == tiny
    assert checkpoint.model_name == "FastWan-QAD-1.3B"
    assert checkpoint.pipeline_class == "WanPipeline"
    assert checkpoint.default_sampler == "unipc"
    assert checkpoint.dit_config == preset.dit
    assert checkpoint.text_config == preset.text
    assert checkpoint.decoder_config == preset.decoder
    assert checkpoint.default_shape == VideoShape(96, 160, 9)
    assert checkpoint.default_shape.num_tokens == 180
    assert checkpoint.tokenizer == {
        path.name: path.read_bytes() for path in (tiny / "tokenizer").iterdir()
    }
    assert checkpoint.decoder is not None
    assert not any(name.startswith("encoder.") for name in checkpoint.decoder.names())
    stored = load_file(tiny / WEIGHTS)
    assert set(checkpoint.transformer.names()) == set(stored)
    for name, tensor in stored.items():
        assert torch.equal(checkpoint.transformer.read(name), tensor)


def test_components_that_are_not_asked_for_need_not_be_there(copy: Path) -> None:
    for path in ("text_encoder", "tokenizer", "taew2_1.safetensors"):
        target = copy / path
        shutil.rmtree(target) if target.is_dir() else target.unlink()
    checkpoint = open_checkpoint(copy, components=("dit",))
    assert len(checkpoint.transformer) == 69
    assert checkpoint.text_encoder is None
    assert checkpoint.decoder is None
    assert checkpoint.tokenizer is None
    with pytest.raises(BadInput, match=r"no text_encoder.*--components dit,decoder"):
        open_checkpoint(copy)
    with pytest.raises(BadInput, match=r"no TAEHV decoder.*pass --taehv FILE"):
        open_checkpoint(copy, components=("decoder",))
    with pytest.raises(BadInput, match=r"unknown component 'vae'.*dit, decoder, text_encoder"):
        open_checkpoint(copy, components=("vae",))


def test_fastvideo_names_load_to_the_same_tensors(tiny: Path, copy: Path) -> None:
    stored = load_file(copy / WEIGHTS)
    renamed = {f"model.{fastvideo_name(name)}": tensor for name, tensor in stored.items()}
    assert "model.blocks.0.self_attn_residual_norm.norm.weight" in renamed
    assert "model.condition_embedder.time_embedder.mlp.fc_out.bias" in renamed
    save_file(renamed, copy / WEIGHTS)
    theirs = open_checkpoint(copy, components=("dit",)).transformer
    ours = open_checkpoint(tiny, components=("dit",)).transformer
    assert set(theirs.names()) == set(ours.names())
    for name in ours.names():
        assert torch.equal(ours.read(name), theirs.read(name))


def test_one_tensor_under_both_names_is_refused(copy: Path, edit_tensors: Edit) -> None:
    def add(tensors: dict[str, torch.Tensor]) -> None:
        tensors["blocks.0.to_q.bias"] = tensors["blocks.0.attn1.to_q.bias"].clone()

    edit_tensors(copy / WEIGHTS, add)
    with pytest.raises(BadInput, match=r"are both blocks\.0\.attn1\.to_q\.bias"):
        open_checkpoint(copy, components=("dit",))


def test_the_generator_comes_before_the_transformer(copy: Path) -> None:
    generator = copy / "generator_inference_transformer" / "diffusion_pytorch_model.safetensors"
    generator.parent.mkdir()
    tensors = load_file(copy / WEIGHTS)
    tensors["proj_out.bias"] = torch.full_like(tensors["proj_out.bias"], 3)
    save_file(tensors, generator)
    store = open_checkpoint(copy, components=("dit",)).transformer
    assert store.files == (generator,)
    assert store.read("proj_out.bias").eq(3).all()


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("blocks.1.ffn.net.2.weight", None, r"missing tensor blocks\.1\.ffn\.net\.2\.weight"),
        ("blocks.2.norm2.weight", torch.ones(256), r"unknown tensor blocks\.2\.norm2\.weight"),
        ("blocks.0.to_gate_compress.bias", torch.ones(256), r"sparse.*to_gate_compress"),
        ("proj_out.bias", torch.ones(65), r"proj_out\.bias has shape \[65\], expected \[64\]"),
        ("proj_out.bias", torch.ones(64, dtype=torch.int8), r"proj_out\.bias has dtype int8"),
        ("proj_out.bias", torch.ones(64).double(), r"proj_out\.bias has dtype float64"),
        ("proj_out.bias", torch.ones(64).to(torch.float8_e4m3fn), r"proj_out\.bias has dtype flo"),
    ],
)
def test_wrong_tensors_are_refused_by_name(
    copy: Path, edit_tensors: Edit, name: str, tensor: torch.Tensor | None, message: str
) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors.pop(name, None)
        if tensor is not None:
            tensors[name] = tensor

    edit_tensors(copy / WEIGHTS, change)
    with pytest.raises(BadInput, match=message):
        open_checkpoint(copy, components=("dit",))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_other_float_weights_are_accepted(
    copy: Path, edit_tensors: Edit, dtype: torch.dtype
) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors.update({name: tensor.to(dtype) for name, tensor in tensors.items()})

    edit_tensors(copy / WEIGHTS, change)
    assert open_checkpoint(copy, components=("dit",)).transformer.dtype("proj_out.bias") == dtype


def test_many_missing_tensors_are_counted(copy: Path, edit_tensors: Edit) -> None:
    def drop(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if name.startswith("blocks.1.")]:
            del tensors[name]

    edit_tensors(copy / WEIGHTS, drop)
    with pytest.raises(BadInput, match=r"missing tensor blocks\.1\.scale_shift_table,.* and 24 m"):
        open_checkpoint(copy, components=("dit",))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("cross_attn_norm", False, "cross_attn_norm false is not supported, expected true"),
        ("qk_norm", None, "qk_norm null is not supported"),
        ("image_dim", 1280, "image_dim 1280 is not supported, expected null"),
        ("added_kv_proj_dim", 1, "added_kv_proj_dim 1 is not supported"),
        ("pos_embed_seq_len", 514, "pos_embed_seq_len 514"),
        ("quantization_config", {}, "quantization_config {} is not supported"),
        ("patch_size", [1, 1, 1], r"patch_size \[1, 1, 1\] is not"),
        ("attention_head_dim", 64, "attention_head_dim 64 is not supported, expected 128"),
        ("in_channels", 36, "in_channels"),
        ("out_channels", 48, "out_channels"),
        ("rope_max_seq_len", 32, "rope_max_seq_len"),
        ("num_layers", "2", "num_layers is '2', expected a positive whole number"),
        ("num_layers", 0, "num_layers is 0, expected"),
        ("num_attention_heads", True, "num_attention_heads is true"),
        ("ffn_dim", 500, "ffn_dim is no multiple"),
        ("eps", 0, "eps is 0, expected"),
        ("_class_name", "WanVACETransformer3DModel", "_class_name"),
    ],
)
def test_unsupported_transformers_are_refused_in_words(
    copy: Path, edit_json: Callable[..., None], field: str, value: Any, message: str
) -> None:
    edit_json(copy / "transformer/config.json", out_channels=None)
    assert open_checkpoint(copy, components=("dit",)).dit_config.out_channels == 16
    edit_json(copy / "transformer/config.json", **{field: value})
    with pytest.raises(BadInput, match=message) as caught:
        open_checkpoint(copy, components=("dit",))
    assert "config.json" in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model_type", "t5"),
        ("feed_forward_proj", "relu"),
        ("dense_act_fn", "relu"),
        ("d_model", 128),
        ("num_layers", None),
        ("layer_norm_epsilon", "small"),
    ],
)
def test_unsupported_text_encoders_are_refused(
    copy: Path, edit_json: Callable[..., None], field: str, value: Any
) -> None:
    assert open_checkpoint(copy, components=("text_encoder",)).text_config is not None
    edit_json(copy / "text_encoder/config.json", **{field: value})
    with pytest.raises(BadInput, match=r"config\.json"):
        open_checkpoint(copy, components=("text_encoder",))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"_class_name": "WanImageToVideoPipeline"}, "pipeline 'WanImageToVideoPipeline'"),
        ({"_class_name": None}, "pipeline null is not supported"),
        ({"_fastwan_shape": [96, 160, 9]}, "must hold height, width and num_frames"),
        ({"_fastwan_shape": {"height": 96, "width": 160}}, "must hold height, width"),
        (
            {"_fastwan_shape": {"height": 97, "width": 160, "num_frames": 9}},
            "_fastwan_shape: height 97 is no multiple of 16",
        ),
    ],
)
def test_other_model_indices_are_refused(
    copy: Path, edit_json: Callable[..., None], fields: dict[str, Any], message: str
) -> None:
    edit_json(copy / "model_index.json", _class_name="WanDMDPipeline", _fastwan_shape=None)
    checkpoint = open_checkpoint(copy, components=("dit",))
    assert checkpoint.default_sampler == "dmd"
    assert checkpoint.default_shape == VideoShape(480, 832, 81)
    edit_json(copy / "model_index.json", **fields)
    with pytest.raises(BadInput, match=message):
        open_checkpoint(copy, components=("dit",))


@pytest.mark.parametrize("text", [None, "", "[]", "{", '{"a": 1, "a": 2}', '{"a": NaN}'])
def test_damaged_configurations_are_refused(copy: Path, text: str | None) -> None:
    path = copy / "transformer/config.json"
    if text is None:
        path.unlink()
    else:
        path.write_text(text)
    with pytest.raises(BadInput, match=r"config\.json"):
        open_checkpoint(copy, components=("dit",))


@pytest.mark.parametrize("stored", ["shared.weight", "encoder.embed_tokens.weight", "both"])
def test_the_tied_embedding_loads_under_either_name(
    copy: Path, edit_tensors: Edit, stored: str
) -> None:
    path = copy / "text_encoder/model.safetensors"
    embedding = load_file(path)["shared.weight"]

    def rename(tensors: dict[str, torch.Tensor]) -> None:
        if stored != "shared.weight":
            tensors["encoder.embed_tokens.weight"] = embedding.clone()
        if stored == "encoder.embed_tokens.weight":
            del tensors["shared.weight"]

    edit_tensors(path, rename)
    store = open_checkpoint(copy, components=("text_encoder",)).text_encoder
    assert store is not None
    assert torch.equal(store.read("shared.weight"), embedding)
    assert "encoder.embed_tokens.weight" not in store


def test_a_tied_embedding_of_another_shape_is_refused(copy: Path, edit_tensors: Edit) -> None:
    def add(tensors: dict[str, torch.Tensor]) -> None:
        tensors["encoder.embed_tokens.weight"] = torch.ones(3, 64)

    edit_tensors(copy / "text_encoder/model.safetensors", add)
    with pytest.raises(BadInput, match=r"shape differs from shared.*embed_tokens"):
        open_checkpoint(copy, components=("text_encoder",))


def test_a_checkpoint_without_a_fast_tokenizer_is_refused(copy: Path) -> None:
    (copy / "tokenizer/tokenizer.json").unlink()
    with pytest.raises(BadInput, match=r"tokenizer\.json is missing"):
        open_checkpoint(copy, components=("text_encoder",))


@pytest.mark.parametrize("place", ["taew2_1.pth", "taehv/taew2_1.pth", "vae/taew2_1.safetensors"])
def test_the_decoder_is_found(copy: Path, place: str, tmp_path: Path) -> None:
    tensors = load_file(copy / "taew2_1.safetensors")
    (copy / "taew2_1.safetensors").unlink()
    target = copy / place
    target.parent.mkdir(exist_ok=True)
    if target.suffix == ".pth":
        torch.save(tensors, target)
    else:
        save_file(tensors, target)
    found = open_checkpoint(copy, components=("decoder",))
    elsewhere = tmp_path / f"elsewhere{target.suffix}"
    shutil.copy(target, elsewhere)
    given = open_checkpoint(copy, components=("decoder",), taehv=elsewhere)
    assert given.decoder is not None
    assert given.decoder.files == (elsewhere,)
    for checkpoint in (found, given):
        assert checkpoint.decoder_config == DecoderConfig(channels=(32, 32, 16, 16))
        assert checkpoint.decoder is not None
        weight = checkpoint.decoder.read("decoder.22.weight")
        assert torch.equal(weight, tensors["decoder.22.weight"])


def _resize(name: str, *shape: int) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name] = torch.zeros(shape)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_resize("decoder.1.weight", 32, 48, 3, 3), "takes 48 latent channels.*taew2_1"),
        (_resize("decoder.22.weight", 12, 16, 3, 3), "gives 12, not 16 and 3.*taew2_1"),
        (_resize("decoder.7.conv.weight", 64, 32, 1, 1), r"makes \[2, 2, 2\] frames"),
        (_resize("decoder.8.weight", 32, 0, 3, 3), r"\[32, 0, 3, 3\] is no convolution"),
        (_resize("decoder.1.weight", 32), r"\[32\] is no convolution"),
        (_resize("decoder.4.conv.2.weight", 32, 32, 1, 1), r"decoder\.4\.conv\.2.*has shape"),
        (_resize("decoder.23.weight", 1), r"unknown tensor decoder\.23\.weight"),
        (lambda tensors: tensors.pop("decoder.1.bias"), r"missing tensor decoder\.1\.bias"),
        (lambda tensors: tensors.pop("decoder.1.weight"), r"decoder\.1\.weight is missing"),
        (lambda tensors: tensors.clear(), r"all tensors are missing \(.*taew2_1"),
    ],
)
def test_other_decoders_are_refused(
    copy: Path,
    edit_tensors: Edit,
    change: Callable[[dict[str, torch.Tensor]], object],
    message: str,
) -> None:
    path = copy / "taew2_1.safetensors"
    edit_tensors(path, lambda tensors: tensors.pop("encoder.17.bias"))
    assert open_checkpoint(copy, components=("decoder",)).decoder is not None
    edit_tensors(path, change)
    with pytest.raises(BadInput, match=message):
        open_checkpoint(copy, components=("decoder",))


@pytest.mark.parametrize(
    ("folder", "model"),
    [
        ("anything", "FastWan-QAD-1.3B"),
        ("FastWan-QAD-1.3B", "FastWan-QAD-1.3B"),
        ("Wan2.1-T2V-1.3B-Diffusers", "Wan2.1-T2V-1.3B"),
        ("models--Wan-AI--Wan2.1-T2V-1.3B-Diffusers/snapshots/0123", "Wan2.1-T2V-1.3B"),
    ],
)
def test_the_model_is_told_from_the_name(
    tiny: Path, tmp_path: Path, folder: str, model: str
) -> None:
    root = tmp_path / folder
    shutil.copytree(tiny, root)
    assert open_checkpoint(root, components=("dit",)).model_name == model
    other = open_checkpoint(root, components=("dit",), model="Wan2.1-T2V-1.3B")
    assert other.model_name == "Wan2.1-T2V-1.3B"
    with pytest.raises(BadInput, match="unknown name 'Wan3'"):
        open_checkpoint(root, components=("dit",), model="Wan3")


@pytest.mark.parametrize("name", ["FastWan2.1-T2V-14B", "FastWan2.2-TI2V-5B"])
def test_siblings_with_other_recipes_are_not_mistaken(
    tiny: Path, tmp_path: Path, name: str
) -> None:
    shutil.copytree(tiny, tmp_path / name)
    with pytest.raises(BadInput, match=f"model {name} is not supported"):
        open_checkpoint(tmp_path / name, components=("dit",))
    told = open_checkpoint(tmp_path / name, components=("dit",), model="FastWan-QAD-1.3B")
    assert told.model_name == "FastWan-QAD-1.3B"


def test_what_is_no_checkpoint_is_refused(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"holds no model_index\.json"):
        open_checkpoint(tmp_path)
    with pytest.raises(BadInput, match="checkpoint is a file"):
        open_checkpoint(tiny / "model_index.json")
    for source in (str(tmp_path / "none"), "./none/none", "none", "", "a/b/c", "a/../b"):
        with pytest.raises(BadInput, match=r"does not exist|holds no model_index"):
            open_checkpoint(source)
    for source in ("x" * 5000, "a\0b"):
        with pytest.raises(BadInput, match=r"not a path|does not exist"):
            open_checkpoint(source)
