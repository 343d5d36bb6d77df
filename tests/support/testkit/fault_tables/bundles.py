"""Files of a bundle that are damaged, missing, too large, or something else than files."""

from __future__ import annotations

import os
from pathlib import Path

from testkit.faults import Fault, Plant, both, cut, directory, flip, gone, grow, link, pipe, put

INSPECT = "fastwan-export inspect b --json"
BENCH = "fastwan-export bench b --device null --runs 1 --warmup 0 --json"
PLAY = "fastwan-export generate b 'a red fox' -o v.mp4 --device cpu --json"

ENGINE = "b/dit/segment_01.engine"
WEIGHTS = "b/onnx/dit.data"
GRAPH = "b/onnx/dit.cpu.onnx"
TOKENIZER = "b/onnx/tokenizer/tokenizer.json"
EMBEDDING = "b/onnx/embedding.safetensors"
LAYERS = "b/layers.json"


def _swapped(folder: Path) -> None:
    """Two engines under each other's names."""
    one, other = folder / "b/dit/segment_00.engine", folder / ENGINE
    one.rename(folder / "aside")
    other.rename(one)
    (folder / "aside").rename(other)


def _hard_link(folder: Path) -> None:
    os.link(folder / ENGINE, folder / "backup")


def _outside(folder: Path) -> None:
    """A folder of the bundle is a link to a copy of it elsewhere."""
    (folder / "b/dit").rename(folder / "dit")
    (folder / "b/dit").symlink_to(folder / "dit")


def _of(what: str, command: str, code: int, words: str, plant: Plant, kind: str = "J") -> Fault:
    return Fault(f"{command.split()[1]}: {what}", kind, command, code, words, plant)


FAULTS = (
    *(
        fault
        for command in (INSPECT, BENCH, PLAY)
        for fault in (
            _of("an engine is cut off", command, 4, r"100 bytes.*dit/segment_01\.engine",
                cut(ENGINE)),
            _of("an engine is a byte longer", command, 4, r"dit/segment_01\.engine", grow(ENGINE)),
            _of("an engine is gone", command, 2, r"missing.*dit/segment_01\.engine", gone(ENGINE)),
            _of("an engine is a pipe", command, 2, r"dit/segment_01\.engine", pipe(ENGINE)),
            _of("an engine is a folder", command, 2, r"dit/segment_01\.engine",
                directory(ENGINE)),
            _of("an engine is a link to a device", command, 2, r"link.*dit/segment_01\.engine",
                link(ENGINE, "/dev/zero")),
            _of("an engine is a link to the same file", command, 2,
                r"link.*dit/segment_01\.engine", link(ENGINE)),
            _of("two engines are swapped", command, 4, r"dit/segment_0[01]\.engine", _swapped),
            _of("a folder is a link", command, 2, r"link.*dit/", _outside),
            _of("the weights are cut off", command, 4, r"onnx/dit\.data", cut(WEIGHTS)),
            _of("the manifest is gone", command, 2, r"manifest\.json is missing",
                gone("b/manifest.json")),
            _of("the manifest is a pipe", command, 2, r"not a regular file.*manifest\.json",
                pipe("b/manifest.json")),
            _of("the manifest is a folder", command, 2, r"manifest\.json",
                directory("b/manifest.json")),
            _of("the manifest is cut off", command, 2, r"manifest\.json", cut("b/manifest.json")),
            _of("the manifest is empty", command, 2, r"manifest\.json", cut("b/manifest.json", 0)),
            _of("the bundle is gone", command, 2, r"not a folder.*b", gone("b")),
            _of("the bundle is a file", command, 2, r"not a folder.*b", both(gone("b"), put("b"))),
            _of("an engine has a second name", command, 0, "", _hard_link, "H"),
            _of("a file of somebody lies in the bundle", command, 0, "", put("b/notes.txt"), "A"),
        )
    ),
    _of("a byte of the records is another", INSPECT, 4, r"hash.*layers\.json", flip(LAYERS), "K"),
    _of("a byte of the tokenizer is another", PLAY, 4, r"hash.*tokenizer\.json",
        flip(TOKENIZER), "K"),
    _of("a byte of the embedding is another", PLAY, 4, r"hash.*embedding\.safetensors",
        flip(EMBEDDING), "K"),
    _of("a byte of the weights is another", PLAY, 4, r"hash.*onnx/dit\.data", flip(WEIGHTS), "K"),
    _of("a byte of the graph is another", PLAY, 4, r"hash.*dit\.cpu\.onnx", flip(GRAPH), "K"),
)  # fmt: skip
