"""``scheduler/scheduler_config.json``: which sampler a checkpoint is played with.

diffusers loads the class that ``model_index.json`` names and gives it the fields of the file, the
rest by default. What this package can play of that becomes a `SamplerSpec`; the rest is refused,
since another schedule is another video.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from fastwan.config import SamplerSpec
from fastwan.errors import BadInput, listed
from fastwan.export.checkpoint.config_file import ConfigFile, shown
from fastwan.export.checkpoint.model_index import MODEL_INDEX, ModelIndex

SCHEDULER_CONFIG = "scheduler/scheduler_config.json"
_SHIFTS = (0.01, 100.0)
"""Beyond these all steps lie at one end of the schedule."""
CHOOSE = "pass --sampler NAME to play published constants"


@dataclass(frozen=True)
class _Class:
    """How a scheduler class of diffusers maps to a kind of sampler.

    Attributes:
        kind: of `SamplerSpec`; None for one that is not played.
        shift: field of the flow shift.
        decides: fields that decide the schedule or the solver: diffusers' default, and the value
            that is played.
        idle: fields without an effect on flow sigmas.
    """

    kind: str | None
    shift: str
    decides: Mapping[str, tuple[object, object]]
    idle: frozenset[str]


_CLASSES = {
    "UniPCMultistepScheduler": _Class(
        kind="unipc",
        shift="flow_shift",
        decides={
            "prediction_type": ("epsilon", "flow_prediction"),
            "use_flow_sigmas": (False, True),
            "num_train_timesteps": (1000, 1000),
            "solver_order": (2, 2),
            "solver_type": ("bh2", "bh2"),
            "solver_p": (None, None),
            "predict_x0": (True, True),
            "lower_order_final": (True, True),
            "disable_corrector": ([], []),
            "final_sigmas_type": ("zero", "zero"),
            "thresholding": (False, False),
            "use_karras_sigmas": (False, False),
            "use_exponential_sigmas": (False, False),
            "use_beta_sigmas": (False, False),
            "use_dynamic_shifting": (False, False),
            "shift_terminal": (None, None),
        },
        idle=frozenset(
            (
                "beta_start", "beta_end", "beta_schedule", "trained_betas", "sample_max_value",
                "dynamic_thresholding_ratio", "timestep_spacing", "steps_offset", "sigma_min",
                "rescale_betas_zero_snr", "time_shift_type", "sigma_max",
            )
        ),
    ),
    # What FastVideo makes for a WanDMDPipeline, whose timesteps are its own.
    "FlowMatchEulerDiscreteScheduler": _Class(None, "shift", {}, frozenset()),
}  # fmt: skip


@dataclass(frozen=True)
class Scheduler:
    """The scheduler of a checkpoint.

    Attributes:
        class_name: the class that diffusers would load.
        fields: of the file.
    """

    class_name: str
    fields: Mapping[str, object]

    def sampler(self, published: SamplerSpec, notes: list[str]) -> SamplerSpec:
        """What this scheduler makes of the published sampler of the pipeline.

        Args:
            published: one with timesteps of its own stays as it is, whatever the scheduler says.
            notes: told of what differs from the published constants, or is not used.

        Returns:
            `published`, or the same with this scheduler's shift.

        Raises:
            BadInput: this schedule or solver is not one that can be played.
        """
        known = _CLASSES.get(self.class_name)
        if published.timesteps:
            self._check_idle(known, published, notes)
            return published
        if known is None or known.kind != published.kind:
            raise self._bad(f"scheduler {shown(self.class_name)} is not one that can be played")
        for name, (default, played) in known.decides.items():
            value = self.fields.get(name, default)
            if type(value) is not type(played) or value != played:
                left = "" if name in self.fields else ", its default"
                raise self._bad(
                    f"scheduler has {name} {shown(value)}{left}; only {shown(played)} is played"
                )
        foreign = [
            name
            for name in self.fields
            if not name.startswith("_")
            and name not in (known.shift, *known.decides)
            and name not in known.idle
        ]
        if foreign:
            notes.append(
                f"{SCHEDULER_CONFIG} sets {listed(foreign)}, which {self.class_name} does not "
                "have: not used"
            )
        shift = self._shift(known)
        if shift == published.shift:
            return published
        own = replace(published, shift=shift)
        notes.append(
            f"{SCHEDULER_CONFIG} sets {known.shift} {shift:g}: sampler {own.name} plays with it, "
            f"not with the published {published.shift:g}"
        )
        return own

    def _check_idle(self, known: _Class | None, published: SamplerSpec, notes: list[str]) -> None:
        # The published repositories carry their base model's scheduler, or one with this shift.
        base = known is not None and known.kind is not None
        if known is None or not (base or self._shift(known) == published.shift):
            notes.append(
                f"{SCHEDULER_CONFIG} is not used: sampler {published.name} plays timesteps of its "
                f"own with shift {published.shift:g}"
            )

    def _shift(self, known: _Class) -> float:
        value = self.fields.get(known.shift, 1.0)  # diffusers' default
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self._bad(f"{known.shift} is {shown(value)}, expected a number")
        if not _SHIFTS[0] <= value <= _SHIFTS[1]:
            raise self._bad(f"{known.shift} is {shown(value)}, not within {_SHIFTS}")
        return float(value)

    def _bad(self, what: str) -> BadInput:
        return BadInput(what, where=SCHEDULER_CONFIG, fix=CHOOSE)


def read_scheduler(root: Path, index: ModelIndex, notes: list[str]) -> Scheduler | None:
    """The scheduler of a diffusers folder; None where it has none.

    Args:
        notes: told where there is none, or where two classes are named.

    Raises:
        BadInput: the file is damaged.
    """
    path = root / SCHEDULER_CONFIG
    named = index.classes.get("scheduler")
    if not path.is_file():
        notes.append(f"checkpoint has no {SCHEDULER_CONFIG}: the sampler plays as published")
        return None
    file = ConfigFile(path)
    own = file.fields.get("_class_name")
    if named is not None and own is not None and named != own:
        notes.append(f"{MODEL_INDEX} loads the scheduler {shown(own)} as {shown(named)}")
    class_name = named if named is not None else own
    return Scheduler(class_name if isinstance(class_name, str) else shown(own), file.fields)


def overruled(scheduler: Scheduler | None, chosen: SamplerSpec) -> list[str]:
    """What the user's own choice of a sampler overrules in the checkpoint, as notes."""
    if scheduler is None:
        return []
    notes: list[str] = []
    try:
        own = scheduler.sampler(chosen, notes)
    except BadInput as error:
        return [f"sampler {chosen.name} is played as published, though {error.what}"]
    if own != chosen:
        return [
            f"sampler {chosen.name} is played with the published shift {chosen.shift:g}, not with "
            f"{own.shift:g} of {SCHEDULER_CONFIG}"
        ]
    return notes
