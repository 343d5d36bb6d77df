"""LoRA files under the names that trainers write, merged into a checkpoint's tensors."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from fastwan.errors import BadInput
from fastwan.export.checkpoint.lora import Adapted, open_lora, parse_lora
from fastwan.export.checkpoint.reader import Checkpoint, open_checkpoint

RANK, ALPHA = 4, 8.0
MODULES = {
    "blocks.0.attn1.to_q": "blocks.0.self_attn.q",
    "blocks.1.attn1.to_out.0": "blocks.1.self_attn.o",
    "blocks.1.attn2.to_v": "blocks.1.cross_attn.v",
    "blocks.0.ffn.net.0.proj": "blocks.0.ffn.0",
    "blocks.1.ffn.net.2": "blocks.1.ffn.2",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "patch_embedding": "patch_embedding",
}
"""Diffusers' name by Wan's own."""


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Path) -> Checkpoint:
    return open_checkpoint(tiny_checkpoint, components=("dit",))


@pytest.fixture(scope="module")
def pairs(checkpoint: Checkpoint) -> dict[str, tuple[Tensor, Tensor]]:
    """A and B by diffusers' name, bf16."""
    generator = torch.Generator().manual_seed(0)
    made = {}
    for name in MODULES:
        outputs, *inputs = checkpoint.transformer.shape(f"{name}.weight")
        down = torch.randn(RANK, *inputs, generator=generator)
        up = torch.randn(outputs, RANK, *(1 for _ in inputs[1:]), generator=generator)
        made[name] = (0.05 * down).bfloat16(), (0.05 * up).bfloat16()
    return made


Pairs = Mapping[str, tuple[Tensor, Tensor]]


def named(pairs: Pairs, form: str, *parts: str) -> dict[str, Tensor]:
    """Tensors by keys of a form with ``{}`` for the module, and the ends of A and B."""
    return {
        form.format(name) + part: tensor
        for name, both in pairs.items()
        for part, tensor in zip(parts, both, strict=True)
    }


def diffusers(folder: Path, pairs: Pairs) -> Path:
    tensors = named(pairs, "transformer.{}", ".lora_A.weight", ".lora_B.weight")
    fields = {"r": RANK, "lora_alpha": ALPHA, "target_modules": sorted(pairs), "bias": "none"}
    config = {f"transformer.{name}": value for name, value in fields.items()}
    path = folder / "pytorch_lora_weights.safetensors"
    save_file(tensors, path, {"format": "pt", "lora_adapter_metadata": json.dumps(config)})
    return path


def peft(folder: Path, pairs: Pairs) -> Path:
    tensors = named(pairs, "base_model.model.{}", ".lora_A.weight", ".lora_B.weight")
    path = folder / "adapter_model.safetensors"
    save_file(tensors, path)
    config = {"r": RANK, "lora_alpha": 1, "alpha_pattern": {name: ALPHA for name in pairs}}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return path


def _with_alpha(folder: Path, pairs: Pairs, form: str, *parts: str) -> Path:
    tensors = named(pairs, form, *parts)
    tensors |= {form.format(name) + ".alpha": torch.tensor(ALPHA) for name in pairs}
    path = folder / "lora.safetensors"
    save_file(tensors, path)
    return path


def _native(pairs: Pairs) -> Pairs:
    return {MODULES[name]: pair for name, pair in pairs.items()}


def wan(folder: Path, pairs: Pairs) -> Path:
    form = "diffusion_model.{}"
    return _with_alpha(folder, _native(pairs), form, ".lora_A.weight", ".lora_B.weight")


def down_up(folder: Path, pairs: Pairs) -> Path:
    form = "diffusion_model.{}"
    return _with_alpha(folder, _native(pairs), form, ".lora_down.weight", ".lora_up.weight")


def kohya(folder: Path, pairs: Pairs) -> Path:
    native = {name.replace(".", "_"): pair for name, pair in _native(pairs).items()}
    return _with_alpha(folder, native, "lora_unet_{}", ".lora_down.weight", ".lora_up.weight")


