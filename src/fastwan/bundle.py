"""An engine bundle on disk: opened by its manifest, a file used only after its hash was checked."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from fastwan.errors import BadInput, VerificationFailed
from fastwan.files import confined_file, sha256_file
from fastwan.manifest import LAYERS, MANIFEST, Manifest, parse_manifest
from fastwan.strict_json import read_json


class Bundle:
    """An engine bundle on disk. Files are handed out only after their hash was checked."""

    def __init__(self, root: Path, manifest: Manifest) -> None:
        self.root = root
        self.manifest = manifest
        self._checked: set[str] = set()

    def file(self, relative: str) -> Path:
        """Path of a file of the bundle, hash-checked once.

        Raises:
            BadInput: not listed in the manifest, missing, or leading out of the bundle.
            VerificationFailed: size or hash differ from the manifest.
        """
        record = self.manifest.files.get(relative)
        if record is None:
            raise BadInput("file is not listed in the manifest", where=relative)
        path = confined_file(self.root, relative)
        if relative not in self._checked:
            if path.stat().st_size != record.bytes or sha256_file(path) != record.sha256:
                raise VerificationFailed(
                    "file differs from its hash in the manifest",
                    where=relative,
                    fix="build the bundle again or copy it anew",
                )
            self._checked.add(relative)
        return path

    def onnx_model(self, relative: str, data: tuple[str, ...]) -> Path:
        """Path of an ONNX file under ``onnx/`` after it and its data files were checked."""
        for name in data:
            self.file(f"onnx/{name}")
        return self.file(f"onnx/{relative}")

    @cached_property
    def layers(self) -> dict[str, list[dict[str, object]]]:
        """Layer records of ``layers.json``, by engine name.

        Raises:
            BadInput: it is not strict JSON, or not a list of objects for every engine.
            VerificationFailed: it differs from its hash.
        """
        loaded = read_json(self.file(LAYERS))
        for engine, records in loaded.items():
            if not isinstance(records, list) or not all(isinstance(each, dict) for each in records):
                raise BadInput(f"records of {engine!r} are no list of objects", where=LAYERS)
        if lacking := self.manifest.engines.keys() - loaded.keys():
            raise BadInput(f"no records of engine {min(lacking)!r}", where=LAYERS)
        return loaded


def open_bundle(path: Path | str) -> Bundle:
    """Open an engine bundle.

    Raises:
        BadInput: no bundle there, or its manifest is not one of this tool.
    """
    root = Path(path)
    if not root.is_dir():
        raise BadInput("bundle is not a folder", where=str(root), fix="see build-engine -o")
    return Bundle(root, parse_manifest(root / MANIFEST, Manifest))
