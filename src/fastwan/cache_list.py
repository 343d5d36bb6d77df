"""``cache``: what the cache of finished work holds, whether it is whole, and removing it."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Literal

from fastwan.cache_entry import Damaged, file_chunks, read_record
from fastwan.cache_folder import cache_root, max_cache_bytes
from fastwan.content_cache import ContentCache, Kind, stored_entries
from fastwan.errors import BadInput
from fastwan.schema import FigureReport, Measured, Record

DAY = 86_400
_SHORTEST = 4


class CacheEntry(Record):
    """One entry."""

    kind_of_work: Kind
    key: str
    bytes: Measured[int]
    used: Measured[int]
    """When it was last used, in seconds since 1970; 0 for one without a record."""
    damaged: bool = False
    """Of ``verify``: it is not what was stored."""
    removed: bool = False


class CacheReport(FigureReport):
    """What ``cache`` found and did."""

    kind: Literal["cache"] = "cache"
    schema_version: Literal[1] = 1
    action: Literal["ls", "rm", "prune", "verify"]
    folder: str
    limit_bytes: int
    bytes: Measured[int]
    """Of the entries that are left."""
    entries: tuple[CacheEntry, ...]
    """Those that the action is about; of ``ls`` all, the one that was used last first."""


def list_cache(root: Path | None = None) -> CacheReport:
    """Every entry, without reading any."""
    return _report("ls", sorted(_entries(root), key=lambda each: -each.used), root)


def remove_entries(keys: tuple[str, ...], root: Path | None = None) -> CacheReport:
    """Remove entries by their keys, of which the first `_SHORTEST` characters will do.

    Raises:
        BadInput: a key that no entry has, or too short a beginning of one.
    """
    there = list(_entries(root))
    chosen: dict[str, CacheEntry] = {}
    for key in keys:
        found = [each for each in there if len(key) >= _SHORTEST and each.key.startswith(key)]
        if not found:
            raise BadInput("no entry begins so", where=key, fix="see fastwan-export cache ls")
        chosen |= {each.key: each for each in found}
    return _report("rm", _removed(chosen.values(), root), root)


def prune_cache(days: float | None, max_bytes: int | None, root: Path | None = None) -> CacheReport:
    """Remove what was not used for some days, and then what was used longest ago.

    Args:
        days: since the last use; None removes none for its age.
        max_bytes: what the rest may take; by default the limit of the cache.
    """
    limit = max_cache_bytes() if max_bytes is None else max_bytes
    oldest_first = sorted(_entries(root), key=lambda each: each.used)
    total = sum(each.bytes for each in oldest_first)
    chosen = []
    for each in oldest_first:
        old = days is not None and each.used < time.time() - days * DAY
        if old or total > limit:
            chosen.append(each)
            total -= each.bytes
    return _report("prune", _removed(chosen, root), root)


def verify_cache(root: Path | None = None) -> CacheReport:
    """Hold every entry against its hashes and remove those that differ, which count as none."""
    damaged = [each for each in _entries(root) if _bad(each, root)]
    told = [each.model_copy(update={"damaged": True}) for each in damaged]
    return _report("verify", _removed(told, root), root)


def _bad(entry: CacheEntry, root: Path | None) -> bool:
    folder = (root or cache_root()) / entry.kind_of_work / entry.key
    try:
        for name, file in read_record(folder, entry.kind_of_work).files.items():
            for _ in file_chunks(folder / name, file):
                pass
    except Damaged:
        return folder.exists()  # another process may have removed it
    return False


def _removed(entries: Collection[CacheEntry], root: Path | None) -> list[CacheEntry]:
    caches = {kind: ContentCache(kind, root) for kind in {each.kind_of_work for each in entries}}
    gone = []
    for each in entries:
        caches[each.kind_of_work].forget(each.key)
        there = ((root or cache_root()) / each.kind_of_work / each.key).exists()
        gone.append(each.model_copy(update={"removed": not there}))
    return gone


def _entries(root: Path | None) -> Iterator[CacheEntry]:
    for kind, key, used, size in stored_entries(root or cache_root()):
        yield CacheEntry(kind_of_work=kind, key=key, bytes=size, used=used // 1_000_000_000)


def _report(
    action: Literal["ls", "rm", "prune", "verify"],
    entries: list[CacheEntry],
    root: Path | None,
) -> CacheReport:
    return CacheReport(
        action=action,
        folder=str(root or cache_root()),
        limit_bytes=max_cache_bytes(),
        bytes=sum(each.bytes for each in _entries(root)),
        entries=tuple(entries),
    )


def render(report: CacheReport) -> str:
    """An entry a line, and what is left."""
    lines = []
    for each in report.entries:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(each.used)) if each.used else "-"
        state = ("damaged " if each.damaged else "") + ("removed" if each.removed else "")
        size = f"{each.bytes / 1e6:,.1f} MB"
        lines.append(f"{each.key[:12]} {each.kind_of_work:<8} {size:>12} {used} {state}".rstrip())
    left, limit = f"{report.bytes / 1e6:,.1f}", f"{report.limit_bytes / 1e6:,.0f}"
    done = "" if report.action == "ls" else f"{sum(e.removed for e in report.entries)} removed; "
    return "\n".join([*lines, f"{done}{left} of {limit} MB in {report.folder}"])
