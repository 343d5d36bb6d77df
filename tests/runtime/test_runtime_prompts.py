"""Prompts as they come from people, and the cache of their embeddings."""

from __future__ import annotations

import json
import shutil
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from tokenizers import Tokenizer, models

from fastwan.bundle import open_bundle
from fastwan.cli import main
from fastwan.content_cache import ContentCache
from fastwan.errors import BadInput, FastWanWarning
from fastwan.runtime.model.prompt import LONGEST_PROMPT
from fastwan.runtime.pipeline import FastWanPipeline
from fastwan.runtime.prompt_cache import PromptCache
from fastwan.runtime.request import Request

SHAPE = (1, 2, 4)


@pytest.fixture
def pipe(bundle: Any) -> FastWanPipeline:
    return FastWanPipeline.from_bundle(bundle.root, "cpu")


# Text.

UNUSABLE = [
    ("", "prompt is blank"),
    (" \t\n", "prompt is blank"),
    ("\u200b\u00a0\u2028\x00", "prompt is blank"),
    ("a fox\udcff", "not valid text: character 6"),
    ("\ud83d", "not valid text: character 1"),
    ("a " * LONGEST_PROMPT, "200,000 characters"),
    (b"a fox", "not one string"),
    (7, "not one string"),
]


@pytest.mark.parametrize(("prompt", "message"), UNUSABLE, ids=lambda value: ascii(value)[:20])
def test_a_prompt_that_is_no_text_is_refused(
    pipe: FastWanPipeline, prompt: Any, message: str
) -> None:
    for call in (pipe, pipe.embed, lambda text: pipe(["a", text])):
        with pytest.raises(BadInput, match=message) as refused:
            call(prompt)
        str(refused.value).encode()
        assert len(str(refused.value)) < 300


@pytest.mark.parametrize(
    "prompt", ["a fox", "  a\tfox\n", "狐狸", "🦊", "a\x00b\x1b[31m", "e\u0301", "\ue000", "a" * 99]
)
def test_everything_else_is_a_prompt(pipe: FastWanPipeline, prompt: str) -> None:
    assert pipe(prompt, output_type="latent").frames.shape == (1, 16, 3, 2, 4)


def test_a_prompt_that_is_cut_is_told_of_also_where_it_is_known(pipe: FastWanPipeline) -> None:
    for _ in range(2):
        with pytest.warns(FastWanWarning, match="more than 6 tokens"):
            pipe("a red fox runs a red fox", output_type="latent")


def test_it_is_told_of_once_a_process(pipe: FastWanPipeline) -> None:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("default", FastWanWarning)
        for _ in range(2):
            pipe("a red fox runs a red fox", output_type="latent")
    assert len([each for each in said if each.category is FastWanWarning]) == 1


@pytest.mark.parametrize("prompt", [b"a fox \xff", b"", b"  ", b"a fox"])
def test_the_command_refuses_it_in_one_line(bundle: Any, tmp_path: Path, prompt: bytes) -> None:
    text = prompt.decode("utf-8", "surrogateescape")  # as Python reads a command line
    arguments = [str(bundle.root), text, "-o", str(tmp_path / "out"), "--device", "cpu"]
    done = CliRunner().invoke(main, ["generate", *arguments])
    if prompt == b"a fox":
        assert done.exit_code == 0
        return
    assert done.exit_code == 2
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert "prompt" in errors[0]
    assert not (tmp_path / "out").exists()


def test_a_prompt_is_refused_before_the_bundle_is_opened(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["generate", str(tmp_path / "no"), " ", "-o", "out"])
    assert done.exit_code == 2
    assert "prompt is blank" in done.stderr


