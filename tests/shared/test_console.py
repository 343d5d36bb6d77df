"""The standard streams: what is written to them, and what happens where nothing can be."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator

import pytest

from fastwan import console
from fastwan.console import MAX_LINE, ReaderGone, one_line, say, tell, typed_text
from fastwan.errors import BadInput, EnvironmentLacks


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("лиса 🦊 é", "лиса 🦊 é"),
        ("a\nb\r\n\tc  d ", "a b c d"),
        ("a\x1b[31mb", r"a\x1b[31mb"),
        ("a\x00\x07b\x7f", r"a\x00\x07b\x7f"),
        ("a\x85b\u2028c", r"a\x85b\u2028c"),
        ("a\u202egnp.exe", r"a\u202egnp.exe"),
        (os.fsdecode(b"a\xffb"), r"a\xffb"),
        ("a\ud83d", r"a\ud83d"),
    ],
)
def test_a_message_is_one_line_of_visible_characters(text: str, shown: str) -> None:
    assert one_line(text) == shown


@pytest.mark.parametrize("length", [MAX_LINE, MAX_LINE + 1, 1_000_000])
def test_a_long_message_keeps_its_beginning_and_its_end(length: int) -> None:
    text = "begin" + "x" * (length - 8) + "end"
    shown = one_line(text)
    assert (shown == text) == (length <= MAX_LINE)
    assert len(shown) <= MAX_LINE + len(" ... ")
    assert shown.startswith("begin")
    assert shown.endswith("end")


def test_what_was_typed_as_utf8_is_read_in_a_locale_without_it() -> None:
    text = "лиса 🦊"
    assert typed_text(text, "prompt") == text
    assert typed_text(text.encode().decode("ascii", "surrogateescape"), "prompt") == text


def test_what_is_no_utf8_is_refused() -> None:
    with pytest.raises(BadInput, match=r"not UTF-8 \(prompt\)"):
        typed_text(os.fsdecode("лиса".encode("cp1251")), "prompt")


@pytest.fixture(params=["read", "gone", "full"])
def stream(request: pytest.FixtureRequest) -> Iterator[tuple[str, io.TextIOWrapper, int]]:
    """A text stream, what its other end is like, and the descriptor of that end."""
    reader, writer = os.pipe()
    if request.param == "gone":
        os.close(reader)
    elif request.param == "full":
        os.close(writer)
        writer = os.open("/dev/full", os.O_WRONLY)
    with os.fdopen(writer, "w", encoding="utf-8") as opened:
        yield request.param, opened, reader
    if request.param != "gone":
        os.close(reader)


def test_a_result_that_cannot_be_written_is_an_error_once(
    monkeypatch: pytest.MonkeyPatch, stream: tuple[str, io.TextIOWrapper, int]
) -> None:
    end, opened, reader = stream
    monkeypatch.setattr(sys, "stdout", opened)
    if end == "read":
        tell("result")
        assert os.read(reader, 100) == b"result\n"
    elif end == "gone":
        with pytest.raises(ReaderGone):
            tell("result")
    else:
        with pytest.raises(EnvironmentLacks, match="No space left"):
            tell("result")
    opened.flush()  # as the interpreter does at its exit


def test_a_message_that_cannot_be_written_is_dropped(
    monkeypatch: pytest.MonkeyPatch, stream: tuple[str, io.TextIOWrapper, int]
) -> None:
    end, opened, reader = stream
    monkeypatch.setattr(sys, "stderr", opened)
    say("a\nmessage")
    if end == "read":
        assert os.read(reader, 100) == b"a message\n"
    say("another")
    opened.flush()


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "utf-8"])
def test_what_an_encoding_lacks_is_an_escape(
    monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    console.prepare_streams()
    tell("é лиса")
    shown = raw.getvalue().decode(encoding)
    assert shown.isprintable() or shown.endswith("\n")
    assert ("лиса" in shown) == (encoding == "utf-8")
    assert (r"\u043b" in shown) == (encoding != "utf-8")
    assert ("é" in shown) == (encoding != "ascii")
