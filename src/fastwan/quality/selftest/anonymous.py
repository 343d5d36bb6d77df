"""Take out of a report what names a person, a folder or a machine."""

from __future__ import annotations

import getpass
import re
import socket
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from fastwan.quality.selftest.report import SelftestReport

_PATH = re.compile(r"(?<![\w./>])(?:~|[A-Za-z]:)?[/\\][\w.@%+~-]+(?:[/\\][^\s:;,'\"()\[\]]*)?")
"""An absolute path of any system, up to what ends one in a message."""

_BELOW = re.compile(r"<folder>[/\\][^\s:;,'\"()\[\]]*")

_NO_NAMES = frozenset({"root", "user", "localhost", "unknown"})


def private_words(bundle: Iterable[Path], folders: Iterable[Path] = ()) -> dict[str, str]:
    """What must not leave this machine, and what stands in its place.

    Args:
        bundle: paths of the bundle; where a file lies inside it may be told.
        folders: others that appear in messages.
    """
    words: dict[str, str] = {}
    others = (*folders, Path.cwd(), Path.home(), Path(tempfile.gettempdir()))
    for stand_in, known in (("<folder>", others), ("<bundle>", tuple(bundle))):
        for folder in known:
            for path in (folder.absolute(), folder.resolve()):
                if len(path.parts) > 1:
                    words[str(path)] = stand_in
    with suppress(OSError, KeyError, ImportError):
        words[getpass.getuser()] = "<user>"
    host = socket.gethostname()
    words |= {host: "<host>", host.partition(".")[0]: "<host>"}
    return {
        word: stand_in
        for word, stand_in in words.items()
        if len(word) > 2 and word.lower() not in _NO_NAMES
    }


def without(text: str, words: Mapping[str, str]) -> str:
    """`text` without private words, longest first, and without absolute paths."""
    for word in sorted(words, key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(word)}(?!\w)", words[word], text)
    return _PATH.sub("<path>", _BELOW.sub("<path>", text))


def anonymous(report: SelftestReport, words: Mapping[str, str]) -> SelftestReport:
    """A report whose messages went through `without`; nothing else in it comes from outside."""
    stages = tuple(
        each.model_copy(
            update={name: without(getattr(each, name), words) for name in ("note", "cause", "fix")}
        )
        for each in report.stages
    )
    return report.model_copy(update={"stages": stages})
