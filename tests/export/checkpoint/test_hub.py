"""Hugging Face ids without a network: what would be fetched, and how failures read."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fastwan.errors import BadInput, EnvironmentLacks, FastWanError
from fastwan.export.checkpoint.hub import is_repo_id, wanted_files
from fastwan.export.checkpoint.reader import open_checkpoint

huggingface_hub = pytest.importorskip("huggingface_hub")
errors = pytest.importorskip("huggingface_hub.errors")

FILES = [
    "README.md",
    "model_index.json",
    "pickle.bin",
    "scheduler/scheduler_config.json",
    "taew2_1.pth",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "text_encoder/pytorch_model.bin",
    "tokenizer/spiece.model",
    "tokenizer/tokenizer.json",
    "transformer/config.json",
    "transformer/diffusion_pytorch_model-00001-of-00002.safetensors",
    "transformer/diffusion_pytorch_model.safetensors.index.json",
    "vae/diffusion_pytorch_model.safetensors",
]
GENERATOR = "generator_inference_transformer/diffusion_pytorch_model.safetensors"


def test_only_what_is_read_is_fetched() -> None:
    assert wanted_files(FILES, ("dit", "decoder")) == [
        "model_index.json",
        "taew2_1.pth",
        "transformer/config.json",
        "transformer/diffusion_pytorch_model-00001-of-00002.safetensors",
        "transformer/diffusion_pytorch_model.safetensors.index.json",
    ]
    assert wanted_files(FILES, ("text_encoder",)) == [
        "model_index.json",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "tokenizer/spiece.model",
        "tokenizer/tokenizer.json",
        "transformer/config.json",
    ]
    assert wanted_files([*FILES, GENERATOR], ("dit",)) == [
        GENERATOR,
        "model_index.json",
        "transformer/config.json",
    ]


def test_what_reads_as_an_id() -> None:
    for source in ("FastVideo/FastWan-QAD-1.3B", "a/b@v1.0", "a/b@refs/pr/1"):
        assert is_repo_id(source)
    for source in ("a", "/a/b", "./a", "../a", "a/b/c", "a/..", "a/b@../c", "a b/c", "a/b@"):
        assert not is_repo_id(source)


class _Api:
    """Stands in for `HfApi`; raises `failure` or lists FILES."""

    failure: BaseException | None = None

    def model_info(self, repo: str, **options: Any) -> Any:
        if self.failure is not None:
            raise self.failure
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in FILES])


def _make(kind: str) -> BaseException:
    error = getattr(errors, kind).__new__(getattr(errors, kind))
    error.args = ("first line\nsecond line",)
    return error  # type: ignore[no-any-return]


def test_an_id_opens_like_a_folder(monkeypatch: pytest.MonkeyPatch, tiny: Path) -> None:
    asked: dict[str, Any] = {}

    def snapshot(repo: str, **options: Any) -> str:
        asked.update(options, repo=repo)
        return str(tiny)

    monkeypatch.setattr(huggingface_hub, "HfApi", _Api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    checkpoint = open_checkpoint("FastVideo/FastWan-QAD-1.3B@v1", components=("dit",))
    assert checkpoint.root == tiny
    assert checkpoint.source == "FastVideo/FastWan-QAD-1.3B@v1"
    assert checkpoint.model_name == "FastWan-QAD-1.3B"
    assert asked["repo"] == "FastVideo/FastWan-QAD-1.3B"
    assert asked["revision"] == "v1"
    assert asked["allow_patterns"] == wanted_files(FILES, ("dit",))


def test_the_cache_answers_when_there_is_no_network(
    monkeypatch: pytest.MonkeyPatch, tiny: Path
) -> None:
    def snapshot(repo: str, **options: Any) -> str:
        assert options["local_files_only"]
        return str(tiny)

    monkeypatch.setattr(huggingface_hub, "HfApi", _Api)
    monkeypatch.setattr(_Api, "failure", ConnectionError("no network"))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert open_checkpoint("FastVideo/FastWan-QAD-1.3B", components=("dit",)).root == tiny


@pytest.mark.parametrize(
    ("listing", "fetching", "kind", "message"),
    [
        ("RepositoryNotFoundError", None, BadInput, "neither a folder nor a model"),
        ("RevisionNotFoundError", None, BadInput, "no such revision"),
        (None, "GatedRepoError", BadInput, "access to this model has to be granted"),
        ("OfflineModeIsEnabled", "LocalEntryNotFoundError", EnvironmentLacks, "cannot be reached"),
        ("HFValidationError", "HFValidationError", BadInput, "not a model's name"),
        (None, "LocalEntryNotFoundError", EnvironmentLacks, "cannot be reached"),
        (None, "HfHubHTTPError", EnvironmentLacks, "download failed: first line"),
    ],
)
def test_failures_are_one_line(
    monkeypatch: pytest.MonkeyPatch,
    listing: str | None,
    fetching: str | None,
    kind: type[FastWanError],
    message: str,
) -> None:
    def snapshot(repo: str, **options: Any) -> str:
        assert fetching is not None
        raise _make(fetching)

    monkeypatch.setattr(huggingface_hub, "HfApi", _Api)
    monkeypatch.setattr(_Api, "failure", None if listing is None else _make(listing))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    with pytest.raises(kind, match=message) as caught:
        open_checkpoint("owner/name", components=("dit",))
    assert "\n" not in str(caught.value)
    assert "owner/name" in str(caught.value)


def test_a_full_disk_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot(repo: str, **options: Any) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(huggingface_hub, "HfApi", _Api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    with pytest.raises(EnvironmentLacks, match=r"download failed.*No space left"):
        open_checkpoint("owner/name", components=("dit",))
