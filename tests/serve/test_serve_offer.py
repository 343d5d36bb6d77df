"""Which video a request means, and the refusals that say what can be made."""

from __future__ import annotations

from typing import Any

import pytest

from fastwan.config import VideoShape
from fastwan.errors import BadInput
from fastwan.serve.jobs import Asked
from fastwan.serve.offer import resolve
from fastwan.serve.wire import CreateVideo
from testkit.fake_player import FakePlayer

WIDE = VideoShape(height=480, width=832, num_frames=81)
SHORT = VideoShape(height=480, width=832, num_frames=33)
OFFER = FakePlayer(shapes=(WIDE, SHORT)).offer
GUIDED = FakePlayer(guided=True).offer


def asked(**fields: Any) -> Asked:
    return resolve(OFFER, CreateVideo(prompt="a fox", **fields), longest_prompt=100)


def test_what_is_left_out_is_the_first_of_the_bundle() -> None:
    made = asked(seed=5)
    assert (made.shape, made.sampler, made.steps, made.model) == (WIDE, "dmd", 3, "fake")
    assert (made.fps, made.seed, made.guidance_scale) == (16, 5, None)


@pytest.mark.parametrize(
    ("fields", "shape"),
    [
        ({"size": "832x480"}, WIDE),
        ({"seconds": "5"}, WIDE),
        ({"seconds": "5.0625"}, WIDE),
        ({"seconds": 5}, WIDE),
        ({"seconds": 2.0625}, SHORT),
        ({"num_frames": 33}, SHORT),
        ({"size": "832x480", "seconds": "2", "num_frames": 33}, SHORT),
    ],
)
def test_a_shape_is_found_by_all_that_is_said_of_it(
    fields: dict[str, Any], shape: VideoShape
) -> None:
    assert asked(**fields).shape == shape


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"size": "480x832"}, "size"),
        ({"seconds": "4"}, "seconds"),
        ({"seconds": "2", "num_frames": 81}, "seconds"),
        ({"num_frames": 80}, "num_frames"),
        ({"size": "../../etc"}, "size"),
    ],
)
def test_a_shape_that_is_not_there_is_refused_with_those_that_are(
    fields: dict[str, Any], where: str
) -> None:
    with pytest.raises(BadInput) as refused:
        asked(**fields)
    assert refused.value.where == where
    assert "size 832x480 with seconds 5.0625 or 5 (num_frames 81)" in refused.value.fix
    assert "seconds 2.0625 or 2 (num_frames 33)" in refused.value.fix


@pytest.mark.parametrize(
    ("fields", "fix"),
    [({"model": "sora-2"}, "name fake"), ({"sampler": "euler"}, "one of dmd")],
)
def test_another_name_is_refused_with_those_there_are(fields: dict[str, Any], fix: str) -> None:
    with pytest.raises(BadInput) as refused:
        asked(**fields)
    assert refused.value.where == next(iter(fields))
    assert refused.value.fix == fix


def test_seeds_are_fresh_where_none_is_given() -> None:
    seeds = {asked().seed for _ in range(20)}
    assert len(seeds) > 15
    assert all(0 <= seed < 1 << 32 for seed in seeds)


@pytest.mark.parametrize(("length", "refused"), [(100, False), (101, True)])
def test_a_prompt_has_a_longest_length(length: int, refused: bool) -> None:
    request = CreateVideo(prompt="x" * length)
    if refused:
        with pytest.raises(BadInput, match="101 characters, 100 at most"):
            resolve(OFFER, request, longest_prompt=100)
    else:
        assert resolve(OFFER, request, longest_prompt=100).prompt == request.prompt


@pytest.mark.parametrize(("offer", "refused"), [(OFFER, True), (GUIDED, False)])
def test_guidance_is_taken_where_a_sampler_has_some(offer: Any, refused: bool) -> None:
    name = list(offer.samplers)[-1]
    request = CreateVideo(
        prompt="a fox", sampler=name, negative_prompt="snow", guidance_scale=None if refused else 4
    )
    if refused:
        with pytest.raises(BadInput) as error:
            resolve(offer, request, longest_prompt=100)
        assert error.value.where == "negative_prompt"
    else:
        made = resolve(offer, request, longest_prompt=100)
        assert (made.negative_prompt, made.guidance_scale, made.steps) == ("snow", 4, 50)
