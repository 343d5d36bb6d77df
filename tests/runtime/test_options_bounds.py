"""Numbers of the commands that are out of range: exit 2 in one line, before anything is opened."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from fastwan.cli import main
from fastwan.config import MAX_TOKENS, VideoShape
from fastwan.errors import BadInput


@pytest.mark.parametrize(
    "option",
    [
        ("--repeat", "0"), ("--repeat", "-1"), ("--repeat", "1000000000000"),
        ("--warmup", "-1"), ("--warmup", "9" * 400), ("--seed", "-1"),
        ("--seed", str(1 << 64)), ("--seed", "9" * 400), ("--seed", "9" * 5000),
        ("--repeat", "nan"),
    ],
)  # fmt: skip
def test_generate_refuses_a_number_out_of_range(option: tuple[str, str], tmp_path: object) -> None:
    arguments = ["generate", "nowhere", "a fox", "-o", f"{tmp_path}/x.mp4"]
    good = CliRunner().invoke(main, [*arguments, "--repeat", "1", "--seed", "0"])
    assert "not a folder" in good.stderr
    result = CliRunner().invoke(main, [*arguments, *option])
    assert result.exit_code == 2
    assert "not a folder" not in result.stderr
    assert option[0].removeprefix("--") in result.stderr


@pytest.mark.parametrize("seed", ["-1", str(1 << 64), "9" * 400, "9" * 5000])
def test_make_checkpoint_refuses_a_seed_out_of_range(seed: str, tmp_path: object) -> None:
    arguments = ["make-checkpoint", f"{tmp_path}/ck", "--size", "tiny", "--seed", seed]
    assert CliRunner().invoke(main, arguments).exit_code == 2


@pytest.mark.parametrize(
    ("shape", "option"),
    [
        ((16_000_000, 832, 81), "--height"),
        ((480, 16_000_000, 81), "--width"),
        ((480, 832, 4_000_001), "--num-frames"),
        ((0, 832, 81), "--height"),
        ((480, -16, 81), "--width"),
        ((480, 832, -3), "--num-frames"),
        ((8192, 8192, 401), "--num-frames"),
    ],
)
def test_a_video_of_no_sensible_size_is_refused(shape: tuple[int, int, int], option: str) -> None:
    assert VideoShape(480, 832, 81).num_tokens < MAX_TOKENS
    with pytest.raises(BadInput, match=option):
        VideoShape(*shape)
