"""Reads a manifest from its file."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from fastwan.bundle_folder import require_manifest
from fastwan.errors import BadInput
from fastwan.manifest import Manifest, OnnxManifest
from fastwan.strict_json import first_fault, read_json, validated

ANEW = "build the bundle again or copy it anew"
"""How a bundle is mended whose files are not as they were written."""

T = TypeVar("T", Manifest, OnnxManifest)


def parse_manifest(path: Path, kind: type[T], *, where: str = "") -> T:
    """Read a manifest strictly.

    Args:
        where: what messages call its folder.

    Raises:
        BadInput: not there, not strict JSON (see `fastwan.strict_json`), of another schema version,
            or with wrong fields.
    """
    where = where or str(path.parent)
    require_manifest(path, where)
    try:
        raw = read_json(path, where=f"{where}/{path.name}")
    except BadInput as error:
        raise BadInput(error.what, where=error.where, fix=ANEW) from None
    version, wanted = raw.get("schema_version"), kind.model_fields["schema_version"].default
    if version != wanted:
        raise BadInput(
            f"{path.name} has schema version {version}, this tool reads {wanted}",
            where=where,
            fix="build the bundle again with this version",
        )
    try:
        return validated(kind, raw)
    except BadInput as error:  # of a name or a configuration in it
        raise BadInput(f"{path.name}: {error.what}", where=where, fix=error.fix) from None
    except ValidationError as error:
        raise BadInput(
            f"{path.name}: {first_fault(error)}",
            where=where,
            fix="if another version wrote it, build the bundle again",
        ) from None
