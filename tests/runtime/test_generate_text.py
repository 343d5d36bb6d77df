"""What generate shows: each stage once, or a table of several runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from fastwan.cli import main
from fastwan.runtime.generate import generate
from fastwan.runtime.generate_text import render
from fastwan.runtime.report import GenerateReport
from fastwan.runtime.timings import nearest_rank


def made(report: GenerateReport, *runs: float, warmups: tuple[float, ...] = ()) -> GenerateReport:
    """The report with videos that took these seconds; only the last one was written."""
    seconds = [{"load": 0.5, "decode": each, "total": each + 0.5} for each in runs]
    seconds[-1] = {**seconds[-1], "write": 0.25}
    (video,) = report.videos
    changes = {
        "runs": tuple(seconds),
        "seconds": seconds[-1],
        "warmups": tuple({"load": each, "decode": each, "total": 2 * each} for each in warmups),
    }
    return report.model_copy(update={"videos": (video.model_copy(update=changes),)})


@pytest.fixture
def report(bundle: Any, tmp_path: Path) -> GenerateReport:
    return generate(bundle.root, "a fox", tmp_path / "frames", device="cpu", warmup=1)


def test_one_run_is_shown_stage_by_stage(report: GenerateReport) -> None:
    lines = render(made(report, 2.0)).splitlines()
    assert lines[0].startswith(f"frames: {report.videos[0].frames_dir} (9 frames of ")
    assert not any(line.startswith("video:") for line in lines)
    assert [line.split() for line in lines[2:]] == [
        ["load", "500.00", "ms", "(measured)"],
        ["decode", "2,000.00", "ms", "(measured)"],
        ["total", "2,500.00", "ms", "(measured)"],
        ["write", "250.00", "ms", "(measured)"],
    ]


def test_several_runs_are_a_table_and_warm_ups_are_marked(report: GenerateReport) -> None:
    text = render(made(report, 1.0, 3.0, 2.0, warmups=(9.0, 8.0)))
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines()[2:]}
    assert rows["stage"] == ["min", "median", "p95", "spread", "warm-up"]
    assert rows["decode"] == ["1,000.00", "2,000.00", "3,000.00", "100.0%", "9,000.00"]
    assert rows["write"] == ["250.00", "250.00", "250.00", "0.0%", "-"]
    assert "3 runs" in text
    stages = text.splitlines()[4:]
    assert len({len(line) for line in stages}) == 1
    # As wide as the figures: 3.00 takes five columns less than 3,000.00 in each.
    shorter = render(made(report, 0.001, 0.003, 0.002, warmups=(0.009,))).splitlines()[4:]
    assert len(shorter[0]) <= 50 < len(stages[0]) <= 72


def test_a_warm_up_is_reported_apart(report: GenerateReport) -> None:
    (video,) = report.videos
    assert (len(video.runs), len(video.warmups)) == (1, 1)
    stages = sum(seconds for name, seconds in video.seconds.items() if name != "total")
    assert 0 < stages <= video.seconds["total"] + 1e-3


@pytest.mark.parametrize(("percent", "value"), [(95, 19.0), (50, 10.0), (100, 20.0), (1, 1.0)])
def test_a_percentile_is_one_of_the_values(percent: int, value: float) -> None:
    assert nearest_rank((float(each) for each in range(20, 0, -1)), percent) == value


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["B", "a", "red", "fox"], 'quote a prompt, "a red fox"'),
        (["a red fox", "B"], "name the bundle first"),
        (["B", "a fox", "red"], None),
        (["B", "fox.", "hen."], None),
        (["B", "fox"], None),
    ],
)
def test_words_without_quotes_and_swapped_arguments_are_told(
    bundle: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    message: str | None,
) -> None:
    def run(*_: object, **__: object) -> None:
        raise RuntimeError("reached")

    monkeypatch.setattr("fastwan.runtime.generate.generate", run)
    given = [str(bundle.root) if word == "B" else word for word in words]
    done = CliRunner().invoke(main, ["generate", *given, "-o", str(tmp_path / "x")])
    if message is None:
        assert "reached" in done.stderr
    else:
        assert done.exit_code == 2
        assert message in done.stderr
