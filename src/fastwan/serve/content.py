"""A video as an answer: all of it or one range (RFC 9110, sections 13 and 14)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from fastapi.responses import Response, StreamingResponse
from starlette.datastructures import Headers

from fastwan.files import open_regular
from fastwan.serve.failures import Refused

VIDEO = "video/mp4"

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
_CHUNK = 256 << 10


def content(path: Path, job_id: str, headers: Headers, *, head: bool) -> Response:
    """The answer to a request for a video.

    It is open before the answer begins, so that it is sent whole though it be deleted meanwhile.
    Several ranges, and what is no range, are answered with all of it, as RFC 9110 lets a server.

    Args:
        headers: of the request.
        head: the answer has no body; a range is asked for by GET alone.

    Raises:
        FileNotFoundError: it is not there.
        Refused: the range begins behind its end.
    """
    file = open_regular(path)
    try:
        size = os.fstat(file.fileno()).st_size
        # What a job's id stands for never changes.
        tag = f'"{job_id}"'
        sent = {"accept-ranges": "bytes", "etag": tag, "cache-control": "private"}
        if tag in headers.get("if-none-match", ""):
            file.close()
            return Response(status_code=304, headers=sent)
        asked = None if head else _range(headers, tag, size)
        begin, end = asked or (0, size)
        sent["content-disposition"] = f'inline; filename="{path.name}"'
        sent["content-length"] = str(end - begin)
        if asked is not None:
            sent["content-range"] = f"bytes {begin}-{end - 1}/{size}"
        if head:
            file.close()
            return Response(headers=sent, media_type=VIDEO)
        status = 200 if asked is None else 206
        return StreamingResponse(_read(file, begin, end), status, sent, VIDEO)
    except BaseException:
        file.close()
        raise


def _range(headers: Headers, tag: str, size: int) -> tuple[int, int] | None:
    """First byte and the one behind the last; None for all."""
    match = _RANGE.fullmatch(headers.get("range", "").strip())
    if match is None or headers.get("if-range", tag) != tag:
        return None
    first, last = match.groups()
    if not first and not last:
        return None
    if not first:
        begin, end = max(0, size - int(last)), size
    else:
        begin, end = int(first), min(size, int(last) + 1) if last else size
        if last and int(last) < int(first):
            return None
    if begin >= end:
        raise Refused(
            416,
            f"the video has {size} bytes",
            code="range_not_satisfiable",
            headers={"content-range": f"bytes */{size}"},
        )
    return begin, end


def _read(file: BinaryIO, begin: int, end: int) -> Iterator[bytes]:
    with file:
        file.seek(begin)
        while begin < end and (chunk := file.read(min(_CHUNK, end - begin))):
            begin += len(chunk)
            yield chunk
