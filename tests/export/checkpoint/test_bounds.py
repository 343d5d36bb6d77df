"""Every number of a configuration has bounds, and what is beyond them is refused at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fastwan.errors import BadInput
from fastwan.export.checkpoint.reader import open_checkpoint

Edit = Callable[..., None]

NUMBERS = {
    "transformer/config.json": (
        "num_layers", "num_attention_heads", "ffn_dim", "text_dim", "freq_dim",
    ),
    "text_encoder/config.json": (
        "vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads",
        "relative_attention_num_buckets", "relative_attention_max_distance",
    ),
}  # fmt: skip
CASES = [(file, name) for file, names in NUMBERS.items() for name in names]
SMALL = [("transformer/config.json", "eps"), ("text_encoder/config.json", "layer_norm_epsilon")]


def opened(root: Path) -> object:
    return open_checkpoint(root, components=("text_encoder",))


@pytest.mark.parametrize(("file", "name"), CASES)
@pytest.mark.parametrize(
    "value", [10**9, 2**31, 10**30, -1, 0, 1.5, 2.0, "2", True, [2], {"a": 2}, None]
)
def test_a_size_that_no_model_has_is_refused(
    copy: Path, edit_json: Edit, file: str, name: str, value: object
) -> None:
    assert opened(copy)
    edit_json(copy / file, **{name: value})
    with pytest.raises(BadInput, match=rf"{name} is .*{file.split('/')[0]}") as caught:
        opened(copy)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(("file", "name"), SMALL)
@pytest.mark.parametrize("value", [1e-46, 1e-300, 1e-39, 0, -1e-6, 1, 2.5, "1e-6", True, None, []])
def test_an_epsilon_that_fp32_does_not_hold_is_refused(
    copy: Path, edit_json: Edit, file: str, name: str, value: object
) -> None:
    edit_json(copy / file, **{name: 1e-5})
    assert opened(copy)
    edit_json(copy / file, **{name: value})
    with pytest.raises(BadInput, match=rf"{name} is "):
        opened(copy)


@pytest.mark.parametrize(("file", "name"), [*CASES, *SMALL])
@pytest.mark.parametrize(
    "digits", ["9" * 400, "1e-999", "NaN", "-Infinity", "0." + "0" * 400 + "1"]
)
def test_numbers_beyond_a_double_are_refused(copy: Path, file: str, name: str, digits: str) -> None:
    path = copy / file
    fields = json.loads(path.read_text())
    path.write_text(json.dumps({**fields, name: "HERE"}).replace('"HERE"', digits))
    with pytest.raises(BadInput, match=f"{file}"):
        opened(copy)


@pytest.mark.parametrize(
    ("file", "fields", "message"),
    [
        ("transformer/config.json", {"freq_dim": 255}, "expected an even number"),
        ("text_encoder/config.json", {"relative_attention_num_buckets": 31}, "even"),
        ("text_encoder/config.json", {"relative_attention_num_buckets": 2}, "4 or more"),
        ("text_encoder/config.json", {"relative_attention_max_distance": 8},
         "whole number from 9"),
    ],
)  # fmt: skip
def test_numbers_that_do_not_go_together_are_refused(
    copy: Path, edit_json: Edit, file: str, fields: dict[str, int], message: str
) -> None:
    assert opened(copy)
    edit_json(copy / file, **fields)
    with pytest.raises(BadInput, match=message):
        opened(copy)
