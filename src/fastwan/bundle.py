"""An engine bundle on disk: opened by its manifest, a file used only after its hash was checked."""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path

from fastwan.bundle_folder import MANIFEST, require_folder
from fastwan.config import VideoShape
from fastwan.errors import BadInput, FastWanError, VerificationFailed
from fastwan.files import confined_file, open_regular, sha256_file
from fastwan.held_folder import HeldFolder
from fastwan.manifest import FileRecord, Manifest
from fastwan.manifest_reader import ANEW, parse_manifest
from fastwan.shapes import parse_shape
from fastwan.strict_json import parse_json

_ATTEMPTS = 50
"""Times that a bundle is opened anew when another one has just taken its place."""


class Bundle:
    """An engine bundle on disk. Files are handed out only after their hash was checked.

    Args:
        root: folder of the bundle, for messages.
        held: the same folder, held open; None reads by the name.
    """

    def __init__(self, root: Path, manifest: Manifest, held: HeldFolder | None = None) -> None:
        self.root = root
        self.manifest = manifest
        self._held = held
        self._checked: set[str] = set()

    @property
    def folder(self) -> Path:
        """Path of the folder that was opened, also after another has taken its place."""
        return self.root if self._held is None else self._held.path

    def file(self, relative: str) -> Path:
        """Path of a file of the bundle, hash-checked once; see `read` for the bytes themselves.

        Raises:
            BadInput: not listed in the manifest, missing, or leading out of the bundle.
            VerificationFailed: size or hash differ from the manifest.
        """
        record = self._record(relative)
        path = self._place(relative)
        if relative not in self._checked:
            if path.stat().st_size != record.bytes or sha256_file(path) != record.sha256:
                raise _differs(relative)
            self._checked.add(relative)
        return path

    def read(self, relative: str) -> bytes:
        """What a file of the bundle holds: the bytes that were hashed, not those of a later read.

        Raises:
            BadInput, VerificationFailed: as of `file`.
        """
        record = self._record(relative)
        with open_regular(self._place(relative)) as stream:
            content = stream.read(record.bytes + 1)
        if len(content) != record.bytes or hashlib.sha256(content).hexdigest() != record.sha256:
            raise _differs(relative)
        return content

    def at(self, shape: VideoShape | str | None) -> Bundle:
        """The same bundle with one of its shapes first: the one that is played and judged.

        Args:
            shape: also as text, e.g. ``832x480x81``; None leaves the bundle's own first.

        Raises:
            BadInput: no shape, or one that the bundle does not have; the message lists those there
                are.
        """
        if shape is None:
            return self
        wanted = parse_shape(shape) if isinstance(shape, str) else shape
        other = Bundle(self.root, self.manifest.at(wanted), self._held)
        other._checked = self._checked
        return other

    def check_sizes(self) -> None:
        """Compare the size of every file with the manifest, without reading any.

        Raises:
            BadInput: a file is missing or no plain file.
            VerificationFailed: one is larger or smaller.
        """
        for relative, record in self.manifest.files.items():
            size = self._place(relative).stat().st_size
            if size != record.bytes:
                raise VerificationFailed(
                    f"file has {size:,} bytes, the manifest says {record.bytes:,}",
                    where=relative,
                    fix=ANEW,
                )

    def onnx_model(self, relative: str, data: tuple[str, ...]) -> Path:
        """Path of an ONNX file under ``onnx/`` after it and its data files were checked."""
        for name in data:
            self.file(f"onnx/{name}")
        return self.file(f"onnx/{relative}")

    @cached_property
    def layers(self) -> dict[str, list[dict[str, object]]]:
        """Layer records of the shape's engines (``layers.json``), by engine name.

        Raises:
            BadInput: it is not strict JSON, or not a list of objects for every engine.
            VerificationFailed: it differs from its hash.
        """
        where = self.manifest.layers
        loaded = parse_json(self.read(where), where)
        for engine, records in loaded.items():
            if not isinstance(records, list) or not all(isinstance(each, dict) for each in records):
                raise BadInput(f"records of {engine!r} are no list of objects", where=where)
        if lacking := self.manifest.engines.keys() - loaded.keys():
            raise BadInput(f"no records of engine {min(lacking)!r}", where=where)
        return loaded

    def _place(self, relative: str) -> Path:
        try:
            return confined_file(self.folder, relative, shown=self.root.name, hard_links=True)
        except BadInput as error:
            raise BadInput(error.what, where=error.where, fix=error.fix or ANEW) from None

    def _record(self, relative: str) -> FileRecord:
        record = self.manifest.files.get(relative)
        if record is None:
            raise BadInput("file is not listed in the manifest", where=relative)
        return record


def _differs(relative: str) -> VerificationFailed:
    return VerificationFailed(
        "file differs from its hash in the manifest", where=relative, fix=ANEW
    )


def open_bundle(
    path: Path | str, *, sizes: bool = True, shape: VideoShape | str | None = None
) -> Bundle:
    """Open an engine bundle. It stays the one that was opened when another takes its place.

    Args:
        sizes: compare the size of every file with the manifest; `verify` does that itself.
        shape: see `Bundle.at`.

    Raises:
        BadInput: no bundle there, its manifest is not one of this tool, a file is missing, or it
            does not have that shape.
        VerificationFailed: a file has another size.
    """
    root = Path(path)
    require_folder(root)
    for attempt in range(_ATTEMPTS):
        held = HeldFolder(root)
        try:
            manifest = parse_manifest(held.path / MANIFEST, Manifest, where=str(root))
            bundle = Bundle(root, manifest, held)
            if sizes:
                bundle.check_sizes()
        except (FastWanError, OSError):
            # Its files may have been removed since another folder took its place.
            if attempt + 1 == _ATTEMPTS or not held.replaced():
                raise
        else:
            return bundle.at(shape)
    raise AssertionError("the last attempt returns or raises")
