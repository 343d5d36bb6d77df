"""Checkpoints by their hub id: what is fetched of them, and which commit they are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fastwan.errors import BadInput, EnvironmentLacks
from fastwan.export.checkpoint.hub import fetch_checkpoint, wanted_files
from fastwan.export.checkpoint.reader import open_checkpoint
from fastwan.hub.ids import is_repo_id
from fastwan.manifest_sources import HubSource
from testkit import stand_in_hub
from testkit.stand_in_hub import COMMITS, REPO, StandInHub, files_of

pytest.importorskip("huggingface_hub")

FILES = [
    ".gitattributes",
    "README.md",
    "lora.safetensors",
    "model_index.json",
    "pickle.bin",
    "scheduler/scheduler_config.json",
    "taew2_1.pth",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "text_encoder/model.fp16.safetensors",
    "text_encoder/pytorch_model.bin",
    "tokenizer/spiece.model",
    "tokenizer/tokenizer.json",
    "transformer/config.json",
    "transformer/diffusion_pytorch_model-00001-of-00002.safetensors",
    "transformer/diffusion_pytorch_model.fp16-00001-of-00002.safetensors",
    "transformer/diffusion_pytorch_model.safetensors.index.json",
    "transformer/more/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
]
GENERATOR = "generator_inference_transformer/diffusion_pytorch_model.safetensors"
BASE = ["model_index.json", "scheduler/scheduler_config.json", "transformer/config.json"]


def test_only_what_is_read_is_fetched() -> None:
    assert wanted_files(FILES, ("dit", "decoder")) == [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "taew2_1.pth",
        "transformer/config.json",
        "transformer/diffusion_pytorch_model-00001-of-00002.safetensors",
        "transformer/diffusion_pytorch_model.safetensors.index.json",
    ]
    assert wanted_files(FILES, ("text_encoder",)) == [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "tokenizer/spiece.model",
        "tokenizer/tokenizer.json",
        "transformer/config.json",
    ]
    assert wanted_files([*FILES, GENERATOR], ("dit",)) == [GENERATOR, *BASE]


def test_a_variant_is_fetched_where_there_is_nothing_else() -> None:
    variant = "text_encoder/model.fp16.safetensors"
    files = [name for name in FILES if name != "text_encoder/model.safetensors"]
    assert variant in wanted_files(files, ("text_encoder",))
    assert variant not in wanted_files(FILES, ("text_encoder",))


def test_what_reads_as_an_id() -> None:
    for source in ("FastVideo/FastWan-QAD-1.3B", "a/b@v1.0", "a/b@refs/pr/1", "a/b@v1+cuda"):
        assert is_repo_id(source)
    for source in (
        "a", "/a/b", "./a", "../a", "a/b/c", "a/..", "a/b@../c", "a b/c", "a/b@", "a/b@c/",
        "a/b@c@d", "a/b@c..d", "a/b\n",
    ):  # fmt: skip
        assert not is_repo_id(source)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tiny: Path, tmp_path: Path) -> Iterator[StandInHub]:
    """A hub with the tiny checkpoint, of which a later commit has a README.md."""
    files = files_of(tiny)
    later = files | {"README.md": b"# FastWan-QAD-1.3B", ".gitattributes": b""}
    stand_in = StandInHub({COMMITS[0]: files, COMMITS[1]: later}, {"main": COMMITS[1]})
    with stand_in_hub.serve(stand_in) as address:
        stand_in_hub.use(monkeypatch, address, tmp_path / "hub")
        yield stand_in


def test_an_id_opens_like_a_folder(hub: StandInHub, tiny: Path) -> None:
    checkpoint = open_checkpoint(REPO, components=("dit",))
    local = open_checkpoint(tiny, components=("dit",))
    assert checkpoint.source == REPO
    assert checkpoint.model_name == "FastWan-QAD-1.3B"
    assert checkpoint.hub == HubSource(repo=REPO, commit=COMMITS[1])
    assert local.hub is None
    assert checkpoint.dit_config == local.dit_config
    assert checkpoint.transformer.names() == local.transformer.names()
    name = local.transformer.names()[0]
    assert checkpoint.transformer.read(name).equal(local.transformer.read(name))
    fetched = files_of(checkpoint.root)
    assert "README.md" in fetched
    assert not any(name.startswith("text_encoder/") for name in fetched)


@pytest.mark.parametrize("revision", [COMMITS[0], COMMITS[1]])
def test_a_revision_is_pinned(
    hub: StandInHub, monkeypatch: pytest.MonkeyPatch, revision: str
) -> None:
    for source, option in ((f"{REPO}@{revision}", None), (REPO, revision)):
        checkpoint = open_checkpoint(source, components=("decoder",), revision=option)
        assert checkpoint.hub == HubSource(repo=REPO, commit=revision)
        assert checkpoint.root.name == revision
    stand_in_hub.offline(monkeypatch)
    assert open_checkpoint(REPO, components=("decoder",), revision=revision).root == checkpoint.root
    # No branch was fetched, so nobody knows which commit it is.
    with pytest.raises(EnvironmentLacks, match=f"holds only {revision}"):
        open_checkpoint(REPO, components=("decoder",))


def test_a_folder_has_no_revision(tiny: Path) -> None:
    with pytest.raises(BadInput, match=r"no revision 'v1'.*--revision"):
        open_checkpoint(tiny, components=("decoder",), revision="v1")
    assert open_checkpoint(tiny, components=("decoder",)).hub is None


def test_a_component_that_was_never_fetched_is_named(
    hub: StandInHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_checkpoint(REPO, components=("decoder",))
    stand_in_hub.offline(monkeypatch)
    open_checkpoint(REPO, components=("decoder",))
    weights = r"transformer/diffusion_pytorch_model\.safetensors was never fetched"
    with pytest.raises(EnvironmentLacks, match=weights):
        open_checkpoint(REPO, components=("dit",))
    with pytest.raises(EnvironmentLacks, match=r"text_encoder/config\.json, .* were never fetched"):
        open_checkpoint(REPO, components=("decoder", "text_encoder"))


@pytest.mark.parametrize("component", ["decoder", "dit"])
def test_a_cache_of_an_older_library_will_do(
    hub: StandInHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, component: str
) -> None:
    """It keeps no list of the repository's files: what is there decides, and what is always."""
    open_checkpoint(REPO, components=("decoder",))
    for path in tmp_path.glob("hub/*/trees/*"):
        path.unlink()
    stand_in_hub.offline(monkeypatch)
    if component == "decoder":
        assert open_checkpoint(REPO, components=("decoder",)).decoder is not None
        return
    with pytest.raises(EnvironmentLacks, match=r"diffusion_pytorch_model\.safetensors was never"):
        open_checkpoint(REPO, components=("dit",))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["model.gguf", "README.md"], r"no model_index\.json but README\.md, model\.gguf"),
        (["manifest.json", "layers.json"], "this is an engine bundle, not a checkpoint"),
        (
            ["model_index.json", "transformer/diffusion_pytorch_model.bin"],
            r"no transformer/diffusion_pytorch_model\.safetensors but .*\.bin",
        ),
        (["model_index.json"], r"no transformer/diffusion_pytorch_model\.safetensors"),
        ([], r"no model_index\.json"),
    ],
)
def test_what_a_repository_holds_instead_is_said(
    hub: StandInHub, files: list[str], message: str
) -> None:
    hub.commits[COMMITS[1]] = dict.fromkeys(files, b"{}")
    with pytest.raises(BadInput, match=message) as refused:
        fetch_checkpoint(REPO, ("dit",))
    assert REPO in str(refused.value)
    assert not any("/resolve/" in each for each in hub.asked)
