"""Arrays of a video in one compressed file, the same bytes for the same arrays."""

from __future__ import annotations

import hashlib
import io
import zipfile
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from fastwan.errors import BadInput, VerificationFailed
from fastwan.files import open_regular
from fastwan.quality.goldens.play import Arrays
from fastwan.quality.goldens.record import RECORD, Golden, GoldensRecord, Video
from fastwan.strict_json import first_fault, read_json, validated

_TIME = (1980, 1, 1, 0, 0, 0)
MAX_ARRAY_BYTES = 4 << 30


def write_golden(folder: Path, index: int, video: Video, arrays: Arrays) -> Golden:
    """Write the arrays of a video as ``NNNN.npz``."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in arrays.items():
            entry = io.BytesIO()
            np.lib.format.write_array(entry, np.ascontiguousarray(array), allow_pickle=False)
            info = zipfile.ZipInfo(f"{name}.npy", _TIME)
            archive.writestr(info, entry.getvalue(), zipfile.ZIP_DEFLATED)
    content = buffer.getvalue()
    file = f"{index:04d}.npz"
    (folder / file).write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    return Golden(video=video, file=file, sha256=digest, bytes=len(content))


def read_golden(folder: Path, golden: Golden) -> Arrays:
    """Read the arrays of a video.

    Raises:
        BadInput: the file is missing or holds something else.
        VerificationFailed: it differs from its hash.
    """
    path = folder / golden.file
    fix = "make the goldens again or copy them anew"
    try:
        with open_regular(path) as stream:
            content = stream.read(golden.bytes + 1)
    except OSError as error:
        what = f"golden cannot be read: {error.strerror or error}"
        raise BadInput(what, where=str(path), fix=fix) from None
    if len(content) != golden.bytes or hashlib.sha256(content).hexdigest() != golden.sha256:
        raise VerificationFailed("golden differs from its hash", where=str(path), fix=fix)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if sum(info.file_size for info in archive.infolist()) > MAX_ARRAY_BYTES:
                raise BadInput("golden is too large", where=str(path))
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (ValueError, zipfile.BadZipFile, EOFError) as error:
        what = f"golden is no archive of arrays: {error}"
        raise BadInput(what, where=str(path), fix=fix) from None


def read_record(folder: Path) -> GoldensRecord:
    """Read the record of a folder.

    Raises:
        BadInput: it is no folder of goldens of this version.
    """
    fix = "make them with fastwan-export goldens make BUNDLE FOLDER"
    try:
        return validated(GoldensRecord, read_json(folder / RECORD))
    except (BadInput, ValidationError) as error:
        what = error.what if isinstance(error, BadInput) else first_fault(error)
        raise BadInput(f"no goldens: {what}", where=str(folder), fix=fix) from None
