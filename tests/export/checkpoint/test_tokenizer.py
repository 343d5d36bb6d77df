"""Tokenizers as transformers loads them: tried, completed by their class, or refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from fastwan.errors import BadInput
from fastwan.export.checkpoint import tokenizer as reading
from fastwan.export.checkpoint.model_index import ModelIndex
from fastwan.export.checkpoint.tokenizer import read_tokenizer
from fastwan.export.checkpoint.tokenizer_trial import PROMPTS
from fastwan.runtime.text import load_tokenizer

LENGTH = 32
GENERIC = "PreTrainedTokenizerFast"
END = {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}


def read(
    folder: Path, notes: list[str] | None = None, *, loaded_as: str | None = None, **options: Any
) -> dict[str, bytes]:
    return read_tokenizer(
        folder,
        ModelIndex(classes={"tokenizer": loaded_as}),
        notes=[] if notes is None else notes,
        **{"text_length": LENGTH, "vocab_size": 300, "end_id": 1, **options},
    )


def ids_of(files: dict[str, bytes], folder: Path, prompt: str) -> list[int]:
    path = folder / "played.json"
    path.write_bytes(files["tokenizer.json"])
    ids: list[int] = load_tokenizer(path, LENGTH).encode(prompt).ids
    return ids


@pytest.fixture
def t5(tmp_path: Path) -> Path:
    """A Unigram tokenizer as transformers' own T5 class saves it."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), ("fox", -3.0)]
    pieces += [(chr(letter), -4.0) for letter in range(ord("a"), ord("z") + 1)]
    folder = tmp_path / "tokenizer"
    transformers.T5Tokenizer(vocab=pieces, extra_ids=4).save_pretrained(folder)
    return folder


@pytest.fixture
def tokenizer(copy: Path) -> Path:
    return copy / "tokenizer"


def test_a_whole_tokenizer_is_taken_byte_for_byte(tokenizer: Path, t5: Path) -> None:
    for folder in (tokenizer, t5):
        notes: list[str] = []
        files = read(folder, notes)
        assert files["tokenizer.json"] == (folder / "tokenizer.json").read_bytes()
        assert notes == []


@pytest.mark.parametrize("named_by", ["tokenizer_config.json", "model_index.json"])
@pytest.mark.parametrize("name", ["T5Tokenizer", "T5TokenizerFast"])
def test_the_end_token_is_added_as_the_class_adds_it(
    t5: Path, edit_json: Callable[..., None], tmp_path: Path, named_by: str, name: str
) -> None:
    transformers = pytest.importorskip("transformers")
    edit_json(t5 / "tokenizer.json", post_processor=None)
    edit_json(t5 / "tokenizer_config.json", tokenizer_class=name)
    theirs = getattr(transformers, name).from_pretrained(t5)
    if named_by == "model_index.json":
        edit_json(t5 / "tokenizer_config.json", tokenizer_class=None)
    notes: list[str] = []
    files = read(t5, notes, loaded_as=name if named_by == "model_index.json" else None)
    assert notes == [f"tokenizer.json adds no end token; </s> is added, as {name} does"]
    for prompt in PROMPTS:
        expected = theirs(prompt, truncation=True, max_length=LENGTH)["input_ids"]
        assert ids_of(files, tmp_path, prompt) == expected


def test_an_end_token_is_added_behind_another_post_processor(
    tokenizer: Path, edit_json: Callable[..., None], tmp_path: Path
) -> None:
    before = read(tokenizer)
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    byte_level["use_regex"] = False
    edit_json(tokenizer / "tokenizer.json", post_processor=byte_level)
    edit_json(tokenizer / "tokenizer_config.json", tokenizer_class="T5Tokenizer")
    after = read(tokenizer)
    for prompt in PROMPTS:
        assert ids_of(after, tmp_path, prompt) == ids_of(before, tmp_path, prompt)


def test_without_such_a_class_no_end_token_is_made_up(
    tokenizer: Path, edit_json: Callable[..., None]
) -> None:
    read(tokenizer)
    edit_json(tokenizer / "tokenizer.json", post_processor=None)
    with pytest.raises(BadInput, match=r"does not end every prompt with '</s>'.*T5TokenizerFast"):
        read(tokenizer, loaded_as=GENERIC)


def _with(folder: Path, **fields: Any) -> bytes:
    return json.dumps({**json.loads((folder / "tokenizer.json").read_text()), **fields}).encode()


def _word_level(folder: Path) -> bytes:
    made = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1, "a": 2}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return made.to_str().encode()


