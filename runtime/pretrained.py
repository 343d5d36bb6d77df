"""Opening a bundle: the arguments of `from_pretrained`, and the components on a device."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastwan.bundle import Bundle
from fastwan.errors import BadInput, EnvironmentLacks, shown
from fastwan.hub.bundle import fetch_bundle
from fastwan.hub.ids import is_repo_id
from fastwan.install import require
from fastwan.runtime.batch import UnknownArgument
from fastwan.runtime.components import Components
from fastwan.runtime.cpu.components import CpuComponents
from fastwan.runtime.device.choice import (
    DEVICES,
    DeviceChoice,
    or_the_cpu,
    require_emulable,
    resolve_device,
)
from fastwan.runtime.like_diffusers import check_dtype

_NO_EFFECT = ("low_cpu_mem_usage", "use_safetensors")
_OF_THE_HUB = ("revision", "local_files_only")


def bundle_folder(name: Path | str, options: Mapping[str, Any]) -> Path:
    """Folder of a bundle; one that lies on the Hugging Face hub is fetched.

    Args:
        name: a folder, or ``owner/name`` or ``owner/name@revision`` as text.
        options: of `from_pretrained`; for ``revision`` and ``local_files_only`` see
            `fastwan.hub.bundle.fetch_bundle`.

    Raises:
        BadInput: there is none of that name.
        EnvironmentLacks: the hub cannot be reached and its cache does not hold the bundle.
    """
    folder = Path(name)
    revision = options.get("revision")
    if folder.is_dir():
        if revision is not None:
            raise BadInput(
                "a folder has no revision", where=str(name), fix="leave it out, or give a hub id"
            )
        return folder
    if isinstance(name, str) and is_repo_id(name) and not folder.exists():
        only_local = bool(options.get("local_files_only"))
        return fetch_bundle(name, revision, local_files_only=only_local)
    raise BadInput(
        "no folder of a bundle", where=str(name), fix="fastwan-export build-engine makes one"
    )


def device_of(device: str, options: Mapping[str, Any]) -> str:
    """The device that `from_pretrained` was asked for, and every other option checked.

    Args:
        options: arguments of diffusers' `from_pretrained`.

    Raises:
        BadInput: one that a bundle cannot serve.
    """
    left = dict(options)
    for name in ("torch_dtype", "dtype"):
        check_dtype(left.pop(name, None))
    for name in (*_NO_EFFECT, *_OF_THE_HUB):
        left.pop(name, None)
    if (variant := left.pop("variant", None)) is not None:
        raise BadInput(f"a bundle has no variant {shown(variant)}", where="variant")
    where = left.pop("device_map", None)
    if left:
        raise UnknownArgument(
            f"a bundle is opened without {', '.join(sorted(left))}",
            where="from_pretrained",
            fix="its parts are compiled: fastwan-export build-engine makes other ones",
        )
    if where is None:
        return device
    if where not in DEVICES:
        raise BadInput(
            f"device_map {shown(where)} divides a model, a bundle runs on one device",
            where="device_map",
            fix="one of " + ", ".join(DEVICES),
        )
    return str(where)


def open_components(bundle: Bundle, device: str, threads: int) -> tuple[DeviceChoice, Components]:
    """Components of a bundle on a device, and why it is that one.

    Args:
        device: "cpu", "cuda", "emulated", or "auto" for the GPU where one is visible, else the
            CPU.
        threads: see `fastwan.runtime.cpu.executor.OnnxRuntimeExecutor`.

    Raises:
        BadInput: a device of another name.
        EnvironmentLacks: the device cannot be used.
    """
    choice = resolve_device(device)
    if choice.name == "emulated":
        require("emulated")
        from fastwan.runtime.device.components import DeviceComponents
        from fastwan.runtime.emulated.platform import emulated_platform

        require_emulable(bundle)
        return choice, DeviceComponents(bundle, emulated_platform(bundle))
    if choice.name == "cuda":
        from fastwan.runtime.device.components import DeviceComponents
        from fastwan.runtime.device.platforms import cuda_platform

        try:
            require("gpu")
            return choice, DeviceComponents(bundle, cuda_platform(bundle))
        except EnvironmentLacks as error:
            if device == "cuda":
                raise
            fix = f"{error.fix}{or_the_cpu(device)}".removeprefix(", or ")
            raise EnvironmentLacks(error.what, where=error.where, fix=fix) from error
    require("cpu")
    return choice, CpuComponents(bundle, threads=threads)
