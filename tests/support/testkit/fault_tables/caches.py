"""Caches that hold what was not stored, or that cannot be used."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from testkit.fault_tables.bundles import PLAY
from testkit.faults import Fault, Plant, flip, link, pipe, put

CACHED = f"{PLAY} --prompt-cache prompts"


def _filled(folder: Path) -> None:
    """The cache and the video as an earlier run left them."""
    if not _LEFT:
        from fastwan.runtime.generate import generate

        first = folder / "first.mp4"
        generate(folder / "b", "a red fox", first, device="cpu", prompt_cache=folder / "prompts")
        for path in (first, *(folder / "prompts").rglob("*.*"), *folder.rglob("prompt_embeds")):
            if path.is_file():
                _LEFT[str(path.relative_to(folder))] = path.read_bytes()
    for name, content in _LEFT.items():
        put(name, content)(folder)


_LEFT: dict[str, bytes] = {}


def _same(folder: Path) -> None:
    """The video is that of the run without the fault."""
    assert (folder / "v.mp4").read_bytes() == (folder / "first.mp4").read_bytes()


def entry(change: Callable[[Path], None]) -> Plant:
    """A change to the only entry of the cache."""

    def plant(folder: Path) -> None:
        (record,) = (folder / "prompts").rglob("record.json")
        change(record.parent)

    return plant


def _edit(folder: Path, **fields: object) -> None:
    whole = json.loads((folder / "record.json").read_bytes())
    whole["record"] |= fields
    (folder / "record.json").write_text(json.dumps(whole))


def _nan(folder: Path) -> None:
    """Embeddings that are not finite under a record that fits them."""
    from fastwan.cache_entry import write_entry

    size = (folder / "prompt_embeds").stat().st_size
    note = json.loads((folder / "record.json").read_bytes())["record"]["note"]
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    write_entry(folder, "prompts", {"prompt_embeds": b"\xff" * size}, note)


def _narrow(folder: Path) -> None:
    """Embeddings of another shape under a record that fits them."""
    from fastwan.cache_entry import write_entry

    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    write_entry(folder, "prompts", {"prompt_embeds": bytes(8)},
                {"shape": [1, 4], "dtype": "bfloat16"})  # fmt: skip


def _fault(name: str, change: Callable[[Path], None], kind: str = "K") -> Fault:
    return Fault(
        f"prompt cache: {name}", kind, CACHED, 0, "", entry(change), before=_filled, check=_same
    )


def _unusable(name: str, plant: Plant) -> Fault:
    return Fault(f"prompt cache: {name}", "G", CACHED, 0, "warning: .*cache", plant)


FAULTS = (
    _fault("a byte of the embeddings is another", flip("prompt_embeds", 3)),
    _fault("the embeddings are cut off", lambda f: (f / "prompt_embeds").write_bytes(b"short")),
    _fault("the embeddings are gone", lambda f: (f / "prompt_embeds").unlink()),
    _fault("the embeddings are a pipe", pipe("prompt_embeds")),
    _fault("the embeddings are a device", link("prompt_embeds", "/dev/zero")),
    _fault("the record is of another shape", lambda f: _edit(f, note={"shape": [1, 4]})),
    _fault("the record is of another key", lambda f: _edit(f, key="0" * 64)),
    _fault("the record is of another kind", lambda f: _edit(f, kind="engines")),
    _fault("the record is not JSON", put("record.json", "{")),
    _fault("the record is a pipe", pipe("record.json")),
    _fault("the record is gone", lambda f: (f / "record.json").unlink()),
    _fault("the record names a file outside", lambda f: _edit(f, files={"../../../b": {}})),
    _fault("embeddings that are NaN, signed", _nan, "E"),
    _fault("embeddings of another shape, signed", _narrow, "E"),
    _unusable("a file in its place", put("prompts")),
    _unusable("a link that leads nowhere", link("prompts", "/dev/null/prompts")),
    _unusable("a file for its entries", put("prompts/prompts")),
)  # fmt: skip
