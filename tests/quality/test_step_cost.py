"""The predicted time of a step against a computation by hand, and the page that shows it.

``full_size.json.gz`` has the engines, regions and layer records of a real build of the 1.3 B
transformer and its decoder at 832x480, 81 frames, cut at its attention (`scripts/step_records.py`).
"""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fastwan.config import SAMPLERS, VideoShape
from fastwan.engines.layer_json import layer_from_json
from fastwan.engines.layers import LayerRecord
from fastwan.manifest import Engine, FileRecord, Region
from fastwan.plugins.loader import checkout_root
from fastwan.quality.cost import Cost, kernel_cost, region_op_cost, total
from fastwan.quality.gpus import GPUS
from fastwan.quality.price import VideoCost, operation_cost, price
from fastwan.runtime.model.samplers import schedule_of
from fastwan.runtime.recording.operations import Cast, Combine, Copy, LaunchRegion
from fastwan.runtime.recording.record import Recording, record
from testkit.hand_cost import (
    ATTENTION,
    BF16_RATE,
    C2,
    C4,
    FFN,
    FFN_FP4,
    FFN_SCALES,
    FP4,
    FP4_RATE,
    LATENTS,
    LINEAR,
    MHA_RATE,
    MODULATION,
    MOVE,
    PATCHES,
    QUANTISE,
    TEXT,
    TO_QKV,
    TRUE_PATCHES,
    WIDE,
    WIDE_GEMM,
    Hand,
    X,
    formula_bytes,
    section,
    shown,
    total_row,
)

GPU = GPUS["rtx5090"]
MIDDLE_BLOCKS = 29
BLOCKS = 30

UP_TO_FC2 = [
    QUANTISE,
    MOVE,
    LINEAR,
    Hand(4 * X + 2 * MODULATION + C2 + 2 * C4 + 3 * C4),
    QUANTISE,
    MOVE,
    LINEAR,
    Hand(X + C2 + 131_072),
    Hand(131_072 + X + 2 * C2 + X),
    Hand(2 * TEXT),
    Hand(X + 2 * TEXT + X, 103_079_215_104, MHA_RATE),
    Hand(2 * X),
    QUANTISE,
    MOVE,
    LINEAR,
    Hand(4 * X + 2 * C4 + C2),
    QUANTISE,
    MOVE,
    Hand(FP4 + WIDE + FFN, WIDE_GEMM, FP4_RATE),
    Hand(2 * FFN + 17_920 + 12),
    Hand(FFN + FFN_FP4),
    Hand(2 * FFN_SCALES),
    Hand(FFN_FP4 + WIDE + X, WIDE_GEMM, FP4_RATE),
]
BLOCK = [*UP_TO_FC2, Hand(4 * X + 2 * MODULATION + C4 + C2), QUANTISE, MOVE, TO_QKV]
TABLES = [
    Hand(4 + 512 + 512),
    Hand(512 + C2 + 786_432 + C2, 786_432, BF16_RATE),
    Hand(C2 + C2 + 4_718_592 + 2 * C2, 4_718_592, BF16_RATE),
    Hand(C2 + 18_432 + 28_311_552 + 18_432, 28_311_552, BF16_RATE),
    Hand(18_432 + MODULATION),
]
FIRST = [
    Hand(4_193_280 + PATCHES),
    Hand(PATCHES + C2 + 196_608 + X, 6_442_450_944, BF16_RATE),
    Hand(2 * X + 2 * MODULATION),
    QUANTISE,
    MOVE,
    TO_QKV,
]
LAST = [
    *UP_TO_FC2,
    Hand(3 * X + C2 + C4 + C2 + 2 * C4),
    Hand(X + 128 + 196_608 + PATCHES, 6_442_450_944, BF16_RATE),
    Hand(PATCHES + TRUE_PATCHES),
    Hand(2 * TRUE_PATCHES),
]
SEGMENTS = {"segment_00": FIRST, "segment_05": BLOCK, "segment_30": LAST}
BY_HAND = {"time_tables": TABLES, **SEGMENTS}


AROUND = {
    "noise to the GPU": (0, Hand(4 * LATENTS, bus=True)),
    "latents to bf16": (1, Hand(6 * LATENTS)),
    "sums of step 0": (0, Hand(14 * LATENTS)),  # noise, velocity; latents, prediction
    "sum of step 1": (1, Hand(18 * LATENTS)),  # noise, prediction, latents, velocity; latents
    "sum of step 2": (2, Hand(10 * LATENTS)),  # latents, velocity; latents
}
"""Operations between two runs of the transformer, each with a step that has it."""


