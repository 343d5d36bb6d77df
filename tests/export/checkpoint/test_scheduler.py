"""``scheduler_config.json``: what diffusers makes of it is played, refused or told of."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastwan.config import SAMPLERS, SamplerSpec
from fastwan.errors import BadInput
from fastwan.export.checkpoint.model_index import ModelIndex
from fastwan.export.checkpoint.reader import open_checkpoint
from fastwan.export.checkpoint.scheduler import Scheduler, overruled, read_scheduler
from fastwan.export.checkpoint.synthetic_files import scheduler_config
from fastwan.runtime.model.samplers import schedule_of

UNIPC = "UniPCMultistepScheduler"
diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")

# A value that is not the published one, for every argument of diffusers' class.
OTHER: dict[str, Any] = {
    "num_train_timesteps": 500, "beta_start": 0.001, "beta_end": 0.03,
    "beta_schedule": "scaled_linear", "trained_betas": [0.01] * 1000, "solver_order": 1,
    "prediction_type": "v_prediction", "thresholding": True, "dynamic_thresholding_ratio": 0.9,
    "sample_max_value": 2.0, "predict_x0": False, "solver_type": "bh1",
    "lower_order_final": False, "disable_corrector": [0], "solver_p": "DEISMultistepScheduler",
    "use_karras_sigmas": True, "use_exponential_sigmas": True, "use_beta_sigmas": True,
    "use_flow_sigmas": False, "flow_shift": 5.0, "timestep_spacing": "trailing",
    "steps_offset": 1, "final_sigmas_type": "sigma_min", "rescale_betas_zero_snr": True,
    "use_dynamic_shifting": True, "time_shift_type": "linear", "sigma_min": 0.1,
    "sigma_max": 0.9, "shift_terminal": 0.1,
}  # fmt: skip


def plain(**fields: Any) -> Scheduler:
    """The published scheduler with some fields changed."""
    return Scheduler(UNIPC, {**scheduler_config(), **fields})


def played(folder: Path, fields: dict[str, Any]) -> list[np.ndarray] | None:
    """States of three steps by diffusers' own scheduler; None where it refuses the fields."""
    folder.mkdir()
    (folder / "scheduler_config.json").write_text(json.dumps(fields))
    flows = torch.randn(3, 1, 4, 4, 4, generator=torch.Generator().manual_seed(0)).double()
    x = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(1)).double()
    try:
        scheduler = diffusers.UniPCMultistepScheduler.from_pretrained(folder)
        scheduler.set_timesteps(3)
        states = [np.asarray(scheduler.timesteps, np.float64)]
        for flow, timestep in zip(flows, scheduler.timesteps, strict=True):
            x = scheduler.step(flow, timestep, x, return_dict=False)[0]
            states.append(x.numpy())
    except (ValueError, ImportError, TypeError, AttributeError, IndexError):
        return None
    return states


def ours(fields: dict[str, Any]) -> tuple[str, str]:
    """What this package says to the fields: a verdict, and its words."""
    notes: list[str] = []
    try:
        spec = Scheduler(UNIPC, fields).sampler(SAMPLERS["unipc"], notes)
    except BadInput as error:
        return "refused", str(error)
    assert (spec == SAMPLERS["unipc"]) == (not notes)
    return ("told", notes[0]) if notes else ("plays as published", "")


def same(one: list[np.ndarray] | None, other: list[np.ndarray] | None) -> bool:
    return (
        one is not None
        and other is not None
        and all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
    )


def test_every_argument_of_diffusers_class_is_tried() -> None:
    names = set(inspect.signature(diffusers.UniPCMultistepScheduler.__init__).parameters)
    assert names - {"self"} == set(OTHER)


@pytest.mark.parametrize("name", OTHER)
@pytest.mark.parametrize("change", ["other", "absent"])
def test_no_field_that_changes_the_video_is_passed_over(
    tmp_path: Path, name: str, change: str
) -> None:
    fields = {**scheduler_config(), **({name: OTHER[name]} if change == "other" else {})}
    if change == "absent":
        fields.pop(name, None)
    changes_nothing = same(
        played(tmp_path / "published", scheduler_config()), played(tmp_path / "changed", fields)
    )
    verdict, words = ours(fields)
    if verdict == "plays as published":
        assert changes_nothing
    else:
        assert name in words


def test_the_published_scheduler_gives_the_published_constants(tiny: Path) -> None:
    notes: list[str] = []
    scheduler = read_scheduler(tiny, ModelIndex(classes={"scheduler": UNIPC}), notes)
    assert scheduler is not None
    assert scheduler.sampler(SAMPLERS["unipc"], notes) is SAMPLERS["unipc"]
    assert scheduler.sampler(SAMPLERS["dmd"], notes) is SAMPLERS["dmd"]
    assert notes == []


