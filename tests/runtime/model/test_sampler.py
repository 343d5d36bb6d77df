"""Sampler constants against the published numbers, diffusers and the reference's formulas."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from fastwan.config import MODELS, SAMPLERS, SamplerSpec
from fastwan.errors import BadInput
from fastwan.runtime.model.loop import combine, denoise, guided
from fastwan.runtime.model.noise import draw, generator_for
from fastwan.runtime.model.samplers import KINDS, schedule_of
from fastwan.runtime.model.schedule import MAX_TERMS, Schedule

SHAPE = (1, 16, 3, 4, 6)


def normal(seed: int, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def run(schedule: Schedule, flows: list[np.ndarray], x: np.ndarray, **options) -> np.ndarray:
    left = iter(flows)
    return denoise(lambda _x, _t: next(left), x, schedule, combine=combine, **options)


def test_unipc_has_the_published_noise_levels() -> None:
    steps = schedule_of(SAMPLERS["unipc"]).steps
    assert [step.timestep for step in steps] == [999, 857, 599]
    # Printed by FastVideo's FlowUniPCMultistepScheduler(shift=3), set_timesteps(3).
    assert [step.sigma for step in steps] == [
        0.9998887777328491,
        0.8570202589035034,
        0.5998798608779907,
    ]


def test_unipc_has_the_published_weights() -> None:
    first, second, last = schedule_of(SAMPLERS["unipc"]).steps
    assert first.initial == pytest.approx(0.8571156, abs=5e-8)
    assert first.prediction == pytest.approx(0.1428844, abs=5e-8)
    # x2 = 0.6999600 x1c + 0.3284683 m1 - 0.0284282 m0 with
    # x1c = 0.8571156 x0 + 0.0714422 m0 + 0.0714422 m1, from fp32 logarithms of 1 - sigma = 1.1e-4:
    # the published digits are good to 3e-7.
    assert second.initial == pytest.approx(0.6999600 * 0.8571156, abs=1e-7)
    assert second.history[0] == pytest.approx(0.6999600 * 0.0714422 - 0.0284282, abs=5e-7)
    assert second.prediction == pytest.approx(0.6999600 * 0.0714422 + 0.3284683, abs=5e-7)
    assert (last.initial, last.history, last.prediction) == (0.0, (0.0, 0.0), 1.0)
    assert schedule_of(SAMPLERS["unipc"]).noises == 0


def test_unipc_equals_the_reference_over_all_steps() -> None:
    # Weights of (x0, v0, v1, v2) that FastVideo's scheduler returns for one-hot inputs in fp64
    # (its own levels and logarithms are fp32, hence the tolerance).
    reference = [
        [0.999999985, -0.142868526, 0.0, 0.0],
        [0.999999954, -0.075648438, -0.324360474, 0.0],
        [0.999999954, -0.075648438, -0.324360474, -0.599879861],
    ]
    basis = np.eye(4, dtype=np.float32).reshape(4, 1, 4, 1, 1, 1)
    states: list[np.ndarray] = []
    run(
        schedule_of(SAMPLERS["unipc"]),
        list(basis[1:]),
        basis[0],
        on_step=lambda _i, _t, x: states.append(x.ravel()),
    )
    np.testing.assert_allclose(states, reference, atol=2e-7)


def diffusers_unipc(shift: float) -> Any:
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    return diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=shift,
        solver_order=2,
        solver_type="bh2",
    )


@pytest.mark.parametrize("twice", [True, False])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 5, 8, 50])
@pytest.mark.parametrize("replace_after", [None, 0])
def test_unipc_equals_diffusers_step_by_step(
    num_steps: int, replace_after: int | None, twice: bool
) -> None:
    spec = SamplerSpec("unipc", "unipc", steps=num_steps, shift=3.0, shift_twice=twice)
    scheduler = diffusers_unipc(spec.shift)
    if twice:
        # FastVideo shifts the end points of the training schedule before the scheduler does.
        top = spec.shift * 0.999 / (1 + (spec.shift - 1) * 0.999)
        scheduler.set_timesteps(sigmas=np.linspace(top, 0.0, num_steps + 1)[:-1])
    else:
        scheduler.set_timesteps(num_steps)
    schedule = schedule_of(spec)
    assert [step.timestep for step in schedule.steps] == scheduler.timesteps.tolist()

    flows, initial, other = [normal(7 + i) for i in range(num_steps)], normal(1), normal(2)
    states: list[np.ndarray] = []

    def on_step(index: int, timestep: int, state: np.ndarray) -> np.ndarray | None:
        states.append(state)
        return other if index == replace_after else None

    run(schedule, flows, initial, on_step=on_step)
    x = torch.from_numpy(initial).double()
    for index, timestep in enumerate(scheduler.timesteps):
        flow = torch.from_numpy(flows[index]).double()
        x = scheduler.step(flow, timestep, x, return_dict=False)[0]
        np.testing.assert_allclose(states[index], x.numpy(), rtol=0, atol=2e-5)
        if index == replace_after:
            x = torch.from_numpy(other).double()


def test_dmd_has_the_published_constants() -> None:
    schedule = schedule_of(SAMPLERS["dmd"])
    assert [step.timestep for step in schedule.steps] == [1000, 757, 522]
    sigmas = [step.sigma for step in schedule.steps]
    assert sigmas == pytest.approx([1.0, 0.7567567, 0.5217391], abs=5e-8)
    assert [step.noise for step in schedule.steps] == [*sigmas[1:], 0.0]
    assert schedule.noises == 2
    assert [schedule.last_use(index) for index in range(3)] == [0, 1, 2]


def test_dmd_equals_the_reference_formula() -> None:
    # x0 = x - sigma v in fp64; x = (1 - s) x0 + s noise, sigma looked up by the nearest timestep
    # in the shift-8 flow-matching table.
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    table = diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=8.0)

    def sigma(timestep: int) -> torch.Tensor:
        return table.sigmas[(table.timesteps - timestep).abs().argmin()].double()

    timesteps = [1000, 757, 522]
    flows, noises = [normal(i) for i in range(3)], [normal(10), normal(11)]
    x = torch.from_numpy(normal(20))
    expected = []
    for index, timestep in enumerate(timesteps):
        clean = x.double() - sigma(timestep) * torch.from_numpy(flows[index]).double()
        if index < 2:
            level = sigma(timesteps[index + 1])
            clean = (1 - level) * clean + level * torch.from_numpy(noises[index]).double()
        x = clean.float()
        expected.append(x.numpy())
    states: list[np.ndarray] = []
    run(
        schedule_of(SAMPLERS["dmd"]),
        flows,
        normal(20),
        noises=noises,
        on_step=lambda _i, _t, x: states.append(x),
    )
    np.testing.assert_allclose(states, expected, rtol=0, atol=2e-7)


@pytest.mark.parametrize("name", ["unipc", "dmd"])
def test_an_exact_model_gives_back_real_latents(name: str, wan_latents: np.ndarray) -> None:
    schedule = schedule_of(SAMPLERS[name])
    shape = wan_latents.shape
    noises = draw(shape, schedule, generator_for(None, 1024))
    sigma = {step.timestep: step.sigma for step in schedule.steps}

    def exact(x: np.ndarray, timestep: int) -> np.ndarray:
        return ((x.astype(np.float64) - wan_latents) / sigma[timestep]).astype(np.float32)

    clean = denoise(exact, noises[0], schedule, noises[1:], combine=combine)
    error = np.linalg.norm(clean - wan_latents) / np.linalg.norm(wan_latents)
    assert error < 1e-6


def test_an_unknown_kind_is_refused_and_lists_those_there_are() -> None:
    spec = SAMPLERS["dmd"]
    assert schedule_of(spec).steps
    with pytest.raises(BadInput, match="'euler': one of unipc, dmd"):
        schedule_of(replace(spec, kind="euler"))


def test_guidance_is_a_second_forward_of_each_step() -> None:
    spec = SAMPLERS["unipc-50"]
    schedule = schedule_of(spec)
    assert (schedule.guidance, schedule.prompts, schedule.forwards) == (5.0, 2, 100)
    alone = schedule_of(replace(spec, guidance=1.0))
    assert (alone.prompts, alone.forwards) == (1, 50)
    assert alone.steps == schedule.steps


def test_a_guided_velocity_is_that_of_diffusers() -> None:
    prompt, negative = normal(1), normal(2)
    velocity = guided([lambda _x, _t: prompt, lambda _x, _t: negative], 5.0, combine=combine)
    expected = negative + 5.0 * (prompt - negative)
    np.testing.assert_allclose(velocity(normal(3), 999), expected, rtol=0, atol=1e-5)
    alone = guided([lambda _x, _t: prompt], 1.0, combine=combine)
    assert alone(normal(3), 999) is prompt


def test_a_long_schedule_moves_its_anchor_and_keeps_few_predictions() -> None:
    schedule = schedule_of(SAMPLERS["unipc-50"])
    widest = [0]

    def count(terms: list[tuple[float, np.ndarray]]) -> np.ndarray:
        widest.append(len(terms))
        return combine(terms)

    flows = iter([normal(i) for i in range(50)])
    denoise(lambda _x, _t: next(flows), normal(99), schedule, combine=count)
    assert max(widest) == MAX_TERMS
    assert sum(bool(step.anchor) for step in schedule.steps) == 11
    assert not any(step.anchor for step in schedule_of(SAMPLERS["unipc"]).steps)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0, "timesteps": ()}, "0 steps"),
        ({"steps": 1001, "timesteps": ()}, "1001 steps"),
        ({"steps": 4}, "3 timesteps, 4 steps"),
        ({"shift": 0.0}, "shift 0"),
        ({"shift": float("nan")}, "shift nan"),
        ({"timesteps": (1000, 757, 0)}, "timestep"),
        ({"guidance": 0.5}, "guidance 0.5"),
        ({"guidance": float("nan")}, "guidance nan"),
    ],
)
def test_numbers_that_no_sampler_has_are_refused(change: dict[str, Any], message: str) -> None:
    replace(SAMPLERS["dmd"], shift=7.0)
    with pytest.raises(BadInput, match=message):
        replace(SAMPLERS["dmd"], **change)


def test_every_model_names_samplers_that_there_are() -> None:
    assert all(model.samplers for model in MODELS.values())
    assert {name for model in MODELS.values() for name in model.samplers} == set(SAMPLERS)
    assert {spec.kind for spec in SAMPLERS.values()} == set(KINDS)


def test_noise_is_bf16_randn_of_the_cpu_generator_in_the_references_layout() -> None:
    b, c, t, h, w = SHAPE
    generator = torch.Generator("cpu").manual_seed(1024)
    first = torch.randn((b, t, c, h, w), generator=generator, dtype=torch.bfloat16)
    second = torch.randn((b, t, c, h, w), generator=generator, dtype=torch.bfloat16)
    drawn = draw(SHAPE, schedule_of(SAMPLERS["dmd"]), generator_for(None, 1024))
    assert len(drawn) == 3
    np.testing.assert_array_equal(drawn[0], first.float().permute(0, 2, 1, 3, 4).numpy())
    np.testing.assert_array_equal(drawn[1], second.float().permute(0, 2, 1, 3, 4).numpy())

    generator = torch.Generator("cpu").manual_seed(5)
    expected = torch.randn(SHAPE, generator=generator, dtype=torch.bfloat16).float().numpy()
    (only,) = draw(
        SHAPE,
        schedule_of(SAMPLERS["unipc"]),
        generator_for(torch.Generator("cpu").manual_seed(5), 1024),
    )
    np.testing.assert_array_equal(only, expected)


def test_seed_out_of_range_is_refused() -> None:
    assert generator_for(None, 2**64 - 1).normal([1]).shape == (1,)
    with pytest.raises(BadInput, match="seed"):
        generator_for(None, 2**64)


def test_denoise_reads_tensors_only_through_its_two_callables() -> None:
    # The loop must run on a recording device, where a tensor is no more than a name.
    calls: list[str] = []

    def velocity(latents: str, timestep: int) -> str:
        calls.append(f"v({latents},{timestep})")
        return f"v{timestep}"

    def record(terms) -> str:
        calls.append("combine " + " ".join(name for _, name in terms))
        return f"x{len(calls)}"

    denoise(velocity, "noise", schedule_of(SAMPLERS["unipc"]), combine=record)
    assert calls == [
        "v(noise,999)",
        "combine noise v999",
        "combine noise noise v999",
        "v(x3,857)",
        "combine noise x2 x3 v857",
        "v(x5,599)",
        "combine x5 v599",
    ]


def test_denoise_wants_as_many_noises_as_the_schedule() -> None:
    flows = [normal(i) for i in range(3)]
    run(schedule_of(SAMPLERS["dmd"]), flows, normal(9), noises=flows[:2])
    with pytest.raises(ValueError, match="2 noises"):
        run(schedule_of(SAMPLERS["dmd"]), flows, normal(9), noises=flows[:1])