@pytest.fixture(scope="module")
def full_size() -> dict[str, Any]:
    return dict(
        json.loads(gzip.decompress((Path(__file__).parent / "full_size.json.gz").read_bytes()))
    )


@pytest.fixture(scope="module")
def layers(full_size: dict[str, Any]) -> dict[str, list[LayerRecord]]:
    return {
        name: [layer_from_json(record) for record in records]
        for name, records in full_size["layers"].items()
    }


@pytest.fixture(scope="module")
def recording(full_size: dict[str, Any], kit: SimpleNamespace) -> Recording:
    engines = {name: Engine(**engine) for name, engine in full_size["engines"].items()}
    manifest = kit.manifest(
        engines,
        {name: Region(**region) for name, region in full_size["regions"].items()},
        {engine.file: FileRecord(sha256="0" * 64, bytes=0) for engine in engines.values()},
        VideoShape(height=480, width=832, num_frames=81),
    )
    return record(manifest, schedule_of(SAMPLERS["unipc"]))


@pytest.fixture(scope="module")
def video(recording: Recording, layers: dict[str, list[LayerRecord]]) -> VideoCost:
    return price(recording, layers, GPU)


@pytest.fixture(scope="module")
def attention(recording: Recording) -> Cost:
    """What the tool says of the region between two engines."""
    (stage,) = (stage for stage in recording.stages if stage.name == "step_0")
    regions = [each.region for each in stage.operations if isinstance(each, LaunchRegion)]
    assert len(regions) == BLOCKS
    assert len(set(regions)) == 1
    return region_op_cost(regions[0], GPU)


@pytest.mark.parametrize("engine", BY_HAND)
def test_every_kernel_is_priced_as_by_hand(
    layers: dict[str, list[LayerRecord]], engine: str
) -> None:
    for layer, hand in zip(layers[engine], BY_HAND[engine], strict=True):
        cost = kernel_cost(layer, GPU)
        assert (cost.bytes_moved, cost.flops) == (hand.bytes, hand.operations), layer.name
        assert cost.seconds == pytest.approx(hand.microseconds * 1e-6), layer.name


def test_the_attention_is_priced_as_by_hand(attention: Cost) -> None:
    assert attention.kernels == len(ATTENTION)
    assert attention.bytes_moved == sum(hand.bytes for hand in ATTENTION)
    assert attention.flops == sum(hand.operations for hand in ATTENTION) == 6_593_848_934_400
    assert attention.seconds == pytest.approx(sum(h.microseconds for h in ATTENTION) * 1e-6)


@pytest.fixture(scope="module")
def page() -> str:
    root = checkout_root()
    if root is None:
        pytest.skip("not a source checkout")
    return Path(root, "docs", "step-cost.md").read_text()


@pytest.mark.parametrize(
    ("title", "kernels"),
    [
        ("One block", [*BLOCK, *ATTENTION]),
        ("Before the first attention", FIRST),
        ("After the last fc2", LAST[len(UP_TO_FC2) :]),
        ("Once a timestep, at loading", TABLES),
    ],
)
def test_the_page_shows_every_kernel(page: str, title: str, kernels: list[Hand]) -> None:
    *rows, last = section(page, title)
    assert [row[-3:] for row in rows] == [shown(hand) for hand in kernels]
    assert [formula_bytes(row[1]) for row in rows] == [hand.bytes for hand in kernels]
    assert last[-3:] == total_row(kernels)


def step_sums(layers: dict[str, list[LayerRecord]], attention: Cost) -> dict[str, Cost]:
    first, middle, last = (
        total(kernel_cost(record, GPU) for record in layers[name]) for name in SEGMENTS
    )
    return {
        "first engine": first,
        "29 engines between two attentions": middle * MIDDLE_BLOCKS,
        "30 attentions": attention * BLOCKS,
        "last engine": last,
        "**transformer**": first + middle * MIDDLE_BLOCKS + attention * BLOCKS + last,
    }


def cells(cost: Cost, runs: int = 1) -> list[str]:
    return [
        f"{cost.kernels / runs:,.0f}",
        f"{cost.bytes_moved / runs / 1e9:,.2f}",
        f"{cost.floor_seconds / runs * 1e3:,.2f}",
        f"{cost.seconds / runs * 1e3:,.2f}",
    ]


