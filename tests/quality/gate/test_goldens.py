"""Goldens: kept, compared with, refused, and what a difference is called."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from jsonschema import Draft202012Validator

from fastwan.cli import main
from fastwan.errors import BadInput, VerificationFailed
from fastwan.quality.findings import exit_code_of
from fastwan.quality.goldens import run as goldens
from fastwan.quality.goldens.prompts import DEFAULT, read_prompts
from fastwan.quality.goldens.record import RECORD, GoldensReport, Video
from fastwan.quality.goldens.run import check_goldens, compared, difference, make_goldens
from fastwan.quality.goldens.store import read_golden, read_record, write_golden

STEPS = ("text", "step_0", "step_1", "frames")


def arrays(**changes: np.ndarray) -> dict[str, np.ndarray]:
    made: dict[str, np.ndarray] = {
        name: np.arange(1, 13, dtype=np.float32).reshape(3, 4) for name in STEPS
    }
    return {**made, "frames": np.full((2, 4, 4, 3), 7, np.uint8), **changes}


def nudged() -> np.ndarray:
    moved = arrays()["step_1"].copy()
    moved[0, 0] += 1e-3
    return moved


def test_equal_bytes_pass_and_the_first_step_that_parts_is_named() -> None:
    same = compared("video_0", arrays(), arrays(), 0.0)
    assert (same.verdict, same.value, same.text) == ("passed", 0, "equal to the byte")
    other = compared("video_0", arrays(), arrays(step_1=nudged(), frames=arrays()["text"]), 0.0)
    assert other.verdict == "wrong"
    assert "differs first at step_1" in other.text
    assert "frames inf" in other.text
    assert other.value == pytest.approx(1e-3 / np.linalg.norm(arrays()["text"]), rel=1e-3)


def test_a_limit_lets_small_differences_pass() -> None:
    moved = arrays(step_1=nudged())
    assert compared("video_0", arrays(), moved, 1e-3).verdict == "passed"
    assert compared("video_0", arrays(), moved, 1e-6).verdict == "wrong"


@pytest.mark.parametrize(
    ("made", "value"),
    [
        (np.ones(4, np.float32), 0.0),
        (np.ones((4, 1), np.float32), np.inf),
        (np.ones(4, np.float64), np.inf),
        (None, np.inf),
        (np.full(4, 2, np.float32), 1.0),
    ],
)
def test_a_difference_is_relative_and_infinite_for_another_shape(
    made: np.ndarray | None, value: float
) -> None:
    assert difference(np.ones(4, np.float32), made) == value


def test_a_nan_and_another_zero_are_no_equal_bytes() -> None:
    ones, zeros = np.ones(2, np.float32), np.zeros(2, np.float32)
    assert not difference(ones, ones * np.float32("nan")) <= 10
    assert difference(ones, ones) == 0
    assert difference(zeros, -zeros) > 0
    assert difference(zeros, zeros) == 0


def test_a_step_that_is_missing_or_new_is_a_difference() -> None:
    less = {name: value for name, value in arrays().items() if name != "step_1"}
    assert "differs first at step_1" in compared("video_0", arrays(), less, 1.0).text
    assert "differs first at step_1" in compared("video_0", less, arrays(), 1.0).text
    assert compared("video_0", less, less, 0.0).verdict == "passed"
    assert compared("video_0", {}, {}, 1.0).verdict == "wrong"


def test_the_same_arrays_make_the_same_file(tmp_path: Path) -> None:
    first = write_golden(tmp_path, 0, DEFAULT[0], arrays())
    again = write_golden(tmp_path, 1, DEFAULT[0], arrays())
    assert (first.sha256, first.file, again.file) == (again.sha256, "0000.npz", "0001.npz")
    kept = read_golden(tmp_path, first)
    assert list(kept) == list(STEPS)
    assert all(difference(kept[name], value) == 0 for name, value in arrays().items())


@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_a_damaged_file_is_seen(tmp_path: Path, damage: str) -> None:
    golden = write_golden(tmp_path, 0, DEFAULT[0], arrays())
    read_golden(tmp_path, golden)
    path = tmp_path / golden.file
    content = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    else:
        content[100] ^= 1
        path.write_bytes(content if damage == "flip" else content[:-10])
    with pytest.raises(BadInput if damage == "gone" else VerificationFailed, match=golden.file):
        read_golden(tmp_path, golden)


def test_a_file_that_is_no_archive_is_refused(tmp_path: Path) -> None:
    golden = write_golden(tmp_path, 0, DEFAULT[0], arrays())
    import hashlib

    (tmp_path / golden.file).write_bytes(b"nonsense")
    forged = golden.model_copy(
        update={"bytes": 8, "sha256": hashlib.sha256(b"nonsense").hexdigest()}
    )
    with pytest.raises(BadInput, match="no archive of arrays"):
        read_golden(tmp_path, forged)


@pytest.mark.parametrize(
    ("text", "videos"),
    [
        ("1024 A red fox\n", [(1024, "A red fox")]),
        ("# set\n\n1 a\n2 a\n", [(1, "a"), (2, "a")]),
        ("0   spaced out  \n", [(0, "spaced out")]),
        ("A red fox\n", None), ("-1 a\n", None), ("1.5 a\n", None), ("1\n", None), ("", None),
        ("# nothing\n", None), ("1 a\n1 a\n", None), ("9223372036854775808 a\n", None),
        ("\u0661 a\n", None),
    ],
)  # fmt: skip
def test_a_set_is_a_seed_and_a_prompt_a_line(
    tmp_path: Path, text: str, videos: list[tuple[int, str]] | None
) -> None:
    path = tmp_path / "set.txt"
    path.write_text(text, encoding="utf-8")
    if videos is not None:
        assert read_prompts(path) == tuple(Video(seed=s, prompt=p) for s, p in videos)
        return
    with pytest.raises(BadInput, match=r"set\.txt"):
        read_prompts(path)


def test_a_set_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot be read"):
        read_prompts(tmp_path / "missing.txt")
    (tmp_path / "latin").write_bytes(b"1 caf\xe9\n")
    with pytest.raises(BadInput, match="not UTF-8"):
        read_prompts(tmp_path / "latin")


@pytest.mark.trt
class TestOfTheTinyBundle:
    """Goldens that were made of it, and of copies of it."""

    @pytest.fixture
    def copy(self, accepted: Path, tmp_path: Path) -> Path:
        return Path(shutil.copytree(accepted / "goldens", tmp_path / "goldens"))

    def test_they_hold_on_the_machine_that_made_them(
        self, tiny_bundle: Path, accepted: Path
    ) -> None:
        report = check_goldens(tiny_bundle, accepted / "goldens")
        assert [each.text for each in report.findings] == ["equal to the byte"] * len(DEFAULT)
        assert report.exit_code == 0

    def test_what_is_kept_of_a_video(self, accepted: Path) -> None:
        folder = accepted / "goldens"
        record = read_record(folder)
        kept = read_golden(folder, record.goldens[0])
        assert list(kept) == ["text", "step_0", "step_1", "step_2", "frames"]
        assert kept["step_0"].shape == (1, 16, 3, 12, 20)
        assert kept["frames"].shape == (9, 96, 160, 3)

    def test_a_change_of_a_step_is_named(
        self, tiny_bundle: Path, copy: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder, record = copy, read_record(copy)
        kept = read_golden(folder, record.goldens[1])
        kept["step_1"] = kept["step_1"] * np.float32(1.001)
        changed = write_golden(folder, 1, record.goldens[1].video, kept)
        record = record.model_copy(update={"goldens": (record.goldens[0], changed)})
        (folder / RECORD).write_text(record.model_dump_json())
        report = check_goldens(tiny_bundle, folder)
        assert [each.verdict for each in report.findings] == ["passed", "wrong"]
        assert "differs first at step_1" in report.findings[1].text
        assert report.exit_code == 4
        assert check_goldens(tiny_bundle, folder, limit=0.01).exit_code == 0
        monkeypatch.setattr(goldens, "runs_on", lambda _: "another processor")
        text = check_goldens(tiny_bundle, folder).findings[1].text
        assert "this is another processor" in text

    @pytest.mark.parametrize("name", ["weights", "sampler", "tokenizer", "shape", "attention"])
    def test_goldens_of_anything_else_are_refused(
        self, tiny_bundle: Path, copy: Path, name: str
    ) -> None:
        fields = json.loads((copy / RECORD).read_text())
        fields["made_of"][name] = "another"
        (copy / RECORD).write_text(json.dumps(fields))
        report = check_goldens(tiny_bundle, copy)
        assert [each.check for each in report.findings] == [f"made_of.{name}"]
        assert report.exit_code == exit_code_of(report.findings) == 2

    def test_the_command_makes_and_checks(
        self, tiny_bundle: Path, tmp_path: Path, validator: Callable[..., Draft202012Validator]
    ) -> None:
        folder, prompts = tmp_path / "made", tmp_path / "set.txt"
        prompts.write_text("3 A blue heron\n")

        def call(*arguments: Any) -> Any:
            return CliRunner().invoke(main, ["goldens", *map(str, arguments)])

        made = call("make", tiny_bundle, folder, "--prompts", prompts, "--json")
        checked = call("check", tiny_bundle, folder, "--json")
        for done in (made, checked):
            assert done.exit_code == 0, done.output
            printed = json.loads(done.stdout)
            validator("goldens").validate(printed)
            assert GoldensReport.model_validate(printed).to_json() == done.stdout.rstrip("\n")
        again = folder / "0000.npz"
        before = again.read_bytes()
        assert call("make", tiny_bundle, folder, "--prompts", prompts).exit_code == 0
        assert again.read_bytes() == before
        assert call("check", tiny_bundle, folder, "--limit", "nan").exit_code == 2
        assert call("check", tiny_bundle, folder, "--prompts", prompts).exit_code == 2
        assert call("check", tiny_bundle, tmp_path / "nothing").exit_code == 2
        (folder / "mine.txt").write_text("mine")
        assert call("make", tiny_bundle, folder, "--prompts", prompts).exit_code == 2

    def test_without_a_text_encoder_the_seed_draws_the_embeddings(
        self, lifted_bundle: Path, tmp_path: Path
    ) -> None:
        report = make_goldens(lifted_bundle, tmp_path / "goldens")
        assert report.exit_code == 0
        record = read_record(tmp_path / "goldens")
        texts = [read_golden(tmp_path / "goldens", each)["text"] for each in record.goldens]
        assert difference(*texts) > 0.1
        assert check_goldens(lifted_bundle, tmp_path / "goldens").exit_code == 0
