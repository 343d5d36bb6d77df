"""The records of a build at another shape, as if the builder chose the same kernels there.

Every size that follows from the video's shape is replaced by what it is at the other one: tokens,
the patch grid, planes of the latents and of the decoder's levels. Scratch grows with the bytes that
an engine's kernels exchange, and an engine's file with its constants that have a row a token.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import NamedTuple

from fastwan.config import KEY_SAMPLE, TOKEN_TILE, VideoShape
from fastwan.engines.layers import SCALE_TILE, LayerRecord, TensorRecord
from fastwan.errors import BadInput
from fastwan.manifest import Engine, FileRecord, Model, Region, RegionNode, TensorSpec
from fastwan.quality.built_records import BuiltRecords

_LEVELS = 4
"""Resolutions of the decoder, each twice the one before: 1, 2, 4 and 8 pixels a latent."""
_SHAPED = ("step", "latent")
"""Cadences of engines whose tensors follow the video's shape."""
_COUNTED = ("num_tokens",)
"""Attributes of nodes between engines that are sizes."""
_SCALES = (SCALE_TILE // 32, 32)
"""Sizes that follow the number of row tiles in the layout of FP4 block scales."""

_GEMM_WORKSPACE = 8 << 20
"""Scratch that the builder gives an engine with GEMMs at every shape (measured)."""

Sizes = Mapping[int, int]
"""What becomes of a size."""


class _Reshaped(NamedTuple):
    """Records of an engine at another shape.

    Attributes:
        before: bytes that its kernels exchanged.
        after: bytes that they exchange now.
        constants_growth: bytes that its constants grew by.
        has_gemm: a kernel of it is a GEMM.
    """

    records: tuple[LayerRecord, ...]
    before: int
    after: int
    constants_growth: int
    has_gemm: bool

    @classmethod
    def of(cls, old: tuple[LayerRecord, ...], table: Sizes) -> _Reshaped:
        new = tuple(_record(each, table) for each in old)
        return cls(
            records=new,
            before=_bytes(old, "inputs") + _bytes(old, "outputs"),
            after=_bytes(new, "inputs") + _bytes(new, "outputs"),
            constants_growth=_bytes(new, "constants") - _bytes(old, "constants"),
            has_gemm=any(record.kind == "gemm" for record in old),
        )


def reshaped(records: BuiltRecords, shape: VideoShape) -> BuiltRecords:
    """Records as they would be at `shape`; at the built shape they stay what they are.

    Raises:
        BadInput: a size of the built shape is one of the model's, or two of the shape's, so that
            nobody could tell them apart; those of the shipped records are none.
    """
    manifest = records.manifest
    built = manifest.onnx.model.shape
    if shape == built:
        return records
    sizes = {"dit": _token_sizes(built, shape), "decoder": _plane_sizes(built, shape)}
    _require_apart(sizes["dit"], manifest.onnx.model)
    layers = dict(records.layers)
    # Engines of equal blocks have the same records, which are reshaped and counted once.
    made: dict[tuple[int, str], _Reshaped] = {}
    engines = dict(manifest.engines)
    files = dict(manifest.files)
    for name, engine in manifest.engines.items():
        if engine.runs not in _SHAPED:
            continue
        table = sizes[engine.component]
        key = id(records.layers[name]), engine.component
        if key not in made:
            made[key] = _Reshaped.of(records.layers[name], table)
        layers[name] = made[key].records
        engines[name] = _engine(engine, table, made[key])
        # Engines of one plan have one file and the same constants in it.
        before = manifest.engine_record(engine)
        grown = before.bytes + made[key].constants_growth
        files[engine.file] = FileRecord(sha256=before.sha256, bytes=grown)
    regions = {name: _region(each, sizes["dit"]) for name, each in manifest.regions.items()}
    model = manifest.onnx.model.model_copy(update={"shape": shape})
    onnx = manifest.onnx.model_copy(update={"model": model})
    changed = {"onnx": onnx, "engines": engines, "regions": regions, "files": files}
    return BuiltRecords(manifest.model_copy(update=changed), layers)


def _token_sizes(old: VideoShape, new: VideoShape) -> Sizes:
    """Sizes of the transformer's tensors."""

    def of(shape: VideoShape) -> list[int]:
        frames, rows, columns = shape.patches
        plane = shape.latent_height, shape.latent_width
        tokens = shape.num_tokens, shape.padded_tokens
        return [*tokens, frames, rows, columns, rows * columns, *plane]

    table = _told_apart(zip(of(old), of(new), strict=True))
    # A sample is small: a size that is another's too is taken for that one.
    old_sample, new_sample = (-(-shape.num_tokens // KEY_SAMPLE) for shape in (old, new))
    return {old_sample: new_sample, **table}


def _plane_sizes(old: VideoShape, new: VideoShape) -> Sizes:
    """Sizes of the decoder's tensors: sides and pixels of its levels."""

    def of(shape: VideoShape) -> list[int]:
        sides = [
            (shape.latent_height << level, shape.latent_width << level) for level in range(_LEVELS)
        ]
        return [size for pair in sides for size in (*pair, math.prod(pair))]

    return _told_apart(zip(of(old), of(new), strict=True))


def _require_apart(table: Sizes, model: Model) -> None:
    """Refuse sizes of a shape that tensors of the transformer have at every shape."""
    dit = model.dit
    widths = (dit.width, dit.ffn_dim, dit.text_dim)
    fixed = {
        1, 2, 3, 4, 6, *_SCALES, dit.num_heads, dit.head_dim, dit.head_dim // 2, 3 * dit.width,
        dit.in_channels, dit.out_channels, 4 * dit.in_channels, dit.text_length, *widths,
        *(width // parts for width in widths for parts in (2, 16, 64)),
    }  # fmt: skip
    if both := fixed & table.keys():
        raise BadInput(
            f"{min(both)} of the built shape is a size of the model too",
            where="records of a build",
            fix="take them of a bundle for 832x480x81",
        )


def _told_apart(pairs: Iterable[tuple[int, int]]) -> Sizes:
    table: dict[int, int] = {}
    for old, new in pairs:
        if table.setdefault(old, new) != new:
            raise BadInput(
                f"{old} of the built shape stands for {table[old]} and for {new}",
                where="records of a build",
                fix="take them of a bundle for 832x480x81",
            )
    return table


def _resized(shape: tuple[int, ...], table: Sizes) -> tuple[int, ...]:
    sizes = [table.get(size, size) for size in shape]
    for axis, size in enumerate(shape):
        rows = size * TOKEN_TILE
        if shape[axis + 1 : axis + 3] == _SCALES and rows in table:
            sizes[axis] = table[rows] // TOKEN_TILE
    return tuple(sizes)


def _tensor(tensor: TensorRecord, table: Sizes) -> TensorRecord:
    return replace(tensor, shape=_resized(tensor.shape, table))


def _record(record: LayerRecord, table: Sizes) -> LayerRecord:
    return replace(
        record,
        inputs=tuple(_tensor(each, table) for each in record.inputs),
        constants=tuple(_tensor(each, table) for each in record.constants),
        outputs=tuple(_tensor(each, table) for each in record.outputs),
    )


def _bytes(records: Iterable[LayerRecord], role: str) -> int:
    return sum(tensor.bytes() for record in records for tensor in getattr(record, role))


def _spec(spec: TensorSpec, table: Sizes) -> TensorSpec:
    sizes = tuple(table.get(size, size) if isinstance(size, int) else size for size in spec.shape)
    return spec.model_copy(update={"shape": sizes})


def _engine(engine: Engine, table: Sizes, made: _Reshaped) -> Engine:
    kept = min(_GEMM_WORKSPACE, engine.scratch_bytes) if made.has_gemm else 0
    grown = (engine.scratch_bytes - kept) * made.after // max(made.before, 1)
    return engine.model_copy(
        update={
            "inputs": tuple(_spec(each, table) for each in engine.inputs),
            "outputs": tuple(_spec(each, table) for each in engine.outputs),
            "scratch_bytes": kept + grown,
        }
    )


def _region(region: Region, table: Sizes) -> Region:
    tensors = {
        role: tuple(_spec(each, table) for each in getattr(region, role))
        for role in ("inputs", "constants", "outputs", "temporaries")
    }
    nodes = tuple(_node(node, table) for node in region.nodes)
    return region.model_copy(update={**tensors, "nodes": nodes})


def _node(node: RegionNode, table: Sizes) -> RegionNode:
    counted = {
        name: table[value]
        for name, value in node.attributes.items()
        if name in _COUNTED and isinstance(value, int)
    }
    return node.model_copy(update={"attributes": {**node.attributes, **counted}})