FORMS = [diffusers, peft, wan, down_up, kohya]


@pytest.mark.parametrize("write", FORMS)
def test_every_form_of_names_merges_to_the_same_weights(
    checkpoint: Checkpoint, pairs: Pairs, tmp_path: Path, write: Callable[..., Path]
) -> None:
    lora = open_lora(write(tmp_path, pairs), 0.5, checkpoint.dit_config)
    merged = Adapted(checkpoint.transformer, [lora])
    assert merged.changed == {f"{name}.weight" for name in MODULES}
    assert (lora.record.scale, lora.record.ranks, lora.record.tensors) == (0.5, (RANK,), 7)
    for name in checkpoint.transformer.names():
        weight = checkpoint.transformer.read(name)
        if name not in merged.changed:
            assert torch.equal(merged.read(name), weight)
            continue
        down, up = (each.double().flatten(1) for each in pairs[name.removesuffix(".weight")])
        expected = weight.double() + 0.5 * ALPHA / RANK * (up @ down).reshape(weight.shape)
        assert merged.read(name).dtype == torch.float32
        torch.testing.assert_close(merged.read(name).double(), expected, rtol=1e-6, atol=1e-7)


def test_without_an_alpha_the_scale_is_one_and_files_add_up(
    checkpoint: Checkpoint, pairs: Pairs, tmp_path: Path
) -> None:
    path = tmp_path / "plain.safetensors"
    save_file(named(pairs, "{}", ".lora_A.weight", ".lora_B.weight"), path)
    loras = [open_lora(path, scale, checkpoint.dit_config) for scale in (1.0, -0.25)]
    name = "blocks.0.attn1.to_q"
    weight = checkpoint.transformer.read(f"{name}.weight").float()
    down, up = (each.float() for each in pairs[name])
    merged = Adapted(checkpoint.transformer, loras).read(f"{name}.weight")
    torch.testing.assert_close(merged, weight + 0.75 * (up @ down), rtol=1e-6, atol=1e-6)
    adapted = checkpoint.adapted(loras)
    assert [each.scale for each in adapted.adapters] == [1.0, -0.25]
    assert checkpoint.adapted([]) is checkpoint


