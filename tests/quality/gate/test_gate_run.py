"""What a run of the gate takes, refuses and writes; on a bundle without graphs."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from fastwan.bundle import Bundle, open_bundle
from fastwan.cli import main
from fastwan.errors import BadInput
from fastwan.manifest import MANIFEST
from fastwan.quality.findings import GateReport
from fastwan.quality.gate.baseline_file import Baseline
from fastwan.quality.gate.run import gate

pytestmark = pytest.mark.usefixtures("constants")

STAGES = ("schedule", "predicted")


@pytest.fixture
def root(make_bundle: Callable[..., Bundle]) -> Path:
    return make_bundle().root


@pytest.fixture
def baseline(root: Path, tmp_path: Path) -> Path:
    path = tmp_path / "baseline.json"
    assert gate(root, path, stages=STAGES, update=True).rewritten
    return path


def run(root: Path, baseline: Path, **options: Any) -> GateReport:
    return gate(root, baseline, **{"stages": STAGES, **options})


def notable(report: GateReport) -> dict[str, str]:
    return {each.check: each.verdict for each in report.findings if each.verdict != "passed"}


def edit(path: Path, *place: str, value: Any) -> None:
    """Change one value of a JSON file."""
    fields = json.loads(path.read_text())
    holder = fields
    for name in place[:-1]:
        holder = holder[name]
    holder[place[-1]] = value
    path.write_text(json.dumps(fields))


def test_a_baseline_has_a_value_a_line_in_order(baseline: Path) -> None:
    text = baseline.read_text()
    assert text == json.dumps(json.loads(text), indent=1, sort_keys=True) + "\n"
    assert '   "graph_launches": 1,\n' in text
    digits = [value for value in Baseline.read(baseline).figures("predicted").values()]
    assert digits
    assert all(value == float(f"{value:.4g}") for value in digits)


def test_making_it_again_changes_no_byte(root: Path, baseline: Path) -> None:
    before = baseline.read_bytes()
    run(root, baseline, update=True)
    assert baseline.read_bytes() == before


def test_fewer_enqueues_than_the_baseline_pass_and_are_told(root: Path, baseline: Path) -> None:
    assert notable(run(root, baseline)) == {}
    edit(baseline, "stages", "schedule", "enqueues", value=1000)
    report = run(root, baseline)
    assert (notable(report), report.exit_code) == ({"enqueues": "improved"}, 0)
    done = CliRunner().invoke(
        main, ["gate", str(root), "--against", str(baseline), "--stage", ",".join(STAGES)]
    )
    assert done.exit_code == 0
    assert f"to write the baseline anew: {report.rewrite}" in done.stdout
    words = report.rewrite.split()
    assert words[0] == "fastwan-export"
    assert CliRunner().invoke(main, words[1:]).exit_code == 0
    assert notable(run(root, baseline)) == {}


@pytest.mark.parametrize("key", ["attention", "builder", "target", "shape", "fusion"])
def test_another_cohort_is_named_and_not_compared(root: Path, baseline: Path, key: str) -> None:
    before = json.loads(baseline.read_text())["cohort"][key]
    edit(baseline, "cohort", key, value="another")
    edit(baseline, "stages", "schedule", "enqueues", value=1)  # would be worse
    report = run(root, baseline)
    assert notable(report) == {key: "refused", "all": "skipped"}
    assert report.exit_code == 2
    assert report.findings[0].text == f"baseline another, this run {before}"
    assert {each.text for each in report.findings[1:]} == {f"baseline of another cohort: {key}"}


def test_a_key_that_only_one_has_is_another_cohort(root: Path, baseline: Path) -> None:
    edit(baseline, "cohort", "precision", value="double")
    report = run(root, baseline)
    assert report.findings[0].text == "baseline double, this run without it"
    assert report.exit_code == 2


def test_other_rates_concern_the_predicted_times_alone(root: Path, baseline: Path) -> None:
    edit(baseline, "rates", "rates", value="rtx5090 2020-01-01")
    report = run(root, baseline)
    assert notable(report) == {"rates": "refused", "all": "skipped"}
    assert sum(each.stage == "schedule" for each in report.findings) > 1


def test_a_figure_that_the_baseline_lacks_is_refused(root: Path, baseline: Path) -> None:
    fields = json.loads(baseline.read_text())
    del fields["stages"]["schedule"]["enqueues"]
    baseline.write_text(json.dumps(fields))
    report = run(root, baseline)
    assert (notable(report), report.exit_code) == ({"enqueues": "refused"}, 2)


def test_a_figure_that_only_the_baseline_has_is_wrong(root: Path, baseline: Path) -> None:
    edit(baseline, "stages", "predicted", "another", value=1.0)
    report = run(root, baseline)
    assert (notable(report), report.exit_code) == ({"another": "wrong"}, 4)


def test_what_a_bundle_lacks_is_skipped_unless_the_baseline_has_it(
    make_bundle: Callable[..., Bundle], baseline: Path, tmp_path: Path
) -> None:
    root = make_bundle(components=("text_encoder",)).root
    report = run(root, baseline)
    assert {each.verdict for each in report.findings[1:]} == {"wrong"}
    new = tmp_path / "new.json"
    assert notable(run(root, new, update=True)) == {"video": "skipped"}
    assert run(root, new).exit_code == 0


def test_a_race_is_wrong_whatever_the_baseline_says(
    root: Path, baseline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastwan.quality.bench.find_races", lambda _: ["a race"])
    report = run(root, baseline)
    assert (notable(report), report.exit_code) == ({"races": "wrong"}, 4)
    # A baseline that is made all the same says that it was red, and so does every later run.
    made = run(root, baseline, update=True)
    assert (made.rewritten, made.exit_code) == (True, 4)
    assert Baseline.read(baseline).red == ("schedule races",)
    (finding,) = (each for each in run(root, baseline).findings if each.check == "races")
    assert finding.verdict == "wrong"
    assert "already red" in finding.text
    monkeypatch.undo()


def test_a_baseline_that_was_red_is_told_when_it_is_green_again(root: Path, baseline: Path) -> None:
    edit(baseline, "red", value=["schedule races"])
    report = run(root, baseline)
    assert (notable(report), report.exit_code) == ({"races": "improved"}, 0)


def test_a_stage_that_does_not_run_keeps_its_figures(root: Path, baseline: Path) -> None:
    edit(baseline, "stages", "schedule", "enqueues", value=1)
    run(root, baseline, stages=("predicted",), update=True)
    assert Baseline.read(baseline).figures("schedule")["enqueues"] == 1
    run(root, baseline, update=True)
    assert Baseline.read(baseline).figures("schedule")["enqueues"] > 1


def test_figures_of_another_cohort_are_dropped(root: Path, baseline: Path) -> None:
    edit(baseline, "cohort", "target", value="rtx5080")
    run(root, baseline, stages=("predicted",), update=True)
    made = Baseline.read(baseline)
    assert made.cohort["target"] == "rtx5090"
    assert made.stages.keys() == {"predicted"}


def test_limits_are_written_and_hold_from_then_on(root: Path, baseline: Path) -> None:
    run(root, baseline, update=True, limits=["schedule.enqueues=0.5"])
    enqueues = Baseline.read(baseline).figures("schedule")["enqueues"]
    edit(baseline, "stages", "schedule", "enqueues", value=int(enqueues / 1.4))
    assert notable(run(root, baseline)) == {}
    assert notable(run(root, baseline, limits=["schedule.enqueues=0.1"])) == {"enqueues": "worse"}


def test_a_file_that_differs_from_its_hash_is_a_finding(root: Path, baseline: Path) -> None:
    (root / "layers.json").write_text("{}")
    report = run(root, baseline)
    assert report.exit_code == 4
    assert {each.stage for each in report.findings if each.failed} == {"schedule", "predicted"}
    assert any("hash" in each.text for each in report.findings)
    assert report.advice == ""


@pytest.mark.parametrize("damage", ["missing", "cut", None])
def test_every_file_is_asked_for_where_verify_does_not_run(
    make_bundle: Callable[..., Bundle], baseline: Path, damage: str | None
) -> None:
    bundle = make_bundle()
    file = bundle.root / next(iter(bundle.manifest.engines.values())).file
    if damage:
        file.write_bytes(file.read_bytes()[:-1])
    if damage == "missing":
        file.unlink()
    report = run(bundle.root, baseline, stages=("static", *STAGES))
    (found,) = (each for each in report.findings if each.check == "listed_files")
    assert found.verdict == ("wrong" if damage else "passed")
    skipped = [each.stage for each in report.findings if each.verdict == "skipped"]
    assert skipped == (["static", *STAGES] if damage else [])
    if damage:
        assert "build the bundle again or copy it anew" in found.text
        assert report.exit_code == 4


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"stages": ["speed"]}, "unknown stage 'speed'"),
        ({"stages": ["goldens"]}, "goldens of which folder"),
        ({"limits": ["verify=1"]}, "--limit"),
        ({"golden_limit": -1.0}, "--golden-limit"),
        ({"runs": 0}, "--runs"),
    ],
)
def test_options_are_refused_before_the_work(
    root: Path, baseline: Path, options: dict[str, Any], match: str
) -> None:
    run(root, baseline)
    with pytest.raises(BadInput, match=match):
        run(root, baseline, **options)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("kind",), "bench"), (("schema_version",), 2), (("surprise",), 1), (("red",), "all"),
        (("stages", "schedule", "enqueues"), "many"), (("stages", "schedule", "enqueues"), True),
        (("stages", "shedule"), {"enqueues": 1}), (("limits",), {"times": {"relative": -1}}),
        (("limits",), {"tims": {"relative": 0.1, "absolute": 0.0}}), (("cohort",), None),
    ],
)  # fmt: skip
def test_a_baseline_is_read_strictly(
    root: Path, baseline: Path, place: tuple[str, ...], value: Any
) -> None:
    edit(baseline, *place, value=value)
    before = baseline.read_bytes()
    for update in (False, True):
        with pytest.raises(BadInput, match=r"no baseline of gate|not made by this tool"):
            run(root, baseline, update=update)
    assert baseline.read_bytes() == before


@pytest.mark.parametrize("field", sorted(Baseline.model_fields))
def test_no_field_of_a_baseline_may_be_gone(root: Path, baseline: Path, field: str) -> None:
    """Without its list of checks, say, a baseline would hold none of them."""
    assert notable(run(root, baseline)) == {}
    fields = json.loads(baseline.read_text())
    del fields[field]
    baseline.write_text(json.dumps(fields))
    with pytest.raises(BadInput, match=f"'{field}' is gone"):
        run(root, baseline)


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("schedule", True), ("schedule.enqueues", True), ("schedule.enqueue", False),
        ("predicted.decod", False), ("static.dit.kernel", True), ("times.clocks.sm_mhz", True),
    ],
)  # fmt: skip
def test_a_limit_of_no_check_is_refused(root: Path, baseline: Path, name: str, known: bool) -> None:
    """Of a stage that does not run nothing is known."""
    report = run(root, baseline, limits=[f"{name}=0.1"])
    assert notable(report) == ({} if known else {f"limit {name}": "refused"})
    assert report.exit_code == (0 if known else 2)
    made = run(root, baseline, limits=[f"{name}=0.1"], update=True)
    assert made.rewritten == known


def test_a_history_that_cannot_be_written_is_refused_before_the_work(
    root: Path, baseline: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    for place, good in (("new/history.jsonl", True), ("file/history.jsonl", False)):
        history = tmp_path / place
        with nullcontext() if good else pytest.raises(BadInput, match="--history"):
            assert notable(run(root, baseline, history=history)) == {}
        assert not history.exists()


def test_a_baseline_that_is_not_there_is_refused_with_the_way_to_make_it(
    root: Path, tmp_path: Path
) -> None:
    missing = tmp_path / "missing.json"
    with pytest.raises(BadInput, match=r"no baseline \(.*with --update-baseline makes one"):
        run(root, missing)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(BadInput, match="not made by this tool"):
        run(root, tmp_path / "notes.txt", update=True)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_the_command_exits_by_the_gravest_finding(root: Path, baseline: Path) -> None:
    arguments = ["gate", str(root), "--against", str(baseline), "--stage", "schedule"]
    assert CliRunner().invoke(main, arguments).exit_code == 0
    edit(baseline, "stages", "schedule", "enqueues", value=1)
    worse = CliRunner().invoke(main, arguments)
    assert worse.exit_code == 5
    assert "WORSE  enqueues" in worse.stdout
    printed = json.loads(CliRunner().invoke(main, [*arguments, "--json"]).stdout)
    assert GateReport.model_validate(printed).exit_code == 5
    (root / MANIFEST).write_text("{}")
    assert CliRunner().invoke(main, arguments).exit_code == 2
    with pytest.raises(BadInput):
        open_bundle(root)


def test_a_time_that_no_rate_is_known_for_is_left_out(
    make_bundle: Callable[..., Bundle], tmp_path: Path
) -> None:
    """Of a GB10 no attention rate is known, so neither a step nor the video has a time."""
    root, baseline = make_bundle(target="gb10").root, tmp_path / "gb10.json"
    assert run(root, baseline, update=True).exit_code == 0
    kept = Baseline.read(baseline).figures("predicted")
    assert "tables" in kept
    assert "video" not in kept
    assert notable(run(root, baseline)) == {}
