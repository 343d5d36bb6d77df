"""A bundle's memory, planned together with that of ComfyUI's own models.

ComfyUI keeps a list of what is loaded. Before it loads a model it unloads others to make room, and
all of them when it is asked to (its button, and ``POST /free``). A bundle stands in that list as
one model that is loaded whole or not at all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastwan.comfyui import host


class FastWanBundle:
    """What ComfyUI takes for the weights of the model; it writes attributes of its own here."""

    def __init__(self, device: Any) -> None:
        self.device = device


def memory_of(size: int, give_back: Callable[[], None]) -> Any:
    """An object that ComfyUI loads and unloads, see `host.load_models`.

    Args:
        size: bytes that the bundle takes of the device whose memory ComfyUI plans.
        give_back: called when they are wanted for something else.
    """
    import torch

    patcher: Any = host.model_patcher()

    class BundlePatcher(patcher):  # type: ignore[misc]
        """Loaded whole or not at all; the pipeline opens its engines when it is called."""

        def __init__(self) -> None:
            self._loaded = False
            off = torch.device("cpu")
            super().__init__(FastWanBundle(off), host.compute_device(), off)

        def model_size(self) -> int:
            return size

        def loaded_size(self) -> int:
            return size if self._loaded else 0

        def current_loaded_device(self) -> Any:
            return self.load_device if self._loaded else self.offload_device

        def partially_load(self, *_: Any, **__: Any) -> int:
            taken = size - self.loaded_size()
            self._loaded = True
            return taken

        def partially_unload(self, *_: Any, **__: Any) -> int:
            """Free nothing, so that ComfyUI unloads the whole."""
            return 0

        def detach(self, unpatch_all: bool = True) -> Any:
            # Without `unpatch_all` the model stays loaded, and another entry of the list has it.
            if unpatch_all and self._loaded:
                self._loaded = False
                give_back()
            return self.model

    return BundlePatcher()