def bold(row: list[str]) -> list[str]:
    return [f"**{each}**" for each in row]


def test_the_middle_engines_are_alike(layers: dict[str, list[LayerRecord]]) -> None:
    middle = [name for name in layers if re.fullmatch(r"segment_(0[1-9]|[12]\d)", name)]
    assert len(middle) == MIDDLE_BLOCKS
    costs = {total(kernel_cost(record, GPU) for record in layers[name]) for name in middle}
    assert len(costs) == 1


def test_the_page_has_the_operations_around_the_transformer(
    page: str, recording: Recording, layers: dict[str, list[LayerRecord]]
) -> None:
    rows = section(page, "Around the transformer")
    assert [row[0] for row in rows] == list(AROUND)
    for row, (step, hand) in zip(rows, AROUND.values(), strict=True):
        assert row[-2:] == [f"{hand.bytes / 1e6:,.1f}", f"{hand.microseconds:,.1f}"]
        assert formula_bytes(row[2]) == hand.bytes
        (stage,) = (stage for stage in recording.stages if stage.name == f"step_{step}")
        kind = {"noise": Copy, "latents": Cast}.get(row[0].split()[0], Combine)
        (operation,) = (each for each in stage.operations if isinstance(each, kind))
        cost = operation_cost(operation, recording.manifest, layers, GPU)
        assert cost.bytes_moved == hand.bytes
        assert cost.seconds == pytest.approx(hand.microseconds * 1e-6)


def test_the_page_has_the_steps_that_the_tool_predicts(
    page: str, layers: dict[str, list[LayerRecord]], attention: Cost, video: VideoCost
) -> None:
    sums = step_sums(layers, attention)
    expected = [[name, *cells(cost)] for name, cost in sums.items()]
    expected[-1][1:] = bold(expected[-1][1:])
    expected += [[f"step {i}", *cells(video.of([name]))] for i, name in enumerate(video.steps)]
    expected.append(["**mean step**", *bold(cells(video.of(video.steps), len(video.steps)))])
    assert section(page, "The step") == expected


def test_a_step_is_the_transformer_and_what_is_around_it(
    layers: dict[str, list[LayerRecord]], attention: Cost, video: VideoCost
) -> None:
    transformer = step_sums(layers, attention)["**transformer**"]
    around = {name: hand for name, (_, hand) in AROUND.items()}
    cast = around["latents to bf16"]
    beside = [
        [around["noise to the GPU"], cast, around["sums of step 0"]],
        [cast, around["sum of step 1"]],
        [cast, around["sum of step 2"]],
    ]
    for name, hands in zip(video.steps, beside, strict=True):
        step = video.of([name])
        assert step.bytes_moved == transformer.bytes_moved + sum(hand.bytes for hand in hands)
        assert step.kernels == transformer.kernels + 2
        extra = sum(hand.microseconds for hand in hands) * 1e-6
        assert step.seconds == pytest.approx(transformer.seconds + extra)


def test_the_page_has_the_video_that_the_tool_predicts(page: str, video: VideoCost) -> None:
    parts = {
        "keys and values of the prompt": ["text_kv"],
        "3 steps": list(video.steps),
        "decoder, frames in host memory": ["decode"],
    }
    expected = [[name, *cells(video.of(names))] for name, names in parts.items()]
    expected.append(["**video**", *bold(cells(video.video))])
    assert section(page, "The video") == expected


def test_the_page_has_both_predictions(
    page: str, recording: Recording, layers: dict[str, list[LayerRecord]], video: VideoCost
) -> None:
    assert GPU.sober is not None
    sober = price(recording, layers, GPU.sober)
    expected = []
    for name, stages in (("mean step", video.steps), ("**video**", None)):
        times = [
            1e3 * (cost.video if stages is None else cost.of(stages)).seconds / len(stages or [0])
            for cost in (video, sober)
        ]
        shown = [f"{each:,.2f}" for each in times]
        expected.append([name, *(shown if stages else bold(shown))])
    assert section(page, "At attained rates") == expected
    # Nothing is faster at attained rates, and no figure of the table of peaks is left in them.
    assert all(
        sober.stages[name].cost.seconds > video.stages[name].cost.seconds for name in video.stages
    )
    assert sober.video.flops == video.video.flops
