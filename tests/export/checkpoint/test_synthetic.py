"""The synthetic checkpoint: byte for byte the same, loadable by everyone, plausible in value."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fastwan.config import DiTConfig, VideoShape
from fastwan.errors import BadInput
from fastwan.export.checkpoint import synthetic
from fastwan.export.checkpoint.names import expected_dit_tensors, expected_text_encoder_tensors
from fastwan.export.checkpoint.reader import open_checkpoint
from fastwan.export.checkpoint.store import TensorStore
from fastwan.export.checkpoint.synthetic import PRESETS, make_checkpoint
from fastwan.export.checkpoint.synthetic_weights import bf16_chunks, dit_fill
from fastwan.ownership import RECORD

# SHA-256 over the names and bytes of all tensors of each weight file, seed 0. A change here means
# that checkpoints made before and after differ; every figure measured on one has to be redone.
TINY_DIGESTS = {
    "transformer": "64459184676b7674588759ea80f2151656dfd1e19c6fde1b90d5f58549593e2b",
    "text_encoder": "fbcc099172e1160e5409b3a577bf15602be966d4a0aacb2814fc41453ad4341f",
    "decoder": "08f0dd6cf58b6b8c435d4cb699e5d39ac459b331ef38f24115fac603f6ac8d20",
}


def digest(store: TensorStore | None) -> str:
    assert store is not None
    result = hashlib.sha256()
    for name in sorted(store.names()):
        result.update(name.encode())
        result.update(store.read(name).flatten().view(torch.uint8).numpy().tobytes())
    return result.hexdigest()


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_the_same_seed_gives_the_same_bytes(tiny: Path, tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "again", size="tiny")
    assert contents(tmp_path / "again") == contents(tiny)
    make_checkpoint(tmp_path / "other", size="tiny", seed=1)
    other, same = contents(tmp_path / "other"), contents(tiny)
    assert {name for name in same if other[name] != same[name]} == {
        RECORD,
        "taew2_1.safetensors",
        "text_encoder/model.safetensors",
        "transformer/diffusion_pytorch_model.safetensors",
    }


def test_the_tiny_tensors_are_those_of_every_machine(tiny: Path) -> None:
    checkpoint = open_checkpoint(tiny)
    assert {name: digest(getattr(checkpoint, name)) for name in TINY_DIGESTS} == TINY_DIGESTS


def test_the_summary_says_what_is_there(tmp_path: Path) -> None:
    summary = make_checkpoint(tmp_path / "tiny", size="tiny", seed=3)
    found = {name: len(data) for name, data in contents(tmp_path / "tiny").items()}
    del found[RECORD]
    assert summary.files == found
    assert summary.bytes == sum(found.values())
    assert summary.seed == 3
    weights = [load_file(tmp_path / "tiny" / name) for name in found if name.endswith("tensors")]
    assert len(weights) == 3
    count = sum(tensor.numel() for tensors in weights for tensor in tensors.values())
    assert summary.parameters == count


def test_every_tensor_is_different_and_finite(tiny: Path) -> None:
    checkpoint = open_checkpoint(tiny)
    for store in (checkpoint.transformer, checkpoint.text_encoder, checkpoint.decoder):
        assert store is not None
        digests = {store.read(name).float().numpy().tobytes() for name in store.names()}
        assert len(digests) == len(store)


def test_linears_are_gaussian_with_a_few_large_channels(tiny: Path) -> None:
    weight = open_checkpoint(tiny).transformer.read("blocks.1.attn1.to_q.weight").double()
    columns = weight.std(dim=0) * 16  # 1 / sqrt(fan_in of 256)
    large = columns > 2
    assert 1 <= int(large.sum()) <= 3
    assert columns[large].sub(4).abs().max() < 0.8
    usual = weight[:, ~large].flatten() * 16
    assert abs(usual.mean().item()) < 0.02
    assert usual.std().item() == pytest.approx(1, abs=0.02)
    assert usual.pow(4).mean().item() == pytest.approx(3, abs=0.15)
    assert (usual.abs() < 1).double().mean().item() == pytest.approx(0.6827, abs=0.01)
    rows = torch.corrcoef(weight[:, ~large])
    assert rows.fill_diagonal_(0).abs().max() < 0.4


def test_a_full_size_tensor_is_drawn_in_chunks_without_repeats() -> None:
    name, shape = "blocks.7.ffn.net.2.weight", (512, 8960)
    chunks = list(bf16_chunks(0, name, shape, dit_fill(name, shape)))
    assert max(chunk.nbytes for chunk in chunks) <= 1 << 20
    assert sum(chunk.size for chunk in chunks) == 512 * 8960
    assert all(chunk.shape[1] == 8960 for chunk in chunks)
    assert len({chunk.tobytes() for chunk in chunks}) == len(chunks)


def test_shards_hold_the_tensors_of_one_file(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PRESETS, "tiny", replace(PRESETS["tiny"], shard_bytes=1_500_000))
    make_checkpoint(tmp_path / "sharded", size="tiny")
    folder = tmp_path / "sharded" / "transformer"
    index = json.loads((folder / "diffusion_pytorch_model.safetensors.index.json").read_text())
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    assert files[0] == f"diffusion_pytorch_model-00001-of-{len(files):05d}.safetensors"
    assert len(files) > 2
    assert set(index["weight_map"].values()) == set(files)
    sharded, single = open_checkpoint(tmp_path / "sharded"), open_checkpoint(tiny)
    assert digest(sharded.transformer) == digest(single.transformer)
    total = sum(single.transformer.nbytes(name) for name in single.transformer.names())
    assert index["metadata"]["total_size"] == total


def test_the_full_size_is_the_published_model() -> None:
    preset = PRESETS["1.3b"]
    assert preset.dit == DiTConfig()
    assert preset.shape == VideoShape(480, 832, 81)
    assert preset.shape.num_tokens == 32760
    assert not preset.text_encoder
    assert PRESETS["tiny"].shape.num_tokens % 128
    assert len(list(synthetic._shards(expected_dit_tensors(preset.dit), preset.shard_bytes))) == 3
    text = expected_text_encoder_tensors(preset.text)
    largest = max(2 * torch.Size(shape).numel() for shape in text.values())
    assert largest == 2_100_297_728  # the embedding alone exceeds a shard and gets its own


def test_the_text_encoder_can_be_left_out(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "without", size="tiny", text_encoder=False)
    assert not (tmp_path / "without" / "text_encoder").exists()
    assert open_checkpoint(tmp_path / "without", components=("dit", "decoder")).text_encoder is None


def test_somebody_elses_folder_is_left_alone(tmp_path: Path) -> None:
    target = tmp_path / "out"
    make_checkpoint(target, size="tiny")
    make_checkpoint(target, size="tiny", seed=1)  # its own output is replaced
    before = contents(target)
    (target / "model_index.json").rename(target / "notes.txt")
    with pytest.raises(BadInput, match="was not written there"):
        make_checkpoint(target, size="tiny")
    (target / "notes.txt").rename(target / "model_index.json")
    with pytest.raises(BadInput, match="unknown size 'huge'"):
        make_checkpoint(target, size="huge")  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="seed is negative"):
        make_checkpoint(target, size="tiny", seed=-1)
    assert contents(target) == before


def test_nothing_is_left_when_it_stops_half_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(synthetic, "_write_taehv", stop)
    with pytest.raises(KeyboardInterrupt):
        make_checkpoint(tmp_path / "out", size="tiny")
    assert list(tmp_path.iterdir()) == []


def test_diffusers_loads_the_transformer(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    # Keeping some modules in fp32 needs the package accelerate; here all of it is fp32.
    monkeypatch.setattr(diffusers.WanTransformer3DModel, "_keep_in_fp32_modules", None)
    model, info = diffusers.WanTransformer3DModel.from_pretrained(
        tiny / "transformer",
        torch_dtype=torch.float32,
        low_cpu_mem_usage=False,
        output_loading_info=True,
    )
    assert not any(info.values())
    store = open_checkpoint(tiny, components=("dit",)).transformer
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, store.read(name).float())
    shape = PRESETS["tiny"].shape
    latents = torch.randn(shape.latents(), generator=torch.Generator().manual_seed(0))
    text = torch.zeros(1, 512, 64)
    text[:, :7] = torch.randn(7, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        velocity = model(latents, torch.tensor([999]), text).sample
        silent = model(latents, torch.tensor([999]), torch.zeros_like(text)).sample
        later = model(latents, torch.tensor([599]), text).sample
    assert 0.2 < velocity.std() < 3
    assert (velocity - silent).norm() > 0.1 * velocity.norm(), "the prompt has no effect"
    assert (velocity - later).norm() > 0.1 * velocity.norm(), "the timestep has no effect"


def test_transformers_loads_the_text_encoder(tiny: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    model, info = transformers.UMT5EncoderModel.from_pretrained(
        tiny / "text_encoder", dtype=torch.float32, output_loading_info=True
    )
    assert not any(info.values())
    store = open_checkpoint(tiny, components=("text_encoder",)).text_encoder
    assert store is not None
    for name in store.names():
        assert torch.equal(model.state_dict()[name], store.read(name).float())
    assert torch.equal(model.encoder.embed_tokens.weight, model.shared.weight)
    with torch.no_grad():
        hidden = model(torch.tensor([[100, 35, 101, 1]])).last_hidden_state
    assert 0.3 < hidden.std() < 3


TEXTS = ("", "A cat surfs.", "héllo  wörld\n", "猫 🐱‍👤", "</s><pad>", "\x00\x7f")


def test_both_tokenizer_libraries_agree(tiny: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    fast = tokenizers.Tokenizer.from_file(str(tiny / "tokenizer" / "tokenizer.json"))
    auto = transformers.AutoTokenizer.from_pretrained(tiny / "tokenizer")
    assert (auto.pad_token_id, auto.eos_token_id) == (0, 1)
    for text in TEXTS:
        ids = fast.encode(text).ids
        assert ids == auto(text).input_ids
        assert ids[-1] == 1
        assert 2 not in ids, "unknown token"
        assert max(ids) < PRESETS["tiny"].text.vocab_size
        if "<" not in text:
            assert len(ids) == len(text.encode()) + 1
            assert fast.decode(ids) == text
    padded = auto("ab", padding="max_length", max_length=5)
    assert padded.input_ids[2:] == [1, 0, 0]
    assert padded.attention_mask == [1, 1, 1, 0, 0]
    assert len(auto("a" * 600, truncation=True, max_length=512).input_ids) == 512


def test_diffusers_loads_the_scheduler(tiny: Path) -> None:
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    scheduler = diffusers.UniPCMultistepScheduler.from_pretrained(tiny / "scheduler")
    assert scheduler.config.flow_shift == 3.0
    scheduler.set_timesteps(3)
    assert scheduler.sigmas[0].item() == pytest.approx(0.99988877, abs=1e-3)


def test_a_decoded_frame_is_neither_flat_nor_saturated(tiny: Path) -> None:
    """Last frame of three random latents, by the formula of taehv.py with zero pasts."""
    functional = torch.nn.functional
    checkpoint = open_checkpoint(tiny, components=("decoder",))
    assert checkpoint.decoder is not None
    assert checkpoint.decoder_config is not None
    weights = {name: checkpoint.decoder.read(name).float() for name in checkpoint.decoder.names()}

    def conv(x: torch.Tensor, name: str) -> torch.Tensor:
        weight = weights[f"{name}.weight"]
        bias = weights.get(f"{name}.bias")
        return functional.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)

    x = torch.randn(1, 16, 12, 20, generator=torch.Generator().manual_seed(0))
    x = conv(torch.tanh(x / 3) * 3, "decoder.1").relu()
    for level, growth in enumerate(checkpoint.decoder_config.time_growth):
        first = 3 + 6 * level
        for block in range(first, first + 3):
            name = f"decoder.{block}.conv"
            y = conv(torch.cat([x, torch.zeros_like(x)], 1), f"{name}.0").relu()
            x = (x + conv(conv(y, f"{name}.2").relu(), f"{name}.4")).relu()
        x = functional.interpolate(x, scale_factor=2)
        x = conv(x, f"decoder.{first + 4}.conv").reshape(-1, *x.shape[1:])
        assert x.shape[0] == 2 ** max(0, level)
        assert growth in (1, 2)
        x = conv(x, f"decoder.{first + 5}")
    frame = conv(x.relu(), "decoder.22")[-1]
    assert frame.shape == (3, 96, 160)
    assert 0.05 < frame.std() < 0.4
    assert 0.25 < frame.mean() < 0.75
    assert ((frame < 0) | (frame > 1)).float().mean() < 0.2
