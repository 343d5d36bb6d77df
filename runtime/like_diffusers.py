"""What scripts that were written for a diffusers pipeline expect of one, beside the call itself.

What changes nothing here is taken; what a bundle of compiled engines cannot do is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NoReturn, Self

import ml_dtypes
import numpy as np

from fastwan.bundle import Bundle
from fastwan.errors import BadInput, shown
from fastwan.runtime.batch import UnknownArgument
from fastwan.runtime.call import Calls
from fastwan.runtime.device.choice import DeviceChoice
from fastwan.runtime.model.given import given_torch, is_dtype
from fastwan.runtime.model.samplers import schedule_of
from fastwan.runtime.step_bar import StepBar, check_config

if TYPE_CHECKING:
    import torch

_DEVICE_TYPES = ("cpu", "cuda", "meta", "mps", "xpu")
_COMPILED = "it is compiled into the bundle's engines: fastwan-export build-engine makes others"
_ADAPTER = "merge the adapter into the checkpoint, then fastwan-export build-engine"
_REFUSED = {
    "transformer": _COMPILED,
    "transformer_2": _COMPILED,
    "vae": "the decoder streams, and needs neither tiling nor slicing",
    "text_encoder": "embed(prompt) makes prompt_embeds",
    "tokenizer": "embed(prompt) makes prompt_embeds",
    "encode_prompt": "embed(prompt) makes prompt_embeds",
    "scheduler": "name one of the bundle's samplers with sampler=",
    "load_lora_weights": _ADAPTER,
    "set_adapters": _ADAPTER,
    "fuse_lora": _ADAPTER,
    "load_lora_into_transformer": _ADAPTER,
    "unload_lora_weights": "a bundle has no adapter",
    "save_pretrained": "a bundle is a folder: copy it",
    "push_to_hub": "a bundle is a folder: hf upload",
}
"""Names of a diffusers pipeline that a bundle has nothing for, each with the way out."""


class NotOfABundle(BadInput, AttributeError):
    """An attribute of a diffusers pipeline that this one lacks; `hasattr` says False."""


class LikeDiffusers:
    """The part of a pipeline that diffusers' DiffusionPipeline would inherit.

    Args:
        choice: what runs, and why.
    """

    _callback_tensor_inputs = ("latents", "prompt_embeds", "negative_prompt_embeds")

    def __init__(self, bundle: Bundle, choice: DeviceChoice) -> None:
        self.bundle = bundle
        self.choice = choice
        self._calls = Calls()
        self._bar_config: dict[str, Any] = {}

    @property
    def device(self) -> torch.device | str:
        """What runs, the CPU or a GPU; `choice` says why and how.

        A device of torch where the process has imported that, else its name.
        """
        loaded = given_torch()
        if loaded is None:
            return self._device_type
        device: torch.device = loaded.device(self._device_type)
        return device

    @property
    def _device_type(self) -> str:
        return "cpu" if self.choice.name == "cpu" else "cuda"

    @property
    def dtype(self) -> torch.dtype | np.dtype[Any]:
        """What the models take and return, bfloat16; the linears between are FP4.

        A dtype of torch where the process has imported that, else of numpy.
        """
        loaded = given_torch()
        bfloat16: torch.dtype | np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return bfloat16 if loaded is None else loaded.bfloat16

    @property
    def interrupt(self) -> bool:
        """Whether the call that this thread is in was told to stop."""
        call = self._calls.here()
        return call is not None and call.stopped

    @property
    def _interrupt(self) -> bool:
        return self.interrupt

    @_interrupt.setter
    def _interrupt(self, value: bool) -> None:
        """Stop after the step that runs now and make frames of its latents.

        In a callback that is the call which the callback is of; outside of one, every call that is
        being served.
        """
        self._calls.stop(bool(value))

    @property
    def num_timesteps(self) -> int:
        """Steps of the call that this thread is in; outside of one, of the default sampler."""
        call = self._calls.here()
        if call is not None and call.steps:
            return call.steps
        return len(schedule_of(self.bundle.manifest.sampler_spec()).steps)

    _num_timesteps = num_timesteps

    @property
    def current_timestep(self) -> int | None:
        """Timestep of the last step of the call that this thread is in."""
        call = self._calls.here()
        return None if call is None else call.timestep

    @property
    def guidance_scale(self) -> float:
        """Of the call that this thread is in; outside of one, of the default sampler."""
        call = self._calls.here()
        return self.bundle.manifest.sampler_spec().guidance if call is None else call.guidance

    @property
    def do_classifier_free_guidance(self) -> bool:
        return self.guidance_scale > 1

    @property
    def attention_kwargs(self) -> None:
        return None

    def to(self, *targets: Any, **named: Any) -> Self:
        """Take the device and dtype that the pipeline has already.

        Raises:
            BadInput: another device or dtype, or an argument of another name.
        """
        if unknown := named.keys() - {"device", "dtype", "torch_dtype", "silence_dtype_warnings"}:
            raise UnknownArgument(f"to() has no argument {', '.join(sorted(unknown))}")
        wanted = (named.get("device"), named.get("dtype"), named.get("torch_dtype"))
        for target in (*targets, *wanted):
            if is_dtype(target) or isinstance(target, np.dtype):
                check_dtype(target)
            elif target is not None:
                self._check_device(target)
        return self

    def cuda(self, device: Any = "cuda") -> Self:
        """See `to`."""
        return self.to(f"cuda:{device}" if isinstance(device, int) else device)

    def cpu(self) -> Self:
        """See `to`."""
        return self.to("cpu")

    def _check_device(self, target: Any) -> None:
        name = f"cuda:{target}" if isinstance(target, int) else str(target)
        named = re.fullmatch(r"(\w+)(?::(\d+))?", name)
        if named is None or named[1] not in _DEVICE_TYPES:
            raise BadInput(f"{shown(target)} is no device", where="to")
        if named[1] != self._device_type or int(named[2] or 0) != 0:
            raise BadInput(
                f"the pipeline runs on {self.choice.name} and cannot move to {name}",
                where="to",
                fix=self.choice.note or "name the device where the bundle is opened",
            )

    def enable_model_cpu_offload(self, gpu_id: int | None = None, device: Any = None) -> None:
        """Take memory as planned when the bundle was built: there is nothing to offload."""
        if gpu_id:
            self._check_device(f"cuda:{gpu_id}")
        if device is not None:
            self._check_device(device)

    enable_sequential_cpu_offload = enable_model_cpu_offload

    def _nothing_to_do(self, *_: Any, **__: Any) -> None:
        """Change nothing: memory is planned when a bundle is built, and no frame depends on it."""

    enable_attention_slicing = disable_attention_slicing = _nothing_to_do
    enable_vae_slicing = disable_vae_slicing = _nothing_to_do
    enable_vae_tiling = disable_vae_tiling = _nothing_to_do
    enable_xformers_memory_efficient_attention = _nothing_to_do
    disable_xformers_memory_efficient_attention = _nothing_to_do
    maybe_free_model_hooks = remove_all_hooks = reset_device_map = _nothing_to_do

    def set_progress_bar_config(self, **config: Any) -> None:
        """Set tqdm's arguments for the bars of the calls from now on.

        Without ``disable`` a bar is shown where stderr is a terminal.

        Raises:
            BadInput: tqdm has no such argument.
        """
        check_config(config)
        self._bar_config = config

    def progress_bar(self, iterable: Iterable[Any] | None = None, total: int | None = None) -> Any:
        """A tqdm bar that is set up like those of the calls."""
        from tqdm import tqdm

        return tqdm(iterable, total=total, **{"disable": None, **self._bar_config})

    def _step_bar(self) -> StepBar:
        return StepBar(self._bar_config)

    def __getattr__(self, name: str) -> NoReturn:
        if name in _REFUSED:
            raise NotOfABundle(
                f"a bundle has no {name}", where=type(self).__name__, fix=_REFUSED[name]
            )
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _REFUSED:
            raise NotOfABundle(
                f"{name} of a bundle cannot be set", where=type(self).__name__, fix=_REFUSED[name]
            )
        super().__setattr__(name, value)


def check_dtype(dtype: Any) -> None:
    """Refuse another dtype than that of the models' inputs.

    Raises:
        BadInput: neither None, "auto" nor bfloat16.
    """
    if dtype is not None and str(dtype).removeprefix("torch.") not in ("auto", "bfloat16"):
        raise BadInput(
            f"the pipeline cannot be made {shown(dtype)}: its precision was chosen when the bundle "
            "was built",
            where="dtype",
            fix="leave it out, or pass torch.bfloat16",
        )