def test_whole_differences_are_added(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path, block = tmp_path / "diff.safetensors", "diffusion_model.blocks.0"
    bias = checkpoint.transformer.shape("blocks.0.attn1.to_q.bias")
    norm = checkpoint.transformer.shape("blocks.0.norm2.weight")
    table = checkpoint.transformer.shape("blocks.0.scale_shift_table")
    head = checkpoint.transformer.shape("scale_shift_table")
    save_file(
        {
            f"{block}.self_attn.q.diff_b": torch.ones(bias),
            f"{block}.norm3.diff": torch.ones(norm),
            f"{block}.diff_m": torch.ones(table),
            "diffusion_model.head.diff_m": torch.ones(head),
        },
        path,
    )
    lora = open_lora(path, 0.5, checkpoint.dit_config)
    merged = Adapted(checkpoint.transformer, [lora])
    tables = ("blocks.0.scale_shift_table", "scale_shift_table")
    changed = ("blocks.0.attn1.to_q.bias", "blocks.0.norm2.weight", *tables)
    assert merged.changed == set(changed)
    for name in changed:
        assert torch.equal(merged.read(name), checkpoint.transformer.read(name).float() + 0.5)
    assert lora.record.ranks == ()


def _faults() -> list[tuple[str, Callable[[dict[str, Tensor]], None], str]]:
    key = "transformer.blocks.0.attn1.to_q.lora_{}.weight"
    down, up = key.format("A"), key.format("B")

    def drop(name: str) -> Callable[[dict[str, Tensor]], None]:
        return lambda tensors: tensors.__delitem__(name)

    def put(name: str, value: Any) -> Callable[[dict[str, Tensor]], None]:
        return lambda tensors: tensors.update({name: value(tensors)})

    return [
        ("text encoder", put("text_encoder.block.lora_A.weight", lambda t: t[down].clone()),
         "unknown key text_encoder.block.lora_A.weight"),
        ("image encoder", put("transformer.blocks.0.attn2.add_k_proj.lora_A.weight",
                              lambda t: t[down].clone()), "unknown key .*add_k_proj"),
        ("another block", put("transformer.blocks.77.attn1.to_q.lora_A.weight",
                              lambda t: t[down].clone()), "unknown key .*blocks.77"),
        ("DoRA", put("transformer.blocks.0.attn1.to_q.lora_magnitude_vector",
                     lambda t: torch.ones(4)), "unknown key .*magnitude"),
        ("LoHa", put("transformer.blocks.0.attn1.to_q.hada_w1_a", lambda t: t[down].clone()),
         "unknown key .*hada_w1_a.*no DoRA, LoHa or LoKr"),
        ("another block's modulation", put("diffusion_model.blocks.77.diff_m",
                                           lambda t: torch.ones(1, 6, 256)),
         "unknown key .*blocks.77"),
        ("another modulation", put("diffusion_model.blocks.1.diff_m",
                                   lambda t: torch.ones(1, 2, 256)),
         r"scale_shift_table has shape \[1, 6, 256\], its difference \[1, 2, 256\]"),
        ("no B", drop(up), "has no lora_B"),
        ("no A", drop(down), "has no lora_A"),
        ("two ranks", put(up, lambda t: t[up][:, :2].clone()), "not of one rank"),
        ("another width", put(down, lambda t: t[down][:, :64].clone()), "do not fit a weight"),
        ("another height", put(up, lambda t: t[up][:64].clone()), "do not fit a weight"),
        ("integers", put(down, lambda t: t[down].to(torch.int32)), "dtype int32"),
        ("twice", put("blocks.0.self_attn.q.lora_A.weight", lambda t: t[down].clone()),
         "same part of blocks.0.attn1.to_q"),
        ("long alpha", put("transformer.blocks.0.attn1.to_q.alpha", lambda t: torch.ones(2)),
         r"alpha has shape \[2\]"),
        ("alone alpha", put("transformer.blocks.0.attn2.to_k.alpha", lambda t: torch.tensor(1.0)),
         "an alpha and no LoRA"),
    ]  # fmt: skip


@pytest.mark.parametrize(("fault", "message"), [each[1:] for each in _faults()],
                         ids=[each[0] for each in _faults()])  # fmt: skip
def test_what_does_not_fit_is_named(
    checkpoint: Checkpoint, pairs: Pairs, tmp_path: Path, fault: Any, message: str
) -> None:
    tensors = named(pairs, "transformer.{}", ".lora_A.weight", ".lora_B.weight")
    path = tmp_path / "lora.safetensors"
    save_file(tensors, path)
    assert open_lora(path, 1.0, checkpoint.dit_config).changes
    fault(tensors)
    save_file(tensors, path)
    with pytest.raises(BadInput, match=message) as raised:
        open_lora(path, 1.0, checkpoint.dit_config)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"lora_alpha": "much"}, "lora_alpha is no number"),
        ({"alpha_pattern": [1]}, "alpha_pattern is no table"),
        (None, r"no adapter_config\.json beside"),
    ],
)
def test_a_configuration_that_cannot_be_followed_is_refused(
    checkpoint: Checkpoint, pairs: Pairs, tmp_path: Path, config: Any, message: str
) -> None:
    path = peft(tmp_path, pairs)
    assert open_lora(path, 1.0, checkpoint.dit_config).changes
    beside = tmp_path / "adapter_config.json"
    if config is None:
        beside.unlink()
    else:
        beside.write_text(json.dumps(json.loads(beside.read_text()) | config))
    with pytest.raises(BadInput, match=message):
        open_lora(path, 1.0, checkpoint.dit_config)