def test_a_tokenizer_without_an_unknown_token_is_an_error_in_words(bundle: Any) -> None:
    def write(unknown: str | None) -> FastWanPipeline:
        made = Tokenizer(models.WordLevel({"</s>": 0, "a": 2}, unknown))
        made.save(str(bundle.onnx / "tokenizer" / "tokenizer.json"))
        bundle.write_manifest()
        return FastWanPipeline.from_bundle(bundle.root, "cpu")

    write("</s>").embed("fox")
    with pytest.raises(BadInput, match="the tokenizer cannot read the prompt"):
        write(None).embed("fox")


# Their embeddings.


class Encoder:
    """Counts what it encodes."""

    def __init__(self, dtype: str = "bfloat16", shape: tuple[int, ...] = SHAPE) -> None:
        self.shape, self.dtype = shape, np.dtype(dtype)
        self.encoded: list[str] = []

    def encode(self, prompt: str) -> np.ndarray:
        self.encoded.append(prompt)
        return np.full(self.shape, len(prompt), self.dtype)


def test_embeddings_are_cached_by_content(bundle: Any, tmp_path: Path) -> None:
    encoder, opened = Encoder(), open_bundle(bundle.root)
    cache = PromptCache.of(opened, tmp_path / "prompts")
    for prompt in ("a", "fox", "a"):
        assert cache.get(prompt, encoder).astype(np.float32).max() == len(prompt)
    assert encoder.encoded == ["a", "fox"]
    # Another process finds them on disk.
    again = PromptCache.of(opened, tmp_path / "prompts").get("fox", encoder)
    assert (again.dtype, again.shape) == (encoder.dtype, SHAPE)
    assert not again.flags.writeable
    assert encoder.encoded == ["a", "fox"]


@pytest.mark.parametrize("other", ["encoder", "device"])
def test_another_encoder_or_device_has_embeddings_of_its_own(
    bundle: Any, tmp_path: Path, other: str
) -> None:
    def cache(runs_on: str) -> PromptCache:
        return PromptCache.of(open_bundle(bundle.root), tmp_path / "prompts", runs_on=runs_on)

    encoder = Encoder()
    for _ in range(2):
        cache("cpu").get("fox", encoder)
    assert encoder.encoded == ["fox"]
    if other == "encoder":
        path = bundle.root / "manifest.json"
        manifest = json.loads(path.read_text())
        manifest["files"]["text_encoder/text_encoder.engine"]["sha256"] = "0" * 64
        path.write_text(json.dumps(manifest))
    cache("cuda" if other == "device" else "cpu").get("fox", encoder)
    assert encoder.encoded == ["fox", "fox"]


def test_memory_holds_the_prompts_used_last() -> None:
    encoder = Encoder()
    cache = PromptCache("e", capacity=2)
    for prompt in ("a", "b", "a", "c", "a", "b"):
        cache.get(prompt, encoder)
    assert encoder.encoded == ["a", "b", "c", "b"]


def entries(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / "prompts").iterdir() if path.name != ".tmp")


def cut(folder: Path) -> None:
    (entry,) = entries(folder)
    path = entry / "prompt_embeds"
    path.write_bytes(path.read_bytes()[:-1])


def flip(folder: Path) -> None:
    (entry,) = entries(folder)
    path = entry / "prompt_embeds"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")


def lose(folder: Path) -> None:
    (entry,) = entries(folder)
    (entry / "prompt_embeds").unlink()


def forge(folder: Path) -> None:
    (entry,) = entries(folder)
    record = entry / "record.json"
    record.write_text(record.read_text().replace('"bfloat16"', '"float16"'))


def swap(folder: Path) -> None:
    """The entry of another prompt, whole, in the place of this one's."""
    PromptCache("e", folder / "other").get("another", Encoder())
    (mine,), (other,) = entries(folder), entries(folder / "other")
    shutil.rmtree(mine)
    shutil.copytree(other, mine)


def store(folder: Path, content: np.ndarray, **note: Any) -> None:
    """An entry that is whole and holds something else."""
    (entry,) = entries(folder)
    note = {"shape": list(content.shape), "dtype": content.dtype.name, **note}
    raw = {"prompt_embeds": content.tobytes()}
    ContentCache("prompts", folder).put(entry.name, raw, note, replace=True)


