"""What the builder made of a model at one shape: the part of a bundle that its price is made of.

`plan` prices shapes that nobody built by these records. The shipped ones are of real builds of the
1.3 B transformer and its decoder at 832x480x81, a file each for a model, an attention and a fusion.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from pydantic import ValidationError

from fastwan.bundle import Bundle
from fastwan.engines.layer_json import bundle_layers, layer_from_json
from fastwan.engines.layers import LayerRecord, TensorRecord
from fastwan.errors import BadInput
from fastwan.manifest import Manifest

_SUFFIX = ".json.gz"
_NO_DIGEST = "0" * 64
_FOLDER = files("fastwan.quality.built")


@dataclass(frozen=True)
class BuiltRecords:
    """A bundle without weights, graphs and names.

    Attributes:
        manifest: of the built bundle; engines without linears, but for those that are given
            weights, and files without hashes.
        layers: records by engine, of every optimization profile.
    """

    manifest: Manifest
    layers: Mapping[str, tuple[LayerRecord, ...]]

    @classmethod
    def of(cls, bundle: Bundle) -> BuiltRecords:
        """Records of an opened bundle.

        Raises:
            BadInput: malformed layer records.
            VerificationFailed: ``layers.json`` differs from its hash.
        """
        manifest = bundle.manifest
        layers = bundle_layers(bundle)
        onnx = manifest.onnx.model_copy(
            update={"graphs": {}, "tensor_digests": {}, "extra_files": ()}
        )
        engines = {
            name: engine if engine.constants else engine.model_copy(update={"linears": ()})
            for name, engine in manifest.engines.items()
        }
        sizes = {
            engine.file: manifest.engine_record(engine).model_copy(update={"sha256": _NO_DIGEST})
            for engine in engines.values()
        }
        trimmed = {"onnx": onnx, "engines": engines, "files": sizes, "fallbacks": {}, "shapes": ()}
        return cls(
            manifest.model_copy(update=trimmed),
            {name: tuple(map(_nameless, layers[name])) for name in engines},
        )

    def packed(self) -> bytes:
        """The compressed file; the same bytes for the same bundle but for what its build took."""
        parts = {
            "manifest": self.manifest.model_dump(mode="json"),
            "layers": {name: [r.to_json() for r in each] for name, each in self.layers.items()},
        }
        return gzip.compress(json.dumps(parts).encode(), 9, mtime=0)

    @property
    def file(self) -> str:
        """Name of the file that holds them among the shipped ones."""
        manifest = self.manifest
        return file_name(manifest.onnx.model.name, manifest.attention, manifest.fusion)


def file_name(model: str, attention: str, fusion: str) -> str:
    """Name of a file of records."""
    return f"{model}.{attention}.{fusion}{_SUFFIX}"


def shipped() -> dict[tuple[str, str, str], str]:
    """Files of the shipped records by model, attention and fusion."""
    found = {}
    for file in sorted(each.name for each in _FOLDER.iterdir() if each.name.endswith(_SUFFIX)):
        # A model's name has dots, those of attentions and fusions have none.
        model, attention, fusion = file.removesuffix(_SUFFIX).rsplit(".", 2)
        found[model, attention, fusion] = file
    return found


def shipped_records(model: str, attention: str, fusion: str) -> BuiltRecords:
    """The shipped records of a model with an attention and a fusion.

    Raises:
        BadInput: none are shipped; the message lists those there are of the model.
    """
    table = shipped()
    file = table.get((model, attention, fusion))
    if file is None:
        known = [f"{a} with fusion {f}" for m, a, f in table if m == model]
        raise BadInput(
            f"no build of {model} with attention {attention} and fusion {fusion} is on record",
            where="--model, --attention, --fusion",
            fix=f"one of {'; '.join(known)}" if known else "build a bundle and inspect it",
        )
    return unpacked((_FOLDER / file).read_bytes(), file)


def unpacked(data: bytes, where: str) -> BuiltRecords:
    """Inverse of `BuiltRecords.packed`.

    Raises:
        BadInput: no such file, or fields that do not fit.
    """
    try:
        parts: dict[str, Any] = json.loads(gzip.decompress(data))
        manifest = Manifest.model_validate_json(json.dumps(parts["manifest"]))
        layers = {name: tuple(map(layer_from_json, each)) for name, each in parts["layers"].items()}
    except (OSError, EOFError, ValueError, KeyError, TypeError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise BadInput(f"records of a build cannot be read: {reason}", where=where) from None
    # Blocks repeat each other: what is made of equal records needs to be made once.
    once: dict[tuple[LayerRecord, ...], tuple[LayerRecord, ...]] = {}
    return BuiltRecords(manifest, {n: once.setdefault(each, each) for n, each in layers.items()})


def _nameless(record: LayerRecord) -> LayerRecord:
    """A kernel as it is priced: by its own name, and by dtypes and shapes of its tensors."""
    return LayerRecord(
        name=record.name,
        type=record.type,
        inputs=tuple(map(_unnamed, record.inputs)),
        constants=tuple(map(_unnamed, record.constants)),
        outputs=tuple(map(_unnamed, record.outputs)),
        tactic="",
        nodes=(),
        profile=record.profile,
    )


def _unnamed(tensor: TensorRecord) -> TensorRecord:
    return TensorRecord("", tensor.dtype, tensor.shape)
