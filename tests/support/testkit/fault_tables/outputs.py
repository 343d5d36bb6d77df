"""Outputs that hold what somebody else wrote, or that cannot be written."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from testkit.fault_tables.bundles import PLAY
from testkit.fault_tables.options import BUILD, MAKE
from testkit.faults import Fault, Plant, both, directory, edit, flip, gone, link, pipe, put

FRAMES = f"{PLAY} --frames frames"


def _mine(folder: Path) -> None:
    assert (folder / "new/mine").read_bytes() == b"mine"


def _made(folder: Path) -> None:
    """What an earlier run made."""
    from fastwan.export.checkpoint.synthetic import make_checkpoint

    make_checkpoint(folder / "new", size="tiny")


def _empty(folder: Path) -> None:
    (folder / "new").mkdir()


def _moved(folder: Path) -> None:
    """An earlier output, with a file of somebody's in a folder of it."""
    (folder / "new/transformer/notes").write_text("mine")


def _own(name: str, plant: Plant) -> Fault:
    return Fault(f"over its own: {name}", "A", MAKE, 2, "new", plant, before=_made)


def _foreign(name: str, command: str, output: str, plant: Plant, words: str = "") -> Fault:
    return Fault(f"{command.split()[1]}: {name}", "A", command, 2, words or output, plant)


def _leftover(folder: Path) -> None:
    """A folder that a killed run left."""
    from fastwan.staging import Staging

    stage = Staging(folder)
    (stage.folder / "half").write_text("half")
    stage.release()


def _no_leftover(folder: Path) -> None:
    assert list(folder.glob(".fastwan-*")) == []


def _somebodys(folder: Path) -> None:
    """A hidden folder of the same kind of name, whose lock tells of another folder."""
    other = folder / ".fastwan-0123456789abcdef"
    other.mkdir()
    (other / "mine").write_text("mine")
    lock = {"tool": "fastwan-export", "device": 1, "inode": 2}
    (other / ".lock").write_text(json.dumps(lock))


def _still_there(folder: Path) -> None:
    assert (folder / ".fastwan-0123456789abcdef/mine").read_text() == "mine"


def _aside(folder: Path) -> None:
    """A run was killed between moving the old output aside and putting the new one there."""
    from fastwan.staging import Staging

    stage = Staging(folder)
    stage.note(target="new")
    os.rename(folder / "new", stage.folder / "old")
    stage.release()


def _whole(folder: Path) -> None:
    from fastwan.ownership import prove

    proof = prove(folder / "new")
    assert (proof.kind, proof.foreign) == ("checkpoint", ())
    _no_leftover(folder)


def _copied(folder: Path) -> None:
    shutil.copytree(folder / "b", folder / "new")


FAULTS = (
    _foreign("a file of somebody", MAKE, "new", put("new/mine")),
    _foreign("a model_index.json of somebody", MAKE, "new", put("new/model_index.json", "{}")),
    _foreign("a hidden file", MAKE, "new", put("new/.mine")),
    _foreign("an empty folder inside", MAKE, "new",
             lambda folder: (folder / "new/empty").mkdir(parents=True)),
    _foreign("a record without files", MAKE, "new",
             both(put("new/mine"), put("new/fastwan-export.json",
                  '{"tool": "fastwan-export", "kind": "checkpoint", "files": {}}'))),
    _foreign("a file in the way", MAKE, "not a folder.*new", put("new")),
    _foreign("a pipe in the way", MAKE, "not a folder.*new", pipe("new")),
    _foreign("a link to a folder of somebody", MAKE, "new",
             both(put("theirs/mine"), link("new", "theirs"))),
    Fault("make-checkpoint: the current folder", "A", MAKE.replace("new", "."), 2,
          "current folder", put("mine"), twin=MAKE),
    _own("a file was added", _moved),
    _own("a file was changed", flip("new/transformer/config.json")),
    _own("a file became a link", link("new/transformer/config.json")),
    _own("the record was edited", edit("new/fastwan-export.json", "tool", "another")),
    _own("the record is gone", gone("new/fastwan-export.json")),
    _own("the kind is another", edit("new/fastwan-export.json", "kind", "bundle")),
    _own("a hash was edited",
         edit("new/fastwan-export.json", "files.*.sha256", "0" * 64)),
    Fault("over its own, with --force: a file was added", "A", f"{MAKE} --force", 0,
          "--force deletes transformer/notes", _moved, before=_made, check=_whole),
    Fault("build-engine: the checkpoint is the output", "A", BUILD.replace("-o out", "-o ck"), 2,
          "input ck", put("ck/mine"), twin=BUILD),
    _foreign("a folder of somebody", BUILD, "out", put("out/mine")),
    _foreign("a manifest of somebody", BUILD, "out", put("out/manifest.json", "{}")),
    _foreign("a video of somebody", PLAY, r"v\.mp4", put("v.mp4")),
    _foreign("a folder with the video's name", PLAY, r"v\.mp4", directory("v.mp4")),
    _foreign("a pipe with the video's name", PLAY, r"v\.mp4", pipe("v.mp4")),
    _foreign("a device as the video", PLAY, r"v\.mp4", link("v.mp4", "/dev/null")),
    _foreign("frames over a folder of somebody", FRAMES, "frames", put("frames/mine")),
    _foreign("frames over a frames.json of somebody", FRAMES, "frames",
             put("frames/frames.json", "{}")),
    Fault("generate: the video inside the frames", "A",
          PLAY.replace("v.mp4", "frames/v.mp4") + " --frames frames", 2, "frames", twin=FRAMES),
    Fault("generate: the video inside the bundle", "A", PLAY.replace("v.mp4", "b"), 2, "b",
          twin=PLAY),
    Fault("generate: the frames are the bundle", "A", f"{PLAY} --frames b", 2, "b", twin=FRAMES),
    Fault("generate: two outputs of one name", "A", f"{PLAY} --frames v.mp4", 2, r"v\.mp4",
          twin=FRAMES),
    Fault("generate: a name of 300 characters", "A", PLAY.replace("v.mp4", f"{'x' * 300}.mp4"), 2,
          "too long", twin=PLAY.replace("v.mp4", f"{'x' * 200}.mp4")),
    Fault("generate: below a file", "A", PLAY.replace("v.mp4", "mine/v.mp4"), 2, "mine",
          put("mine")),
    Fault("make-checkpoint: below a device", "A", MAKE.replace("new", "/dev/null/new"), 2,
          "/dev/null", twin=MAKE),
    Fault("make-checkpoint: where the system lets nobody", "A", MAKE.replace("new", "/proc/new"),
          2, "/proc/new", twin=MAKE),
    Fault("make-checkpoint: a killed run left a folder", "J", MAKE, 0, "", _leftover,
          check=_no_leftover),
    Fault("make-checkpoint: a killed run had just begun", "J", MAKE, 0, "",
          lambda folder: (folder / ".fastwan-0123456789abcdef").mkdir(), check=_no_leftover),
    Fault("make-checkpoint: a hidden folder of somebody", "J", MAKE, 0, "", _somebodys,
          check=_still_there),
    Fault("make-checkpoint: a killed run had moved the output aside", "L", MAKE, 0, "", _aside,
          before=_made, check=_whole),
)  # fmt: skip
