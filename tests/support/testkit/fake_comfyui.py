"""ComfyUI as its custom nodes see it: the modules that nodes ask, and a small executor of graphs.

Written against the protocol; of the real program there is nothing here. Tests with it are
`tests/comfyui`, those with the real one too.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image

Graph = dict[str, dict[str, Any]]
"""A prompt in the form of the API: node id -> class_type and inputs; a link is [id, output]."""


class Interrupted(BaseException):
    """The user pressed the button."""


class Invalid(Exception):
    """A node refuses its inputs before anything runs."""


class ModelPatcher:
    """The parts of ComfyUI's class that are called where a model is loaded."""

    def __init__(self, model: Any, load_device: Any, offload_device: Any, size: int = 0) -> None:
        self.model = model
        self.load_device = load_device
        self.offload_device = offload_device


@dataclass
class FakeComfyUI:
    """What the modules keep, and what was asked of them.

    Attributes:
        models: folder of the model folders.
        video: whether there is the type VIDEO.
        previews: whether the user wants pictures between steps.
        stop_after: calls of the check for the button until it is pressed; -1 for never.
        bars: what each progress bar was set to, (done, total, picture).
        texts: (node, line) that were shown.
        loaded: models in memory.
    """

    models: Path
    video: bool = True
    previews: bool = True
    stop_after: int = -1
    bars: list[list[tuple[int, int, Image.Image | None]]] = field(default_factory=list)
    texts: list[tuple[str | None, str]] = field(default_factory=list)
    loaded: list[Any] = field(default_factory=list)
    folders: dict[str, list[str]] = field(default_factory=dict)

    def add_model_folder_path(self, kind: str, folder: str) -> None:
        known = self.folders.setdefault(kind, [])
        if folder not in known:
            known.append(folder)

    def throw_if_interrupted(self) -> None:
        if self.stop_after == 0:
            self.stop_after = -1
            raise Interrupted
        self.stop_after -= self.stop_after > 0

    def load_models(self, patchers: list[Any]) -> None:
        for patcher in patchers:
            if patcher in self.loaded:
                patcher.detach(unpatch_all=False)
            else:
                self.loaded.append(patcher)
            patcher.partially_load(patcher.load_device, 1e32, force_patch_weights=False)
            assert patcher.loaded_size() == patcher.model_size()

    def unload_all(self) -> None:
        """What the button and ``POST /free`` do."""
        for patcher in self.loaded:
            patcher.detach(True)
            assert patcher.loaded_size() == 0
        self.loaded.clear()

    def modules(self) -> dict[str, ModuleType]:
        """The modules by name."""
        cpu = torch.device("cpu")
        made = {
            "folder_paths": {
                "models_dir": str(self.models),
                "add_model_folder_path": self.add_model_folder_path,
                "get_folder_paths": lambda kind: list(self.folders[kind]),
            },
            "comfy": {},
            "comfy.model_management": {
                "throw_exception_if_processing_interrupted": self.throw_if_interrupted,
                "get_torch_device": lambda: cpu,
                "intermediate_device": lambda: cpu,
                "load_models_gpu": self.load_models,
                "soft_empty_cache": lambda: None,
            },
            "comfy.model_patcher": {"ModelPatcher": ModelPatcher},
            "comfy.utils": {"ProgressBar": self._bar},
            "comfy.latent_formats": {"Wan21": SimpleNamespace},
            "latent_preview": {"get_previewer": self._previewer},
            "server": {
                "PromptServer": SimpleNamespace(
                    instance=SimpleNamespace(client_id="me", send_progress_text=self._text)
                )
            },
        }
        if self.video:
            made["comfy_api"] = {}
            made["comfy_api.latest"] = {
                "Types": SimpleNamespace(VideoComponents=SimpleNamespace),
                "InputImpl": SimpleNamespace(VideoFromComponents=lambda components: components),
            }
        modules = {name: ModuleType(name) for name in made}
        for name, module in modules.items():
            vars(module).update(made[name])
        return modules

    def _bar(self, total: int) -> Any:
        self.bars.append(shown := [])

        def update(done: int, total: int, preview: Any = None) -> None:
            if preview is not None:
                kind, preview, pixels = preview
                assert (kind, pixels) == ("JPEG", 512)
                assert isinstance(preview, Image.Image)
            shown.append((done, total, preview))

        return SimpleNamespace(update_absolute=update)

    def _previewer(self, device: torch.device, latent_format: Any) -> Any:
        def picture(latents: torch.Tensor) -> Image.Image:
            assert latents.ndim == 5
            return Image.fromarray(np.zeros((4, 4, 3), np.uint8))

        return SimpleNamespace(decode_latent_to_preview=picture) if self.previews else None

    def _text(self, text: str, node: str | None, client: str | None) -> None:
        assert client == "me"
        self.texts.append((node, text))

    @contextmanager
    def running(self) -> Iterator[FakeComfyUI]:
        """Its modules, in the place of real ones."""
        modules = self.modules()
        before = {name: sys.modules.get(name) for name in modules}
        sys.modules.update(modules)
        try:
            yield self
        finally:
            for name, module in before.items():
                if module is None:
                    del sys.modules[name]
                else:
                    sys.modules[name] = module