@pytest.mark.parametrize(
    "broken",
    [
        lambda folder: b"",
        lambda folder: b"{",
        lambda folder: b"{}",
        lambda folder: b"null",
        lambda folder: b"\xff\xfe\x00" * 100,
        lambda folder: b"[" * 100_000,
        lambda folder: (folder / "tokenizer.json").read_bytes()[:-9],
        lambda folder: _with(folder, model={"type": "BPE"}),
        lambda folder: _with(folder, version="9.9"),
        _word_level,
    ],
)
def test_a_tokenizer_that_cannot_be_used_is_refused(
    tokenizer: Path, broken: Callable[[Path], bytes]
) -> None:
    read(tokenizer)
    (tokenizer / "tokenizer.json").write_bytes(broken(tokenizer))
    with pytest.raises(BadInput, match=r"tokenizer cannot be used: .*tokenizer\.json") as caught:
        read(tokenizer)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "config", "message"),
    [
        ({"vocab_size": 258}, {}, "has a token 258, the text encoder 258 tokens"),
        ({"end_id": 2}, {}, "ends prompts with token 1, eos_token_id of the text encoder is 2"),
        ({}, {"eos_token": "<end>"}, "has no token '<end>'"),
        ({}, {"eos_token": {"content": "<pad>"}}, "ends prompts with token 0"),
        ({}, {"truncation_side": "left"}, "truncation_side"),
    ],
)
def test_a_tokenizer_of_another_encoder_is_refused(
    tokenizer: Path,
    edit_json: Callable[..., None],
    options: dict[str, int],
    config: dict[str, Any],
    message: str,
) -> None:
    read(tokenizer, vocab_size=259)
    edit_json(tokenizer / "tokenizer_config.json", **config)
    with pytest.raises(BadInput, match=message):
        read(tokenizer, **options)


def test_a_t5_tokenizer_that_adds_more_than_the_end_token_is_refused(
    tokenizer: Path, edit_json: Callable[..., None]
) -> None:
    pad = {"SpecialToken": {"id": "<pad>", "type_id": 0}}
    around = {
        "type": "TemplateProcessing",
        "single": [pad, *END],
        "pair": [*END],
        "special_tokens": {
            token: {"id": token, "ids": [number], "tokens": [token]}
            for token, number in (("<pad>", 0), ("</s>", 1))
        },
    }
    edit_json(tokenizer / "tokenizer.json", post_processor=around)
    read(tokenizer)  # another class plays the file as it is
    with pytest.raises(BadInput, match=r"makes \[0, 1\D.*T5Tokenizer adds '</s>' alone"):
        read(tokenizer, loaded_as="T5Tokenizer")


def test_tokens_that_transformers_would_add_are_told(
    tokenizer: Path, edit_json: Callable[..., None]
) -> None:
    known = {"1": {"content": "</s>"}}
    edit_json(tokenizer / "tokenizer_config.json", added_tokens_decoder=known)
    notes: list[str] = []
    read(tokenizer, notes)
    assert notes == []
    extra = {**known, "300": {"content": "<extra_id_0>"}}
    edit_json(tokenizer / "tokenizer_config.json", added_tokens_decoder=extra)
    read(tokenizer, notes)
    assert len(notes) == 1
    assert "<extra_id_0>" in notes[0]


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("import os; os.abort()", r"kills the library that loads it \(signal 6\)"),
        ("while True: pass", "took longer than"),
        ("import os; os._exit(3)", "cannot be tried"),
        ("raise MemoryError", "cannot be tried: MemoryError"),
    ],
)
def test_what_happens_in_the_child_does_not_happen_here(
    tokenizer: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, message: str
) -> None:
    read(tokenizer)
    (tmp_path / "trial.py").write_text(script)
    monkeypatch.setattr(reading, "_TRIAL", tmp_path / "trial.py")
    monkeypatch.setattr(reading, "_SECONDS", 1.0)
    with pytest.raises(BadInput, match=message):
        read(tokenizer)


def test_a_sentencepiece_model_alone_is_refused_with_the_conversion(tokenizer: Path) -> None:
    (tokenizer / "tokenizer.json").unlink()
    with pytest.raises(BadInput, match=r"tokenizer\.json is missing.*save_pretrained"):
        read(tokenizer)
    (tokenizer / "spiece.model").write_bytes(b"\n")
    with pytest.raises(BadInput, match=r"spiece\.model alone.*convert it: python -c"):
        read(tokenizer)