STORED: list[tuple[np.ndarray, dict[str, Any]]] = [
    (np.ones((1, 3, 4), "bfloat16"), {}),
    (np.ones((1, 2, 2), "float32"), {}),
    (np.ones(SHAPE, "float16"), {}),
    (np.ones(SHAPE, "bfloat16"), {"dtype": "object"}),
    (np.ones(SHAPE, "bfloat16"), {"shape": [-1, 4]}),
    (np.ones((1, 2, 3), "bfloat16"), {"shape": list(SHAPE)}),
    (np.full(SHAPE, np.nan, "bfloat16"), {}),
    (np.full(SHAPE, np.inf, "bfloat16"), {}),
]
DAMAGE: list[Any] = [cut, flip, lose, forge, swap]
DAMAGE += [lambda folder, each=each: store(folder, each[0], **each[1]) for each in STORED]


@pytest.mark.parametrize("damage", DAMAGE)
def test_an_entry_that_does_not_fit_is_made_again(tmp_path: Path, damage: Any) -> None:
    encoder = Encoder()
    for _ in range(2):
        expected = PromptCache("e", tmp_path).get("fox", encoder)
    assert encoder.encoded == ["fox"]
    damage(tmp_path)
    for _ in range(2):
        np.testing.assert_array_equal(PromptCache("e", tmp_path).get("fox", encoder), expected)
    assert encoder.encoded == ["fox", "fox"]


def test_a_folder_that_cannot_be_written_costs_a_warning(
    bundle: Any, pipe: FastWanPipeline, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with pytest.warns(FastWanWarning, match="set --prompt-cache to a folder"):
        without = FastWanPipeline.from_bundle(bundle.root, "cpu", prompt_cache=tmp_path / "file")
    np.testing.assert_array_equal(without("a").frames, pipe("a").frames)


def test_threads_share_a_cache(tmp_path: Path) -> None:
    prompts = ["a", "fox", "red fox", "a red fox"]
    start = threading.Barrier(8)
    wrong: list[str] = []
    caches = [PromptCache("e", tmp_path, capacity=2) for _ in range(2)]

    def work(index: int) -> None:
        start.wait()
        for turn in range(20):
            prompt = prompts[(index + turn) % len(prompts)]
            found = caches[index % 2].get(prompt, Encoder())
            if not (found.astype(np.float32) == len(prompt)).all():
                wrong.append(prompt)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(entries(tmp_path)) == len(prompts)


def test_pipelines_in_threads_share_a_folder(bundle: Any, tmp_path: Path) -> None:
    prompts = ("a", "red fox")
    plain = FastWanPipeline.from_bundle(bundle.root, "cpu")
    alone = {prompt: plain(prompt).frames for prompt in prompts}
    made: dict[tuple[int, str], Any] = {}

    def work(index: int) -> None:
        pipeline = FastWanPipeline.from_bundle(bundle.root, "cpu", prompt_cache=tmp_path / "p")
        for prompt in prompts:
            made[index, prompt] = pipeline(prompt).frames

    threads = [threading.Thread(target=work, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 6
    for (_, prompt), frames in made.items():
        np.testing.assert_array_equal(frames, alone[prompt])
    assert len(entries(tmp_path / "p")) == 2


def test_an_abandoned_video_keeps_the_cache_usable(bundle: Any, tmp_path: Path) -> None:
    pipeline = FastWanPipeline.from_bundle(bundle.root, "cpu", prompt_cache=tmp_path / "p")
    frames = pipeline.frames(Request(prompt="a"))
    next(frames)
    pipeline("red fox")
    frames.close()  # type: ignore[attr-defined]
    again = FastWanPipeline.from_bundle(bundle.root, "cpu", prompt_cache=tmp_path / "p")
    np.testing.assert_array_equal(again("a").frames, pipeline("a").frames)
