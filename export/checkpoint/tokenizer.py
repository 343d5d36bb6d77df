"""The tokenizer of a checkpoint: read, tried, and completed by what its class would add.

The runtime plays ``tokenizer.json`` alone. transformers loads it through a class, which for T5 adds
the end token that the model was trained with, whatever the file says.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from fastwan.errors import BadInput, EnvironmentLacks, listed
from fastwan.export.checkpoint.model_index import ModelIndex
from fastwan.files import open_regular
from fastwan.install import how_to_install
from fastwan.strict_json import parse_json, quoted

TOKENIZER = "tokenizer.json"
_CONFIG = "tokenizer_config.json"
OTHER_FILES = (_CONFIG, "special_tokens_map.json", "added_tokens.json", "spiece.model")
"""Files of a tokenizer that a bundle keeps for people; the runtime does not read them."""

_ADD_END = ("T5Tokenizer", "T5TokenizerFast")
"""Classes of transformers that put the end token behind every prompt."""

_TRIAL = Path(__file__).with_name("tokenizer_trial.py")
_MAX_BYTES = 128 << 20
_SECONDS = 60.0
_REMAKE = (
    "make it anew with transformers' AutoTokenizer.from_pretrained(...).save_pretrained(...), or "
    "fetch tokenizer/ again"
)


def read_tokenizer(
    folder: Path,
    index: ModelIndex,
    *,
    text_length: int,
    vocab_size: int,
    end_id: int | None,
    notes: list[str],
) -> dict[str, bytes]:
    """Files of a tokenizer by name; ``tokenizer.json`` as it is to be played.

    Args:
        folder: ``tokenizer/`` of a checkpoint.
        index: names the class that diffusers loads it with.
        text_length: tokens of the longest prompt, the end token included.
        vocab_size: rows of the text encoder's embedding table.
        end_id: the text encoder's end token, where its configuration names one.
        notes: told of what was added.

    Raises:
        BadInput: there is no ``tokenizer.json``, it cannot be loaded, fails on a prompt, gives
            tokens that the encoder does not know, or ends prompts in another way than the class
            does.
        EnvironmentLacks: the package `tokenizers` is missing.
    """
    if not (folder / TOKENIZER).is_file():
        raise _no_tokenizer(folder)
    files = {TOKENIZER: _read(folder / TOKENIZER)}
    for name in OTHER_FILES:
        if (folder / name).is_file():
            files[name] = _read(folder / name)
    where = str(folder / TOKENIZER)
    config = parse_json(files[_CONFIG], str(folder / _CONFIG)) if _CONFIG in files else {}
    if config.get("truncation_side", "right") != "right":
        raise BadInput(
            "truncation_side is not 'right', and the runtime cuts long prompts at the right",
            where=str(folder / _CONFIG),
        )
    end = _token(config.get("eos_token", "</s>"))
    found = _try(files[TOKENIZER], text_length, end, where)
    class_names = (config.get("tokenizer_class"), index.classes.get("tokenizer"))
    by_class = next((name for name in class_names if name in _ADD_END), None)
    if by_class and found["end"] is not None and found["ids"] == found["bare"]:
        files[TOKENIZER] = _with_end(files[TOKENIZER], end, found["end"], where)
        found = _try(files[TOKENIZER], text_length, end, where)
        notes.append(f"tokenizer.json adds no end token; {end} is added, as {by_class} does")
    _check_end(found, end, end_id, by_class, where)
    if found["largest"] >= vocab_size:
        raise BadInput(
            f"tokenizer has a token {found['largest']}, the text encoder {vocab_size} tokens",
            where=where,
            fix="tokenizer and text encoder do not belong together; fetch both again",
        )
    _tell_added(found["added"], config, notes)
    return files


def _no_tokenizer(folder: Path) -> BadInput:
    if (folder / "spiece.model").is_file():
        return BadInput(
            "tokenizer.json is missing, there is the SentencePiece model spiece.model alone",
            where=str(folder),
            fix='convert it: python -c "from transformers import AutoTokenizer as T; '
            f"T.from_pretrained('{folder}').save_pretrained('{folder}')\"",
        )
    return BadInput(
        "tokenizer.json is missing",
        where=str(folder),
        fix="a fast tokenizer is needed; transformers' save_pretrained writes one",
    )


def _read(path: Path) -> bytes:
    try:
        with open_regular(path) as stream:
            data = stream.read(_MAX_BYTES + 1)
    except OSError as error:
        raise BadInput(f"cannot be read: {error.strerror or error}", where=str(path)) from None
    if len(data) > _MAX_BYTES:
        raise BadInput(f"larger than {_MAX_BYTES:,} bytes", where=str(path), fix=_REMAKE)
    return data


def _token(value: object) -> str:
    """A special token of ``tokenizer_config.json``: a string, or an object with its content."""
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) and content else "</s>"


def _try(data: bytes, text_length: int, end: str, where: str) -> dict[str, Any]:
    """What `tokenizer_trial` found; the child may die of the file, this process does not."""
    command = [sys.executable, "-P", str(_TRIAL), str(text_length), end]
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}
    try:
        done = subprocess.run(
            command, input=data, capture_output=True, timeout=_SECONDS, env=environment
        )
    except subprocess.TimeoutExpired:
        raise BadInput(
            f"tokenizer took longer than {_SECONDS:.0f} s for a few prompts",
            where=where,
            fix=_REMAKE,
        ) from None
    if done.returncode < 0:
        raise BadInput(
            f"tokenizer kills the library that loads it (signal {-done.returncode})",
            where=where,
            fix=_REMAKE,
        )
    if done.returncode:
        last = (done.stderr.decode("utf-8", "replace").strip().splitlines() or [""])[-1]
        if "ModuleNotFoundError" in last:
            raise EnvironmentLacks(
                "the Python package 'tokenizers' is missing", fix=how_to_install("build")
            )
        raise BadInput(f"tokenizer cannot be tried: {last[:200]}", where=where, fix=_REMAKE)
    found: dict[str, Any] = json.loads(done.stdout)
    if "error" in found:
        raise BadInput(
            f"tokenizer cannot be used: {found['error'][:200]}", where=where, fix=_REMAKE
        )
    return found


def _with_end(data: bytes, end: str, end_id: int, where: str) -> bytes:
    """The file with a post-processor that puts the end token behind every prompt."""
    fields = parse_json(data, where)
    piece = {"Sequence": {"id": "A", "type_id": 0}}
    last = {"SpecialToken": {"id": end, "type_id": 0}}
    template = {
        "type": "TemplateProcessing",
        "single": [piece, last],
        "pair": [piece, last, {"Sequence": {"id": "B", "type_id": 0}}, last],
        "special_tokens": {end: {"id": end, "ids": [end_id], "tokens": [end]}},
    }
    before = fields.get("post_processor")
    fields["post_processor"] = (
        template if before is None else {"type": "Sequence", "processors": [before, template]}
    )
    return (json.dumps(fields, ensure_ascii=False, indent=2) + "\n").encode("utf-8")


def _check_end(
    found: dict[str, Any], end: str, end_id: int | None, by_class: str | None, where: str
) -> None:
    last = found["end"]
    if last is None:
        raise BadInput(f"tokenizer has no token {quoted(end)}", where=where, fix=_REMAKE)
    if end_id not in (None, last):
        raise BadInput(
            f"tokenizer ends prompts with token {last}, eos_token_id of the text encoder is "
            f"{end_id}",
            where=where,
            fix=_REMAKE,
        )
    if not all(ids and ids[-1] == last for ids in found["ids"]):
        raise BadInput(
            f"tokenizer does not end every prompt with {quoted(end)}, as the text encoder was "
            "trained",
            where=where,
            fix="if it is a T5 tokenizer, say so with tokenizer_class T5TokenizerFast in "
            f"{_CONFIG}; otherwise {_REMAKE}",
        )
    pairs = list(zip(found["ids"], found["bare"], strict=True))
    around = next((ids for ids, bare in pairs if ids[:-1] != bare[: len(ids) - 1]), None)
    if by_class and around is not None:
        raise BadInput(
            f"tokenizer makes {str(around[:8])[:-1]}, ...] of a prompt, where {by_class} adds "
            f"{quoted(end)} alone",
            where=where,
            fix=_REMAKE,
        )


def _tell_added(there: dict[str, str], config: dict[str, Any], notes: list[str]) -> None:
    """Say which tokens transformers would add to the file from ``tokenizer_config.json``."""
    wanted = config.get("added_tokens_decoder")
    pairs = wanted.items() if isinstance(wanted, dict) else ()
    lacking = [_token(each) for number, each in pairs if there.get(number) != _token(each)]
    if lacking:
        notes.append(
            f"{_CONFIG} adds the tokens {listed(lacking)}, which tokenizer.json does not have: "
            "they are split like other text"
        )