@pytest.mark.parametrize("shift", [0.5, 1, 2.5, 5.0, 8, 12])
def test_the_shift_is_honoured_as_diffusers_honours_it(tmp_path: Path, shift: float) -> None:
    diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift
    ).save_pretrained(tmp_path / "scheduler")
    notes: list[str] = []
    scheduler = read_scheduler(tmp_path, ModelIndex(), notes)
    assert scheduler is not None
    published = SamplerSpec("unipc", "unipc", steps=3, shift=3.0)
    spec = scheduler.sampler(published, notes)
    assert spec == replace(published, shift=float(shift))
    assert len(notes) == 1
    assert f"flow_shift {shift:g}" in notes[0]
    assert "3" in notes[0]
    theirs = diffusers.UniPCMultistepScheduler.from_pretrained(tmp_path / "scheduler")
    theirs.set_timesteps(3)
    steps = schedule_of(spec).steps
    assert [step.sigma for step in steps] == theirs.sigmas[:-1].tolist()
    assert [step.timestep for step in steps] == theirs.timesteps.tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"flow_shift": "3"}, "flow_shift is '3', expected a number"),
        ({"flow_shift": True}, "flow_shift is true"),
        ({"flow_shift": 0}, "flow_shift is 0, not within"),
        ({"flow_shift": -3.0}, "not within"),
        ({"flow_shift": 1e-30}, "not within"),
        ({"flow_shift": 1e30}, "not within"),
        ({"solver_order": 3}, "solver_order 3; only 2 is played"),
        ({"solver_order": 2.0}, r"solver_order 2\.0"),
        ({"predict_x0": 1}, "predict_x0 1; only true"),
    ],
)
def test_values_that_no_schedule_has_are_refused(change: dict[str, Any], message: str) -> None:
    assert plain(flow_shift=4).sampler(SAMPLERS["unipc"], []).shift == 4
    with pytest.raises(BadInput, match=message):
        plain(**change).sampler(SAMPLERS["unipc"], [])


@pytest.mark.parametrize(
    "name", ["FlowMatchEulerDiscreteScheduler", "DPMSolverMultistepScheduler", "Nothing", "x" * 999]
)
def test_other_classes_are_refused_by_name(name: str) -> None:
    with pytest.raises(BadInput, match=f"scheduler '{name[:40]}.* --sampler") as caught:
        Scheduler(name, scheduler_config()).sampler(SAMPLERS["unipc"], [])
    assert len(str(caught.value)) < 300


def test_the_class_of_the_model_index_decides_as_in_diffusers(
    copy: Path, edit_json: Callable[..., None]
) -> None:
    path = copy / "scheduler/scheduler_config.json"
    path.write_text(json.dumps({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 8.0}))
    parts = {"vae": None, "transformer": None, "text_encoder": None, "tokenizer": None}
    theirs = diffusers.WanPipeline.from_pretrained(copy, **parts).scheduler
    checkpoint = open_checkpoint(copy, components=("decoder",))
    assert checkpoint.scheduler is not None
    assert checkpoint.scheduler.class_name == type(theirs).__name__ == UNIPC
    assert any("loads the scheduler" in note for note in checkpoint.notes)
    with pytest.raises(BadInput, match=f"prediction_type '{theirs.config.prediction_type}'"):
        checkpoint.scheduler.sampler(SAMPLERS["unipc"], [])
    edit_json(copy / "model_index.json", scheduler=["diffusers", "FlowMatchEulerDiscreteScheduler"])
    checkpoint = open_checkpoint(copy, components=("decoder",))
    assert checkpoint.scheduler is not None
    with pytest.raises(BadInput, match="FlowMatchEulerDiscreteScheduler"):
        checkpoint.scheduler.sampler(SAMPLERS["unipc"], [])


@pytest.mark.parametrize(
    ("scheduler", "told"),
    [
        (plain(), False),
        (plain(flow_shift=8.0), False),
        (Scheduler("FlowMatchEulerDiscreteScheduler", {"shift": 8}), False),
        (Scheduler("FlowMatchEulerDiscreteScheduler", {"shift": 5.0}), True),
        (Scheduler("DPMSolverMultistepScheduler", {}), True),
    ],
)
def test_a_sampler_with_timesteps_of_its_own_says_when_it_ignores_a_scheduler(
    scheduler: Scheduler, told: bool
) -> None:
    notes: list[str] = []
    assert scheduler.sampler(SAMPLERS["dmd"], notes) is SAMPLERS["dmd"]
    assert bool(notes) == told


def test_what_a_choice_overrules_is_told() -> None:
    unipc = SAMPLERS["unipc"]
    assert overruled(None, unipc) == []
    assert overruled(plain(), unipc) == []
    assert overruled(plain(), SAMPLERS["dmd"]) == []
    (shift,) = overruled(plain(flow_shift=5.0), unipc)
    assert "published shift 3, not with 5" in shift
    (solver,) = overruled(plain(solver_order=3), unipc)
    assert "solver_order 3" in solver


def test_fields_that_the_class_does_not_have_are_told() -> None:
    notes: list[str] = []
    assert plain(stochastic=True).sampler(SAMPLERS["unipc"], notes) is SAMPLERS["unipc"]
    assert len(notes) == 1
    assert "stochastic" in notes[0]


def test_a_checkpoint_without_a_scheduler_says_so(copy: Path) -> None:
    assert not any("scheduler" in note for note in open_checkpoint(copy, components=()).notes)
    (copy / "scheduler/scheduler_config.json").unlink()
    checkpoint = open_checkpoint(copy, components=())
    assert checkpoint.scheduler is None
    assert any("no scheduler/scheduler_config.json" in note for note in checkpoint.notes)