def test_a_rank_stabilised_scale_divides_by_the_root(
    checkpoint: Checkpoint, pairs: Pairs, tmp_path: Path
) -> None:
    path = peft(tmp_path, pairs)
    config = {"lora_alpha": ALPHA, "use_rslora": True}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    merged = Adapted(checkpoint.transformer, [open_lora(path, 1.0, checkpoint.dit_config)])
    name = "blocks.0.attn1.to_q"
    down, up = (each.float() for each in pairs[name])
    expected = checkpoint.transformer.read(f"{name}.weight") + ALPHA / RANK**0.5 * (up @ down)
    torch.testing.assert_close(merged.read(f"{name}.weight"), expected, rtol=1e-6, atol=1e-6)


def test_values_are_checked_when_they_are_read(
    checkpoint: Checkpoint, pairs: Pairs, tmp_path: Path
) -> None:
    tensors = named(pairs, "{}", ".lora_A.weight", ".lora_B.weight")
    name, path = "blocks.0.attn1.to_q", tmp_path / "lora.safetensors"
    save_file({n: t.float() for n, t in tensors.items()}, path)
    huge = Adapted(checkpoint.transformer, [open_lora(path, 1e6, checkpoint.dit_config)])
    assert torch.isfinite(huge.read(f"{name}.weight")).all()
    tensors[f"{name}.lora_A.weight"] = torch.full_like(tensors[f"{name}.lora_A.weight"], 1e37)
    save_file(tensors, path)
    huge = Adapted(checkpoint.transformer, [open_lora(path, 1e6, checkpoint.dit_config)])
    with pytest.raises(BadInput, match="beyond bfloat16"):
        huge.read(f"{name}.weight")
    tensors[f"{name}.lora_A.weight"][0, 0] = float("nan")
    save_file(tensors, path)
    broken = Adapted(checkpoint.transformer, [open_lora(path, 1.0, checkpoint.dit_config)])
    with pytest.raises(BadInput, match="NaN or Inf"):
        broken.read(f"{name}.weight")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.safetensors", ("a.safetensors", 1.0)),
        ("a.safetensors:0.5", ("a.safetensors", 0.5)),
        ("a.safetensors:-1e-1", ("a.safetensors", -0.1)),
        ("x:y/a.safetensors", ("x:y/a.safetensors", 1.0)),
    ],
)
def test_a_scale_stands_behind_a_colon(text: str, expected: tuple[str, float]) -> None:
    path, scale = parse_lora(text)
    assert (str(path), scale) == expected


@pytest.mark.parametrize("scale", ["0", "nan", "inf", "1e7"])
def test_a_scale_that_says_nothing_is_refused(scale: str) -> None:
    assert parse_lora("a:1")[1] == 1.0
    with pytest.raises(BadInput, match="scale"):
        parse_lora(f"a:{scale}")


@pytest.mark.parametrize("write", [diffusers, wan, down_up])
def test_the_merged_weights_are_those_of_diffusers_fuse_lora(
    checkpoint: Checkpoint, tiny_checkpoint: Path, pairs: Pairs, tmp_path: Path, write: Any
) -> None:
    pytest.importorskip("peft", reason="peft is not installed")
    library: Any = pytest.importorskip("diffusers", reason="diffusers is not installed")
    of_blocks = {name: pair for name, pair in pairs.items() if name.startswith("blocks.")}
    path = write(tmp_path, of_blocks)
    model = library.WanTransformer3DModel.from_pretrained(
        tiny_checkpoint / "transformer", torch_dtype=torch.float32
    )
    pipe = library.WanPipeline(None, None, None, library.UniPCMultistepScheduler(), model)
    pipe.load_lora_weights(str(tmp_path), weight_name=path.name)
    pipe.fuse_lora(lora_scale=0.5)
    pipe.unload_lora_weights()
    fused = pipe.transformer.state_dict()
    merged = Adapted(checkpoint.transformer, [open_lora(path, 0.5, checkpoint.dit_config)])
    assert merged.changed == {f"{name}.weight" for name in of_blocks}
    for name in checkpoint.transformer.names():
        torch.testing.assert_close(merged.read(name).float(), fused[name], rtol=1e-6, atol=1e-7)