@dataclass
class Executor:
    """Runs graphs as ComfyUI does: checked first, in order, what is unchanged not again.

    Attributes:
        nodes: classes by name.
        ran: ids of the nodes that ran, in order.
    """

    nodes: dict[str, type[Any]]
    ran: list[str] = field(default_factory=list)
    _kept: dict[str, tuple[Any, tuple[Any, ...]]] = field(default_factory=dict)

    def run(self, graph: Graph) -> dict[str, tuple[Any, ...]]:
        """Results of all nodes.

        Raises:
            Invalid: an input is missing, or a node refuses it.
        """
        for node_id, node in graph.items():
            self._check(node_id, node)
        results: dict[str, tuple[Any, ...]] = {}
        for node_id in graph:
            self._result(graph, node_id, results)
        self._kept = {name: kept for name, kept in self._kept.items() if name in graph}
        return results

    def _check(self, node_id: str, node: dict[str, Any]) -> None:
        kind = self.nodes[node["class_type"]]
        inputs = kind.INPUT_TYPES()
        known = {**inputs.get("required", {}), **inputs.get("optional", {})}
        if missing := inputs["required"].keys() - node["inputs"].keys():
            raise Invalid(f"{node_id} lacks {sorted(missing)}")
        validate = getattr(kind, "VALIDATE_INPUTS", None)
        asked = () if validate is None else tuple(inspect.signature(validate).parameters)
        constants = {k: v for k, v in node["inputs"].items() if not isinstance(v, list)}
        for name, value in constants.items():
            choices = known[name][0]
            if isinstance(choices, list) and name not in asked and value not in choices:
                raise Invalid(f"{value} is not in {choices}")
        if validate is not None:
            answer = validate(**{name: constants[name] for name in asked})
            if answer is not True:
                raise Invalid(answer)

    def _signature(self, graph: Graph, node_id: str) -> Any:
        """What a result depends on: the node's own inputs, and those before it."""
        node = graph[node_id]
        kind = self.nodes[node["class_type"]]
        changed = getattr(kind, "IS_CHANGED", None)
        constants = {k: v for k, v in node["inputs"].items() if not isinstance(v, list)}
        parts: list[Any] = [node["class_type"], None if changed is None else changed(**constants)]
        for name, value in sorted(node["inputs"].items()):
            link = isinstance(value, list)
            parts.append((name, (self._signature(graph, value[0]), value[1]) if link else value))
        return tuple(parts)

    def _result(
        self, graph: Graph, node_id: str, results: dict[str, tuple[Any, ...]]
    ) -> tuple[Any, ...]:
        if node_id in results:
            return results[node_id]
        node = graph[node_id]
        given = {
            name: self._result(graph, value[0], results)[value[1]]
            if isinstance(value, list)
            else value
            for name, value in node["inputs"].items()
        }
        signature = self._signature(graph, node_id)
        if node_id not in self._kept or self._kept[node_id][0] != signature:
            kind = self.nodes[node["class_type"]]
            for name, what in kind.INPUT_TYPES().get("hidden", {}).items():
                assert what == "UNIQUE_ID"
                given[name] = node_id
            self.ran.append(node_id)
            with torch.inference_mode():
                made = getattr(kind(), kind.FUNCTION)(**given)
            assert isinstance(made, tuple)
            assert len(made) == len(kind.RETURN_TYPES)
            self._kept[node_id] = (signature, made)
        results[node_id] = self._kept[node_id][1]
        return results[node_id]
