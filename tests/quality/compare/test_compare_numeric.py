"""Two bundles played side by side: steps, blocks, tensors, frames; and Polygraphy's commands."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from jsonschema import Draft202012Validator

from fastwan.bundle import open_bundle
from fastwan.cli import main
from fastwan.config import SAMPLERS
from fastwan.errors import BadInput
from fastwan.quality.compare.blocks import added_difference
from fastwan.quality.compare.players import CpuPlayer, DevicePlayer
from fastwan.quality.compare.report import CompareReport
from fastwan.quality.compare.run import Comparison, compare_bundles
from fastwan.quality.emulated.full_size import Setting
from fastwan.quality.frames import psnr
from fastwan.quality.verify.graphs import random_inputs, relative_difference
from fastwan.quality.verify.subject import Subject
from fastwan.runtime.emulated.engines import Torch
from fastwan.runtime.model.samplers import schedule_of
from testkit.emulated_host import CPU, emulated_host_platform
from testkit.host_device import HostDevice
from testkit.once import Once
from testkit.tiny_bundles import attention_bundle

pytestmark = pytest.mark.trt

LIMIT = 0.05


@pytest.fixture(scope="module")
def tensors(once: Once) -> Path:
    """Where the tensors of `fp4` go."""
    return once("compare", Path.mkdir) / "tensors"


@pytest.fixture(scope="module")
def fp4(unquantised_bundle: Path, tiny_bundle: Path, tensors: Path) -> Comparison:
    """What FP4 costs."""
    return compare_bundles(
        unquantised_bundle, tiny_bundle, by_block=True, limit=LIMIT, tensors=tensors, force=True
    )


def test_fp4_moves_every_step_and_the_frames_by_a_visible_amount(fp4: Comparison) -> None:
    figures = fp4.report.numeric
    assert figures is not None
    assert (figures.sampler, figures.device) == ("unipc", "cpu")
    assert [each.step for each in figures.steps] == [0, 1, 2]
    for step in figures.steps:
        assert step.velocity is not None
        assert 0.05 < step.velocity < 0.5
    drifts = [each.drift for each in figures.steps]
    assert drifts == sorted(drifts, key=lambda drift: drift or 0)  # they go further apart
    (frames,) = figures.frames
    left, right = fp4.videos
    assert frames.psnr == pytest.approx(psnr(left, right))
    assert frames.psnr is not None
    assert 20 < frames.psnr < 60
    assert frames.largest == np.abs(left.astype(int) - right.astype(int)).max()
    assert not fp4.report.passed


def test_the_first_tensor_that_parts_is_behind_the_first_quantiser(fp4: Comparison) -> None:
    figures = fp4.report.numeric
    assert figures is not None
    assert [each.block for each in figures.blocks] == [0, 1]
    assert all(each.own is not None and 0.05 < each.own < 0.6 for each in figures.blocks)
    assert figures.first_block == 0
    assert figures.first_tensor == "blocks.0.sage_attention3"
    before = [each.name for each in figures.tensors].index(figures.first_tensor)
    assert {each.difference for each in figures.tensors[:before]} == {0.0}
    assert before > 10


def test_what_a_block_adds_is_over_its_own_change() -> None:
    before, behind = np.zeros((1, 2, 2)), np.ones((1, 2, 2))
    assert added_difference(before, behind, behind) == 0
    assert added_difference(before, behind, behind + 0.5) == 0.5
    assert added_difference(before, before, behind) is None


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (["inspect", "data", "{}/a.json"], 0),
        (["run", "--load-outputs", "{}/a.json", "{}/b.json"], 1),
    ],
)
def test_polygraphy_reads_the_tensors(
    fp4: Comparison, tensors: Path, command: list[str], code: int
) -> None:
    given = [part.format(tensors) for part in command]
    line = [sys.executable, "-c", "from polygraphy.tools import main; exit(main())", *given]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert "blocks.0.sage_attention3" in done.stdout + done.stderr


@pytest.fixture(scope="module")
def report_of_itself(tiny_bundle: Path) -> CompareReport:
    """A bundle against itself, by the command line."""
    arguments = [str(tiny_bundle), str(tiny_bundle), "--by-block", "--limit", "0", "--json"]
    done = CliRunner().invoke(main, ["compare", *arguments])
    assert done.exit_code == 0, done.output
    return CompareReport.model_validate_json(done.stdout)


def test_a_bundle_does_not_part_from_itself(
    report_of_itself: CompareReport, validator: Callable[[str], Draft202012Validator]
) -> None:
    figures = report_of_itself.numeric
    assert figures is not None
    assert {each.velocity for each in figures.steps} == {0.0}
    assert {each.drift for each in figures.blocks} == {0.0}
    assert (figures.first_block, figures.first_tensor, figures.tensors) == (None, "", ())
    assert [(each.psnr, each.largest) for each in figures.frames] == [(None, 0)]
    assert report_of_itself.passed
    validator("compare").validate(json.loads(report_of_itself.to_json()))


@pytest.mark.parametrize("attention", ["native", "sage2"])
def test_another_attention_of_the_same_model_shows(
    once: Once, tiny_bundle: Path, attention: str
) -> None:
    other = attention_bundle(once, tiny_bundle, attention)
    figures = compare_bundles(tiny_bundle, other, by_block=True).report.numeric
    assert figures is not None
    assert all(each.velocity is not None and each.velocity > 0.01 for each in figures.steps)
    assert figures.first_tensor == "blocks.0.sage_attention3"


def test_the_command_fails_beyond_a_limit_only(
    tiny_bundle: Path, unquantised_bundle: Path, tmp_path: Path
) -> None:
    report = tmp_path / "report"
    arguments = ["compare", str(unquantised_bundle), str(tiny_bundle), "--report", str(report)]
    for limit, code in ((["--limit", "0.01"], 4), (["--limit", "0.9"], 0)):
        done = CliRunner().invoke(main, [*arguments, *limit])
        assert done.exit_code == code, done.output
        assert "blocks.*.attn1.qkv" in done.stdout
        page = (report / "index.html").read_text()
        assert ('<header class="bad">' in page) == (code == 4)
        assert page.count("data:image/jpeg") == 3 * 3


def test_static_facts_alone_play_nothing(tiny_bundle: Path, lifted_bundle: Path) -> None:
    report = compare_bundles(tiny_bundle, lifted_bundle, static=True).report
    assert report.numeric is None
    assert report.static.groups


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": float("nan")}, "no difference"),
        ({"tensors": Path("x")}, "--by-block"),
        ({"device": "tpu"}, "unknown device"),
    ],
)
def test_options_that_mean_nothing_are_refused(
    tiny_bundle: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        compare_bundles(tiny_bundle, tiny_bundle, **options)  # type: ignore[arg-type]


def test_a_device_plays_what_the_reference_does(tiny_bundle: Path) -> None:
    """On a device in host memory: the same steps, the hidden states, and latents that are given."""
    subject = Subject(open_bundle(tiny_bundle))
    schedule = schedule_of(SAMPLERS["unipc"])
    platform = emulated_host_platform(HostDevice())
    device = DevicePlayer(
        subject, schedule, Setting(platform, Torch(CPU), subject.attention.reference)
    )
    reference = CpuPlayer(subject, schedule)
    noise, text = random_inputs(subject)
    try:
        ours, theirs = device.play(text, [noise]), reference.play(text, [noise])
        led = device.play(text, [noise], [noise] * len(schedule.steps))
        hidden = device.hidden(text, noise)
    finally:
        device.close()
        reference.close()
    for mine, other in zip(ours.velocities, theirs.velocities, strict=True):
        assert relative_difference(other, mine) < 0.1  # FP4 is chaotic
    np.testing.assert_array_equal(led.velocities[0], ours.velocities[0])
    assert relative_difference(ours.velocities[1], led.velocities[1]) > 0.1
    assert set(hidden) == {"embed.hidden", "blocks.0.hidden_out"}
