"""An accuracy set: a file of seeds and prompts, one video a line."""

from __future__ import annotations

from pathlib import Path

from fastwan.errors import BadInput
from fastwan.files import open_regular
from fastwan.quality.goldens.record import Video
from fastwan.runtime.model.prompt import check_prompt

MAX_BYTES = 4 << 20
MAX_VIDEOS = 1000

DEFAULT = (
    Video(seed=1024, prompt="A curious raccoon peers through a field of yellow sunflowers."),
    Video(seed=7, prompt="A red fox runs through fresh snow at sunrise, slow motion, film grain"),
)
"""The set where none is given."""


def read_prompts(path: Path) -> tuple[Video, ...]:
    """Read a file with a seed, a blank and a prompt on each line.

    Empty lines and those that begin with ``#`` are passed over.

    Raises:
        BadInput: a file that cannot be read or is not UTF-8, a line of another form, a prompt that
            no video can be made of, the same video twice, or none at all.
    """
    try:
        with open_regular(path) as stream:
            data = stream.read(MAX_BYTES + 1)
        lines = data.decode("utf-8").splitlines()
    except OSError as error:
        what = f"prompts cannot be read: {error.strerror or error}"
        raise BadInput(what, where=str(path)) from None
    except UnicodeDecodeError:
        raise BadInput("prompts are not UTF-8", where=str(path)) from None
    if len(data) > MAX_BYTES:
        raise BadInput(f"more than {MAX_BYTES:,} bytes of prompts", where=str(path))
    videos: dict[Video, int] = {}
    for number, line in enumerate(lines, 1):
        if line.strip() and not line.startswith("#"):
            video = _video(line, f"{path}, line {number}")
            if video in videos:
                what = f"the video of line {videos[video]} again"
                raise BadInput(what, where=f"{path}, line {number}")
            videos[video] = number
    if not 0 < len(videos) <= MAX_VIDEOS:
        fix = "a seed, a blank and a prompt on each line"
        what = f"{len(videos)} prompts, not 1 .. {MAX_VIDEOS:,}"
        raise BadInput(what, where=str(path), fix=fix)
    return tuple(videos)


def _video(line: str, where: str) -> Video:
    seed, _, prompt = line.strip().partition(" ")
    if not (seed.isascii() and seed.isdigit() and len(seed) <= 19 and int(seed) < 1 << 63):
        raise BadInput("no seed in front of the prompt", where=where, fix="e.g. 1024 A red fox")
    try:
        check_prompt(prompt.strip())
    except BadInput as error:
        raise BadInput(error.what, where=where) from None
    return Video(seed=int(seed), prompt=prompt.strip())
