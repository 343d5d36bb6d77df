"""The strict JSON reader: what it refuses, what it takes, and that nothing else happens."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastwan.errors import BadInput
from fastwan.export.checkpoint.config_file import ConfigFile
from fastwan.manifest import MANIFEST, Manifest
from fastwan.manifest_reader import parse_manifest
from fastwan.quality.baseline import read_baseline
from fastwan.strict_json import MAX_DEPTH, MAX_NUMBER, parse_json, read_json

SOUND = b'{"a": [1, -2.5e3, "\\u00e9\\ud83d\\ude00", null, true, {}], "b": {"c": "]}\\"["}}'


def test_a_sound_object_is_what_json_makes_of_it() -> None:
    assert parse_json(SOUND, "f") == json.loads(SOUND)


@pytest.mark.parametrize(
    ("fault", "twin", "message"),
    [
        ('{"a": 1, "a": 1}', '{"a": 1, "b": 1}', "key 'a' is given twice"),
        ('{"x": {"a": 1, "a": 2}}', '{"x": {"a": 1}, "a": 2}', "key 'a' is given twice"),
        ('{"a": 1, "\\u0061": 1}', '{"a": 1, "\\u0062": 1}', "key 'a' is given twice"),
        ('{"a": NaN}', '{"a": "NaN"}', "NaN is not JSON"),
        ('{"a": -Infinity}', '{"a": "-Infinity"}', "-Infinity is not JSON"),
        ('{"a": 1e999}', '{"a": 1e99}', "beyond what a double holds"),
        ('{"a": -1e400}', '{"a": -1e300}', "beyond what a double holds"),
        ('{"a": 1e-400}', '{"a": 0e-400}', "beyond what a double holds"),
        ('{"a": %s}' % ("9" * 65), '{"a": %s}' % ("9" * 64), "a number of 65 characters"),
        ('{"a": 0.%s}' % ("1" * 400), '{"a": 0.%s}' % ("1" * 40), "a number of 402 characters"),
        ("[1]", '{"a": [1]}', "not an object"),
        ("1", '{"a": 1}', "not an object"),
        ("", "{}", "not valid JSON"),
        ('{"a": 1', '{"a": 1}', "not valid JSON"),
        ('{"a": 1}}', '{"a": 1} ', "not valid JSON"),
        ("{'a': 1}", '{"a": 1}', "not valid JSON"),
        ('{"a": 1,}', '{"a": 1}', "not valid JSON"),
        ('{"a": 01}', '{"a": 1}', "not valid JSON"),
        ('{"a": "\n"}', '{"a": "\\n"}', "not valid JSON"),
        ('\ufeff{"a": 1}', '{"a": 1}', "not valid JSON"),
        ('{"a": "\\ud800"}', '{"a": "\\ud83d\\ude00"}', "half a surrogate pair"),
        ('{"\\udc00": 1}', '{"\\u00dc": 1}', "half a surrogate pair"),
    ],
)  # fmt: skip
def test_what_may_surprise_is_refused(fault: str, twin: str, message: str) -> None:
    parse_json(twin.encode(), "twin")
    with pytest.raises(BadInput, match=message) as refused:
        parse_json(fault.encode(), "the file")
    assert refused.value.where == "the file"
    assert "\n" not in str(refused.value)


def test_bytes_that_are_not_utf_8_are_refused() -> None:
    assert parse_json('{"a": "é"}'.encode(), "f") == {"a": "é"}
    with pytest.raises(BadInput, match="not valid JSON"):
        parse_json('{"a": "é"}'.encode("latin-1"), "f")


def nested(levels: int, kind: str) -> bytes:
    inner = levels - 1
    if kind == "arrays":
        return b'{"a": ' + b"[" * inner + b"]" * inner + b"}"
    return b'{"a": ' * inner + b"{}" + b"}" * inner


@pytest.mark.parametrize("kind", ["arrays", "objects"])
@pytest.mark.parametrize("levels", [MAX_DEPTH, MAX_DEPTH + 1, 500, 200_000])
def test_depth_is_bounded(levels: int, kind: str) -> None:
    if levels == MAX_DEPTH:
        parse_json(nested(levels, kind), "f")
    else:
        with pytest.raises(BadInput, match=r"nested deeper|not valid JSON"):
            parse_json(nested(levels, kind), "f")


def test_brackets_in_strings_do_not_count() -> None:
    text = '{"a": "%s", "\\"{": ["]"]}' % ("[{" * 1000)
    assert parse_json(text.encode(), "f")["a"] == "[{" * 1000


class TestFile:
    def test_a_regular_file_is_read(self, tmp_path: Path) -> None:
        path = tmp_path / "f.json"
        path.write_bytes(SOUND)
        assert read_json(path) == json.loads(SOUND)

    def test_a_link_to_one_is_read(self, tmp_path: Path) -> None:
        (tmp_path / "blob").write_bytes(SOUND)
        (tmp_path / "f.json").symlink_to("blob")
        assert read_json(tmp_path / "f.json") == json.loads(SOUND)

    def test_size_is_bounded(self, tmp_path: Path) -> None:
        path = tmp_path / "f.json"
        path.write_bytes(SOUND)
        read_json(path, max_bytes=len(SOUND))
        with pytest.raises(BadInput, match="too large") as refused:
            read_json(path, max_bytes=len(SOUND) - 1)
        assert str(path) in str(refused.value)

    @pytest.mark.parametrize("what", ["pipe", "device", "folder", "socket", "nothing", "loop"])
    def test_anything_else_is_refused_at_once(self, tmp_path: Path, what: str) -> None:
        path = tmp_path / "f.json"
        if what == "pipe":
            os.mkfifo(path)
        elif what == "device":
            path = Path("/dev/zero")
        elif what == "folder":
            path.mkdir()
        elif what == "loop":
            path.symlink_to(path)
        elif what == "socket":
            import socket

            socket.socket(socket.AF_UNIX).bind(str(path))
        # In a process of its own: what hangs ends there.
        code = (
            "import sys\nfrom pathlib import Path\nfrom fastwan.errors import BadInput\n"
            "from fastwan.strict_json import read_json\n"
            "try: read_json(Path(sys.argv[1]))\nexcept BadInput as error: print(error)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        assert "not a regular file" in done.stdout or "cannot be read" in done.stdout
        assert str(path) in done.stdout

    @pytest.mark.parametrize(
        ("content", "message"), [(b'{"a": 1, "a": 1}', "twice"), (b"[" * 10**5, "not valid")]
    )
    def test_the_products_files_go_through_it(
        self, tmp_path: Path, content: bytes, message: str
    ) -> None:
        path = tmp_path / MANIFEST
        path.write_bytes(content)
        with pytest.raises(BadInput, match=message):
            parse_manifest(path, Manifest)
        with pytest.raises(BadInput, match=message):
            ConfigFile(path)
        with pytest.raises(BadInput, match=message):
            read_baseline(path)
        path.write_bytes(b'{"schema_version": 99}')
        assert ConfigFile(path).fields == {"schema_version": 99}
        with pytest.raises(BadInput, match="no report of bench: Input should be 2"):
            read_baseline(path)
        with pytest.raises(BadInput, match="schema version 99"):
            parse_manifest(path, Manifest)


scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(10**62), 10**62)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=4), inner)
    ),
    max_leaves=20,
)
objects = st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=4), values)


@given(objects, st.booleans(), st.sampled_from([None, 1]))
def test_every_object_comes_back(value: dict[str, Any], ascii_only: bool, indent: int) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    assert parse_json(text.encode(), "f") == value


@given(objects, st.data())
def test_an_edited_text_is_refused_or_means_what_json_says(
    value: dict[str, Any], data: st.DataObject
) -> None:
    text = bytearray(json.dumps(value).encode())
    at = data.draw(st.integers(0, len(text)))
    text[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    check_against_json(bytes(text))


@given(st.text('{}[]":,0123456789.eE-+\\utrfalsn ', max_size=40).map(str.encode) | st.binary())
def test_no_bytes_do_anything_else(text: bytes) -> None:
    check_against_json(text)


def check_against_json(text: bytes) -> None:
    try:
        parsed = parse_json(text, "f")
    except BadInput:
        return
    assert parsed == json.loads(text)
    json.dumps(parsed, allow_nan=False, ensure_ascii=False).encode()


@given(st.integers(1, MAX_NUMBER), st.booleans())
def test_numbers_keep_every_digit(digits: int, negative: bool) -> None:
    number = int("9" * (digits - negative) or "9") * (-1 if negative else 1)
    assert parse_json(b'{"a": %d}' % number, "f") == {"a": number}
