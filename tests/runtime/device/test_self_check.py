"""Our kernels beside the builder's at first load: real engines' records, computed on the host."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fastwan.bundle import Bundle, open_bundle
from fastwan.content_cache import ContentCache
from fastwan.errors import FastWanWarning
from fastwan.quality.races import find_races
from fastwan.runtime.device import self_check
from fastwan.runtime.device.first_load import FirstLoad
from fastwan.runtime.device.null import NullDevice
from fastwan.runtime.device.platforms import null_platform
from fastwan.runtime.device.session import Session
from fastwan.runtime.model.samplers import schedule_of
from fastwan.runtime.recording.machine import DeviceError
from testkit.emulated_host import (
    Fault,
    Reference,
    ReferenceKernels,
    emulated_host_platform,
)
from testkit.host_device import HostDevice

KINDS = {
    "Quantize", "NormQuantize", "ResidualNormQuantize", "ResidualNorm", "CrossAttention",
    "GeluQuantize",
}  # fmt: skip
pytestmark = pytest.mark.trt


@pytest.fixture(scope="module")
def whole(lifted_bundle: Path) -> Bundle:
    """The tiny bundle with everything lifted."""
    return open_bundle(lifted_bundle)


@pytest.fixture(scope="module")
def fused(whole: Bundle) -> Bundle:
    """Its transformer alone, which is all that has regions."""
    engines = {n: e for n, e in whole.manifest.engines.items() if e.component == "dit"}
    return Bundle(whole.root, whole.manifest.model_copy(update={"engines": engines}))


def swapped_nibbles(compute: Reference, given: Sequence[Tensor]) -> list[Tensor]:
    *hidden, codes, scales = compute(*given)
    return [*hidden, (codes >> 4) | (codes << 4), scales]


def swapped_scale_rows(compute: Reference, given: Sequence[Tensor]) -> list[Tensor]:
    *others, scales = compute(*given)
    raw = scales.view(torch.uint8).clone()
    raw[:, [8, 9]] = raw[:, [9, 8]]
    return [*others, raw.view(scales.dtype)]


def wrong_bias(compute: Reference, given: Sequence[Tensor]) -> list[Tensor]:
    y, bias, *rest = given
    return [*compute(y, bias.roll(1) + 0.5 * y.std(), *rest)]


def other_rounding(compute: Reference, given: Sequence[Tensor]) -> list[Tensor]:
    """Every 16th code of a row is the next larger one."""
    *hidden, codes, scales = compute(*given)
    moved = codes.clone()
    low = moved[..., ::8]
    moved[..., ::8] = torch.where((low & 7) < 7, low + 1, low)
    return [*hidden, moved, scales]


def codes_of_nothing(compute: Reference, given: Sequence[Tensor]) -> list[Tensor]:
    """Where a scale is 0, as in rows behind the last token, any code stands for 0."""
    codes, scales = compute(*given)
    empty = (scales.view(torch.uint8) == 0).repeat_interleave(8, -1)
    assert empty.any()
    return [torch.where(empty, 0x57, codes), scales]


@pytest.fixture
def session(fused: Bundle) -> Iterator[Callable[..., Session]]:
    """Sessions of the bundle on a host device."""
    made: list[Session] = []

    def make(
        faults: dict[str, Fault] | None = None,
        first_load: FirstLoad | None = None,
        device: HostDevice | None = None,
        fallbacks: set[str] | None = None,
        bundle: Bundle = fused,
    ) -> Session:
        device = device or HostDevice()
        kernels = ReferenceKernels(device, faults)
        platform = emulated_host_platform(device, kernels, first_load)
        schedule = schedule_of(bundle.manifest.sampler_spec())
        made.append(Session(platform, bundle, schedule, fallbacks))
        return made[-1]

    yield make
    for each in made:
        each.close()


def anew() -> FirstLoad:
    return FirstLoad(None, {})


def inputs_of(session: Session) -> list[np.ndarray]:
    """Noises of a video, whose prompt is prepared."""
    recording = session.recording
    random = np.random.default_rng(5)
    embeds = np.zeros(recording.prompt_embeds.shape, np.float32)
    embeds[:, :20] = random.normal(0, 0.2, embeds[:, :20].shape)
    session.prepare(embeds)
    return [random.standard_normal(each.shape, np.float32) for each in session.recording.noises]


def latents_of(session: Session) -> np.ndarray:
    """Clean latents of a video."""
    return session.denoise(inputs_of(session)).copy()


def told(caught: list[warnings.WarningMessage]) -> list[str]:
    return [str(each.message) for each in caught if issubclass(each.category, FastWanWarning)]


def test_kernels_that_agree_are_played(session: Callable[..., Session], whole: Bundle) -> None:
    played = session(first_load=anew(), bundle=whole)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frames = played.video(inputs_of(played)).copy()
    assert played.checked is not None
    assert {each.kind for each in played.checked.regions} == KINDS
    assert all(each.agrees for each in played.checked.regions)
    assert played.checked.block
    assert not played.recording.fallbacks
    other = session(bundle=whole)
    assert np.array_equal(frames, other.video(inputs_of(other)))


@pytest.mark.parametrize(
    ("kind", "fault"),
    [
        ("GeluQuantize", swapped_nibbles),
        ("CrossAttention", swapped_nibbles),
        ("Quantize", swapped_scale_rows),
        ("ResidualNormQuantize", swapped_scale_rows),
        ("GeluQuantize", wrong_bias),
        ("ResidualNormQuantize", wrong_bias),
        ("CrossAttention", wrong_bias),
    ],
)
def test_a_kernel_at_fault_is_not_played(
    session: Callable[..., Session], kind: str, fault: Fault
) -> None:
    played = session({kind: fault}, anew())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        latents = latents_of(played)
    assert played.checked is not None
    assert played.checked.fallbacks == (kind,)
    (said,) = told(caught)
    assert said.startswith(f"{kind} on NULL device differ by more than rounding")
    assert np.array_equal(latents, latents_of(session(fallbacks={kind})))
    assert not np.array_equal(latents, latents_of(session({kind: fault})))


def test_another_rounding_is_no_fault(session: Callable[..., Session]) -> None:
    played = session({"GeluQuantize": other_rounding}, anew())
    played.load()
    assert played.checked is not None
    assert played.checked.fallbacks == ()
    (gelu,) = (each for each in played.checked.regions if each.kind == "GeluQuantize")
    assert gelu.outputs[0].differing > 0.03


def test_codes_without_a_scale_are_no_fault(session: Callable[..., Session]) -> None:
    played = session({"Quantize": codes_of_nothing}, anew())
    played.load()
    assert played.checked is not None
    assert played.checked.fallbacks == ()


def test_several_kinds_at_fault_are_told_in_one_warning(session: Callable[..., Session]) -> None:
    played = session({"GeluQuantize": swapped_nibbles, "Quantize": swapped_nibbles}, anew())
    with pytest.warns(FastWanWarning, match=r"GeluQuantize, Quantize on .* for 4 nodes") as caught:
        played.load()
    assert len(told(list(caught))) == 1


def test_a_second_load_takes_the_outcome(
    session: Callable[..., Session], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults: dict[str, Fault] = {"GeluQuantize": swapped_nibbles}

    def kept(library: str = "a") -> FirstLoad:
        return FirstLoad(ContentCache("runtime", tmp_path), {"library": library})

    runs: list[int] = []
    compare = self_check.compare

    def counted(*arguments: object) -> object:
        runs.append(1)
        return compare(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(self_check, "compare", counted)
    outcomes = []
    for library in ("a", "a", "b"):
        played = session(faults, kept(library))
        with pytest.warns(FastWanWarning, match="GeluQuantize on"):
            played.load()
        outcomes.append(played.checked)
    assert outcomes[0] == outcomes[1] == outcomes[2]
    assert len(runs) == 2
    for file in (tmp_path / "runtime").rglob("outcome.json"):
        file.write_bytes(file.read_bytes().replace(b"GeluQuantize", b"Quantize"))
    for _ in range(2):
        played = session(faults, kept())
        with pytest.warns(FastWanWarning, match="GeluQuantize on"):
            played.load()
    assert len(runs) == 3  # what was damaged is found out and kept anew


def test_an_outcome_of_another_form_is_none(session: Callable[..., Session]) -> None:
    first = anew()
    first.keep(self_check.NAME, self_check.SelfCheck(regions=(), block=(), fallbacks=("Quantize",)))
    played = session(first_load=first)
    with pytest.warns(FastWanWarning, match="Quantize on"):
        played.load()
    assert played.recording.fallbacks == {"Quantize"}


def test_what_cannot_be_compared_is_played_with_a_warning(session: Callable[..., Session]) -> None:
    device = HostDevice(faults={"allocate": DeviceError("no memory", "memory")})
    played = session(first_load=anew(), device=device)
    with pytest.warns(FastWanWarning, match="without having been compared"):
        played.load()
    assert played.checked is None
    assert not played.recording.fallbacks


def test_a_bundle_without_fallbacks_is_played(
    session: Callable[..., Session], fused: Bundle
) -> None:
    older = Bundle(fused.root, fused.manifest.model_copy(update={"fallbacks": {}}))
    played = session(first_load=anew(), bundle=older)
    played.load()
    assert played.checked is None


@pytest.mark.parametrize("fallbacks", [set(), {"GeluQuantize"}, KINDS])
def test_fallbacks_are_part_of_the_same_graph(whole: Bundle, fallbacks: set[str]) -> None:
    device = NullDevice()
    schedule = schedule_of(whole.manifest.sampler_spec())
    played = Session(null_platform(whole, device), whole, schedule, fallbacks)
    played.load()
    played.prepare(np.zeros(played.recording.prompt_embeds.shape, np.float32))
    loaded = len(device.calls)
    noise = np.zeros(played.recording.latents.shape, np.float32)
    played.video([noise] * len(played.recording.noises))
    calls = device.calls[loaded:]
    (launch,) = (call for call in calls if call.kind == "launch")
    assert not any(call.kind == "allocate" for call in (*calls, *launch.graph))
    assert not find_races(device.calls)
    names = [call.name for call in launch.graph if call.kind == "engine"]
    expected = {
        name for name, each in whole.manifest.fallbacks.items() if each.node.op in fallbacks
    }
    assert {name for name in names if name.startswith("fallback")} == expected
