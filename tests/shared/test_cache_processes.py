"""The cache between real processes: at once, and killed."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fastwan.content_cache import ContentCache

KEYS = [hashlib.sha256(bytes([n])).hexdigest() for n in range(24)]

FILL = """
import random, sys
from pathlib import Path
from fastwan.content_cache import ContentCache

root, limit, seed, *keys = sys.argv[1:]
cache = ContentCache("engines", Path(root), int(limit))
order = keys * 3
random.Random(int(seed)).shuffle(order)
hits = 0
for key in order:
    content = {"a": key.encode() * 40, "b": key[::-1].encode()}
    with cache.lock(key):
        found = cache.read(key)
        if found is None:
            cache.put(key, content, {"key": key})
        else:
            hits += 1
            assert found == (content, {"key": key}), key
print(hits)
"""

REPLACE = """
import sys
from pathlib import Path
from fastwan.content_cache import ContentCache

cache = ContentCache("runtime", Path(sys.argv[1]))
for n in range(150):
    cache.put("0" * 64, {"a": b"%d" % n * 5000, "b": b"%d" % n}, {"n": n}, replace=True)
"""

STOP = """
import sys, time
from pathlib import Path
from fastwan import cache_entry, content_cache

where, root = sys.argv[1:]

def stop(*_):
    print("here", flush=True)
    time.sleep(600)

write, publish = cache_entry._write, content_cache.os.rename
if where == "first file":
    cache_entry._write = stop
elif where == "second file":
    cache_entry._write = lambda path, content: (
        stop() if path.name == "b" else write(path, content)
    )
elif where == "before it is published":
    content_cache.os.rename = stop
elif where == "after it is published":
    content_cache.os.rename = lambda *names: (publish(*names), stop())

content_cache.ContentCache("engines", Path(root)).put("0" * 64, {"a": b"1", "b": b"2"}, {})
"""


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("limit", [1 << 30, 12_000])
def test_processes_that_fill_one_cold_cache_do_not_disturb_each_other(
    tmp_path: Path, limit: int
) -> None:
    """With the smaller limit every entry makes room for others while those are read."""
    fillers = [start(FILL, tmp_path, limit, seed, *KEYS) for seed in range(4)]
    said = [filler.communicate(timeout=300) for filler in fillers]
    assert [(filler.returncode, err) for filler, (_, err) in zip(fillers, said, strict=True)] == [
        (0, "")
    ] * len(fillers)
    left = {path.name for path in (tmp_path / "engines").iterdir()} - {".tmp"}
    assert left <= set(KEYS)
    if limit > 12_000:
        assert left == set(KEYS)
        assert sum(int(out) for out, _ in said) == (3 * 4 - 1) * len(KEYS)
    else:
        assert 0 < len(left) < len(KEYS)
    cache = ContentCache("engines", tmp_path)
    for key in left:
        found = cache.read(key)
        assert found is not None
        assert found[0]["b"] == key[::-1].encode()


def test_a_reader_sees_one_whole_entry_or_none_while_it_is_replaced(tmp_path: Path) -> None:
    writers = [start(REPLACE, tmp_path) for _ in range(2)]
    cache, whole = ContentCache("runtime", tmp_path), 0
    while any(writer.poll() is None for writer in writers) or not whole:
        found = cache.read("0" * 64)
        if found is not None:
            contents, note = found
            n = b"%d" % note["n"]
            assert contents == {"a": n * 5000, "b": n}
            whole += 1
    for writer in writers:
        out, err = writer.communicate(timeout=300)
        assert (writer.returncode, out, err) == (0, "", "")


@contextmanager
def stopped(where: str, root: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that stores an entry and waits in the middle of it."""
    process = start(STOP, where, root)
    assert process.stdout is not None
    assert process.stdout.readline() == "here\n", process.communicate()
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


PLACES = ("first file", "second file", "before it is published", "after it is published")


@pytest.mark.parametrize("where", PLACES)
def test_what_a_killed_process_leaves_is_removed_by_the_next(tmp_path: Path, where: str) -> None:
    scratch = tmp_path / "engines" / ".tmp"
    published = where == "after it is published"
    with stopped(where, tmp_path) as process:
        assert list(scratch.iterdir()) != []
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert list(scratch.iterdir()) != []
    cache = ContentCache("engines", tmp_path)
    assert list(scratch.iterdir()) == []
    assert (cache.read("0" * 64) is not None) == published
    cache.put("0" * 64, {"a": b"1", "b": b"2"}, {})
    assert cache.read("0" * 64) == ({"a": b"1", "b": b"2"}, {})


def test_what_a_living_process_works_on_is_left_alone(tmp_path: Path) -> None:
    scratch = tmp_path / "engines" / ".tmp"
    with stopped("second file", tmp_path):
        before = sorted(scratch.rglob("*"))
        assert {"a"} < {path.name for path in before if path.is_file()}
        ContentCache("engines", tmp_path)
        assert sorted(scratch.rglob("*")) == before
