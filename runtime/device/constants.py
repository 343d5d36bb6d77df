"""Weights that regions read, taken from the transformer's ONNX file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath

from fastwan.bundle import Bundle
from fastwan.errors import BadInput


def initializers(bundle: Bundle, names: Sequence[str]) -> dict[str, bytes]:
    """Raw bytes of initializers of ``dit.onnx`` by name, little endian and row-major.

    Only these are read; the file and its data are hash-checked first.

    Raises:
        BadInput: one is missing, or lies outside the data that the manifest lists.
        VerificationFailed: a file differs from its hash.
    """
    if not names:
        return {}
    import onnx

    record = bundle.manifest.onnx.graphs.get("dit")
    if record is None:
        raise BadInput("bundle has no ONNX file of the transformer", where=str(bundle.root))
    path = bundle.onnx_model(record.file, record.data)
    model = onnx.load(str(path), load_external_data=False)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    found: dict[str, bytes] = {}
    for name in dict.fromkeys(names):
        if name not in stored:
            raise BadInput(f"{record.file} has no initializer {name!r}", where=str(bundle.root))
        tensor = stored[name]
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            found[name] = tensor.raw_data or onnx.numpy_helper.to_array(tensor).tobytes()
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = str(PurePosixPath(record.file).parent / entries.get("location", ""))
        if location not in record.data:
            raise BadInput(f"{name} reads {location!r}, which the manifest does not list")
        with bundle.file(f"onnx/{location}").open("rb") as stream:
            stream.seek(int(entries.get("offset", "0")))
            found[name] = stream.read(int(entries["length"]))
    return found
