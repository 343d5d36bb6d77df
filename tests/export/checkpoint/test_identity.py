"""Which model a checkpoint is: by its names, by what it was made from, by its shape."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fastwan.config import MODELS, DiTConfig
from fastwan.errors import BadInput
from fastwan.export.checkpoint.identity import (
    Claim,
    check_shape,
    origin_claims,
    overruled_names,
    own_claims,
    tell_model,
)
from fastwan.export.checkpoint.reader import open_checkpoint

QAD, WAN = "FastWan-QAD-1.3B", "Wan2.1-T2V-1.3B"
TI2V, T2V14 = "FastWan2.2-TI2V-5B", "FastWan2.1-T2V-14B"
WAN_14B = DiTConfig(num_layers=40, num_heads=40, ffn_dim=13824)
Edit = Callable[..., None]


def told(own: str = "ckpt", *origins: str) -> tuple[str, list[str]]:
    notes: list[str] = []
    name = tell_model(
        [Claim("the folder's name", own)], [Claim("origin", each) for each in origins], notes
    )
    return name, notes


@pytest.mark.parametrize(
    ("text", "model"),
    [
        ("FastWan-QAD-1.3B", QAD),
        ("FastVideo/FastWan-QAD-1.3B", QAD),
        ("fastwan-qad-1.3b/", QAD),
        ("FastWan-QAD-1.3B-Diffusers", QAD),
        ("Wan2.1-T2V-1.3B-Diffusers", WAN),
        ("Wan-AI/Wan2.1-T2V-1.3B", WAN),
        ("Wan2_1-T2V-1_3B_bf16.safetensors", WAN),
        ("wan2.1_t2v_1.3B_fp16.safetensors", WAN),
    ],
)
def test_a_published_name_is_taken_without_a_word(text: str, model: str) -> None:
    assert told(text) == (model, [])


@pytest.mark.parametrize(
    "text", ["FastWan-QAD-1.3B-v2", "my-FastWan-QAD-1.3B", "FastWan-QAD-1.3B-ft"]
)
def test_a_name_with_more_to_it_is_said_to_be_assumed(text: str) -> None:
    model, notes = told(text)
    assert model == QAD
    assert len(notes) == 1
    assert notes[0].startswith("assuming")
    assert text in notes[0]


@pytest.mark.parametrize(
    "text", ["ckpt", "model", ".", "MyFastWan-QAD-1.3Beta", "xWan2.1-T2V-1.3B"]
)
def test_a_name_that_tells_nothing_is_said_to_be_assumed(text: str) -> None:
    model, notes = told(text)
    assert model == QAD
    assert notes == [
        f"assuming the model {QAD}, since the checkpoint names none: --model NAME says which"
    ]


@pytest.mark.parametrize(
    "name",
    [
        TI2V, T2V14, "FastWan2.1-T2V-1.3B", "FastWan2.1-T2V-1.3B-Diffusers", "Wan2.1-T2V-14B",
        "Wan2.2-T2V-A14B-Diffusers", "Wan2.2-TI2V-5B", "TurboWan2.1-T2V-1.3B-480P",
    ],
)  # fmt: skip
def test_other_published_models_are_refused_by_name(name: str) -> None:
    with pytest.raises(BadInput, match=r"is not supported .*use FastWan-QAD-1\.3B or") as caught:
        told(name)
    assert caught.value.what.split()[1] in name


def test_what_it_was_made_from_tells_a_renamed_checkpoint() -> None:
    assert told("ckpt", f"FastVideo/{QAD}")[0] == QAD
    assert "assuming" in told("ckpt", f"FastVideo/{QAD}")[1][0]
    # A distilled model is made from one that is not, so the parent's name tells nothing.
    assert told(QAD, f"Wan-AI/{WAN}-Diffusers") == (QAD, [])
    with pytest.raises(BadInput, match=f"made from {WAN}, and nothing says.*pass --model"):
        told("ckpt", f"Wan-AI/{WAN}-Diffusers")


@pytest.mark.parametrize(("own", "origin"), [(QAD, TI2V), (QAD, T2V14), (WAN, TI2V)])
def test_names_that_contradict_each_other_are_refused(own: str, origin: str) -> None:
    assert told(own, own)[0] == own
    with pytest.raises(BadInput, match=f"says {own}, origin says {origin}: pass --model"):
        told(own, origin)


def test_the_title_of_a_model_card_names_the_model(tmp_path: Path) -> None:
    root = tmp_path / "ckpt"
    root.mkdir()
    (root / "README.md").write_text(
        f"---\nlicense: apache-2.0\nbase_model:\n- Wan-AI/{WAN}-Diffusers\n---\n# {TI2V}\n\n"
        f"See {QAD} and {T2V14}.\n",
        encoding="utf-8",
    )
    own, origins = own_claims(str(root), root), origin_claims(root, "", ())
    assert [claim.text for claim in origins if claim.text] == [f"Wan-AI/{WAN}-Diffusers"]
    with pytest.raises(BadInput, match=rf"{TI2V} is not supported \(the title of README.md\)"):
        tell_model(own, origins, [])
    (root / "README.md").write_text(f"# {QAD}\n", encoding="utf-8")
    assert tell_model(own_claims(str(root), root), [], []) == QAD
    (root / "README.md").write_text(f"# How {TI2V} compares\n", encoding="utf-8")
    notes: list[str] = []
    assert tell_model(own_claims(str(root), root), [], notes) == QAD
    assert "assuming" in notes[0]


@pytest.mark.parametrize(
    "front",
    [
        f"base_model: FastVideo/{TI2V}",
        f'base_model: "FastVideo/{TI2V}"',
        f"base_model: [FastVideo/{TI2V}]",
        f"base_model:\n- FastVideo/{TI2V}",
        f"base_model:\n  - FastVideo/{TI2V}\nbase_model_relation: finetune",
        f"license: other\nbase_model: {TI2V}\ntags: [video]",
    ],
)
def test_base_model_is_read_however_it_is_written(tmp_path: Path, front: str) -> None:
    (tmp_path / "README.md").write_text(f"---\n{front}\n---\n# A model\n", encoding="utf-8")
    with pytest.raises(BadInput, match=rf"{TI2V} is not supported \(base_model of README.md\)"):
        tell_model([], origin_claims(tmp_path, "", ()), [])


@pytest.mark.parametrize("data", [b"", b"---\n", b"\xff\xfe---", b"# \n", b"---\n: [\n---\n" * 9])
def test_a_card_that_says_nothing_is_passed_by(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "README.md").write_bytes(data)
    assert origin_claims(tmp_path, "", ()) == [Claim("model_index.json", "")]
    assert [claim.text for claim in own_claims("x", tmp_path)] == ["x", tmp_path.name]


@pytest.mark.parametrize("file", ["transformer/config.json", "model_index.json"])
def test_a_renamed_sibling_is_recognised_by_its_configurations(
    copy: Path, edit_json: Edit, file: str
) -> None:
    assert open_checkpoint(copy, components=()).model_name == QAD
    edit_json(copy / file, _name_or_path=f"FastVideo/{TI2V}")
    with pytest.raises(BadInput, match=f"model {TI2V} is not supported"):
        open_checkpoint(copy, components=())
    forced = open_checkpoint(copy, components=(), model=QAD)
    assert forced.model_name == QAD
    assert any(TI2V in note for note in forced.notes)


def test_a_link_into_the_hubs_cache_has_the_repositorys_name(tiny: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / f"models--FastVideo--{T2V14}" / "snapshots" / "0123"
    shutil.copytree(tiny, snapshot)
    (tmp_path / "ckpt").symlink_to(snapshot)
    with pytest.raises(BadInput, match=f"model {T2V14} is not supported"):
        open_checkpoint(tmp_path / "ckpt", components=())


def test_the_users_choice_is_held_against_the_names() -> None:
    named = [Claim("the folder's name", WAN)]
    assert overruled_names(named, [], WAN) == []
    assert overruled_names([], [Claim("origin", WAN)], QAD) == []
    assert overruled_names(named, [], QAD) == [
        f"built as {QAD}, though the folder's name says {WAN}"
    ]
    assert TI2V in overruled_names([], [Claim("origin", TI2V)], QAD)[0]


def test_a_shape_that_is_not_the_models_is_refused_with_both() -> None:
    check_shape(DiTConfig(), QAD, ())
    with pytest.raises(BadInput, match=r"40 layers, 40 heads, ffn_dim 13824.*30 layers, 12 heads"):
        check_shape(WAN_14B, QAD, ())
    check_shape(WAN_14B, QAD, (WAN_14B,))


@pytest.mark.parametrize(
    ("field", "value"),
    [("num_layers", 3), ("num_attention_heads", 40), ("ffn_dim", 13824), ("text_dim", 4096)],
)
@pytest.mark.parametrize("folder", [QAD, "ckpt"])
def test_a_larger_model_under_this_ones_name_is_refused(
    tiny: Path, tmp_path: Path, edit_json: Edit, folder: str, field: str, value: int
) -> None:
    root = Path(shutil.copytree(tiny, tmp_path / folder))
    assert open_checkpoint(root, components=("decoder",)).model_name == QAD
    edit_json(root / "transformer/config.json", **{field: value})
    with pytest.raises(BadInput, match=f"transformer has .*, {QAD} has 30 layers.*pass --model"):
        open_checkpoint(root, components=("decoder",))
    forced = open_checkpoint(root, components=("decoder",), model=QAD)
    assert any(str(value) in note and "built as" in note for note in forced.notes)


def test_the_fp8_sibling_is_told_from_the_others() -> None:
    notes: list[str] = []
    name = "FastWan-QAD-FP8-1.3B"
    assert tell_model([Claim("--checkpoint", f"FastVideo/{name}")], [], notes) == name
    assert notes == []
    assert MODELS[name].recipe == "fp8"
