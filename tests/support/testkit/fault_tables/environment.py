"""What a machine may lack: room, a home, a locale, streams, memory, a cache."""

from __future__ import annotations

from testkit.fault_tables.bundles import INSPECT, PLAY
from testkit.fault_tables.options import BUILD, MAKE
from testkit.faults import Fault, gone, pipe, put

TABLES = "fastwan-export inspect b"
NO_HOME = "env -u HOME -u XDG_CACHE_HOME -u FASTWAN_CACHE_DIR"


def _cache(name: str, value: str, words: str, code: int = 0) -> Fault:
    variables = {"FASTWAN_CACHE_DIR": value}
    return Fault(f"cache folder: {name}", "G", BUILD, code, words, variables=variables)


def _most(value: str) -> Fault:
    variables = {"FASTWAN_CACHE_MAX_BYTES": value}
    words = "FASTWAN_CACHE_MAX_BYTES"
    return Fault(f"cache of {value!r} bytes", "O", BUILD, 3, words, variables=variables)


def _library(name: str, code: int, words: str, content: bytes) -> Fault:
    return Fault(
        f"plugin library: {name}", "K", BUILD.replace("text_encoder", "dit"), code, words,
        put("lib.so", content), variables={"FASTWAN_PLUGIN_LIBRARY": "lib.so"},
    )  # fmt: skip


def _apart(name: str, command: str, code: int, words: str, twin: str, kind: str = "O") -> Fault:
    return Fault(name, kind, command, code, words, twin=twin, apart=True)


FAULTS = (
    _cache("a device", "/dev/null/cache", "warning: .*cache"),
    *map(_most, ("²", "-1", "1e9", "many", "9" * 40)),
    _library("no library", 2, "ELF", b"mine" * 40),
    _library("cut off", 2, "ELF", b"\x7fELF"),
    _library("of another machine", 2, "processor|ELF",
             b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x03\x00\xb7\x00" + bytes(44)),
    Fault("plugin library: named and not there", "K", BUILD.replace("text_encoder", "dit"), 3,
          "FASTWAN_PLUGIN_LIBRARY", variables={"FASTWAN_PLUGIN_LIBRARY": "absent.so"}),
    _apart("stdout is closed", f"{INSPECT} >&-", 3, "stdout is closed", f"{INSPECT} >/dev/null"),
    _apart("stdout is full", f"{INSPECT} >/dev/full", 3, "stdout", f"{INSPECT} >/dev/null"),
    _apart("stderr is closed", f"{INSPECT} 2>&- >/dev/null", 0, "", f"{INSPECT} >/dev/null"),
    _apart("no locale", f"LC_ALL=C PYTHONUTF8=0 {INSPECT} >/dev/null", 0, "",
           f"{INSPECT} >/dev/null", "I"),
    _apart("a reader that goes away", f"set -o pipefail; {INSPECT} | true", 141, "",
           f"set -o pipefail; {INSPECT} | cat >/dev/null", "I"),
    _apart("a prompt that is not UTF-8", PLAY.replace("'a red fox'", "$'\\xff\\xfe'"), 2,
           "UTF-8|not valid", PLAY, "I"),
    Fault("a terminal of no columns", "O", TABLES, 0, "", variables={"COLUMNS": "0"},
          tells="kernels"),
    Fault("a terminal of one column", "O", TABLES, 0, "", variables={"COLUMNS": "1"},
          tells="kernels"),
    Fault("a terminal of columns in words", "O", TABLES, 0, "", variables={"COLUMNS": "many"},
          tells="kernels"),
    _apart("no home", f"{NO_HOME} {MAKE}", 0, "", MAKE),
    _apart("files of a megabyte at most", f"ulimit -f 1024; {MAKE}", 3, "File too large",
           f"ulimit -f 1048576; {MAKE}"),
    _apart("no folder for temporary files", f"TMPDIR=/dev/null {MAKE}", 0, "", MAKE),
    Fault("the bundle is on a path that is gone", "O", INSPECT, 2, "b", gone("b")),
    Fault("the checkpoint's folder is a pipe", "O", BUILD, 2, "ck", lambda folder: (
        gone("ck")(folder), pipe("ck")(folder))[-1]),
)  # fmt: skip
