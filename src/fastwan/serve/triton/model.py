"""The model that Triton's Python backend runs; ``model.py`` of a repository imports it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastwan.errors import BadInput, FastWanError, first_line
from fastwan.runtime.model.executor import Array
from fastwan.serve.bundle_player import BundlePlayer
from fastwan.serve.offer import resolve
from fastwan.serve.player import Cancelled, Player, Watch
from fastwan.serve.triton.tensors import FRAMES, INPUTS, SEED
from fastwan.serve.wire import CreateVideo

_LONGEST_PROMPT = 4096


class FastWanModel:
    """A bundle behind the interface of ``TritonPythonModel``.

    Args:
        open_player: makes the player of a folder and a device.
    """

    def __init__(self, open_player: Callable[[Path, str], Player] = BundlePlayer.open) -> None:
        self._open = open_player
        self._player: Player | None = None

    def initialize(self, args: Mapping[str, str]) -> None:
        """Open the bundle, and make a first video.

        Args:
            args: of Triton: ``model_config`` as JSON, ``model_repository``, ``model_version``,
                ``model_instance_kind`` and ``model_instance_device_id``.

        Raises:
            FastWanError: it cannot be opened here.
        """
        parameters = json.loads(args["model_config"])["parameters"]
        told = {name: str(each["string_value"]) for name, each in parameters.items()}
        if args["model_instance_kind"] == "GPU":
            # The runtime takes the first visible GPU; each instance is a process of its own.
            os.environ["CUDA_VISIBLE_DEVICES"] = args["model_instance_device_id"]
        folder = Path(args["model_repository"]) / args["model_version"] / told["bundle"]
        self._player = self._open(folder, told["device"])
        self._player.warm_up()

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Make the video of each request; a response for each, in their order."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        import triton_python_backend_utils as pb_utils

        error = pb_utils.TritonError
        try:
            frames, seed = self._make(_request(pb_utils, request), request.is_cancelled)
        except Cancelled:
            fault = error("the request was cancelled", error.CANCELLED)
        except (BadInput, ValueError) as bad:  # of pydantic, too
            fault = error(_told(bad), error.INVALID_ARG)
        except FastWanError as failed:
            fault = error(_told(failed), error.INTERNAL)
        else:
            outputs = [
                pb_utils.Tensor(FRAMES, frames),
                pb_utils.Tensor(SEED, np.array([seed], np.uint64)),
            ]
            return pb_utils.InferenceResponse(output_tensors=outputs)
        return pb_utils.InferenceResponse(output_tensors=[], error=fault)

    def _make(self, create: CreateVideo, cancelled: Callable[[], bool]) -> tuple[Array, int]:
        """Frames of a video, uint8 [T, H, W, 3], and its seed."""
        assert self._player is not None
        asked = resolve(self._player.offer, create, longest_prompt=_LONGEST_PROMPT)
        frames = np.empty((asked.num_frames, asked.height, asked.width, 3), np.uint8)
        made = 0

        def take(frame: Array) -> None:
            nonlocal made
            frames[made] = frame
            made += 1

        watch = Watch(on_step=lambda _: None, on_frame=take, cancelled=cancelled)
        self._player.play(asked, watch)
        return frames, asked.seed

    def finalize(self) -> None:
        """Give the device back."""
        if self._player is not None:
            self._player.close()


def _request(pb_utils: Any, request: Any) -> CreateVideo:
    """The video that a request's tensors ask for.

    Raises:
        BadInput: a tensor is not one element.
        ValueError: not what `CreateVideo` has.
    """
    given = {}
    for each in INPUTS:
        tensor = pb_utils.get_input_tensor_by_name(request, each.name)
        if tensor is None:
            continue
        values = tensor.as_numpy().reshape(-1)
        if len(values) != 1:
            raise BadInput(f"{len(values)} elements, not one", where=each.name)
        value = values[0]
        given[each.name] = value.decode() if isinstance(value, bytes) else value.item()
    return CreateVideo.model_validate(given)


def _told(error: Exception) -> str:
    return str(error) if isinstance(error, FastWanError) else first_line(error)
