"""The pipeline takes a script that was written for diffusers' WanPipeline, or says why not."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastwan import FastWanPipeline
from fastwan.errors import BadInput, EnvironmentLacks, FastWanError
from fastwan.runtime.batch import UnknownArgument
from testkit import stand_in_hub
from testkit.stand_in_hub import COMMITS, REPO, StandInHub, files_of

OURS = ["self", "seed", "sampler", "progress", "on_frames", "kwargs"]


@pytest.fixture
def pipe(bundle: Any) -> FastWanPipeline:
    return FastWanPipeline.from_pretrained(bundle.root, device="cpu")


def cpu_generator(seed: int) -> torch.Generator:
    return torch.Generator("cpu").manual_seed(seed)


def wan_arguments() -> list[str]:
    """The arguments of WanPipeline, in order, from its source: importing it takes seconds."""
    found = importlib.util.find_spec("diffusers")
    if found is None or found.origin is None:
        pytest.skip("diffusers is not installed")
    source = Path(found.origin).parent / "pipelines" / "wan" / "pipeline_wan.py"
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef) and node.name == "__call__":
            return [argument.arg for argument in node.args.args]
    raise AssertionError(source)


def test_the_arguments_are_those_of_wan_pipeline_in_order() -> None:
    ours = inspect.signature(FastWanPipeline.__call__).parameters
    assert [name for name in ours if name not in OURS] == wan_arguments()[1:]
    assert all(each.default is not each.empty for name, each in ours.items() if name not in OURS)


NEUTRAL: list[dict[str, Any]] = [
    {"num_inference_steps": 3},
    {"num_inference_steps": np.int32(3)},
    {"guidance_scale": 1},
    {"guidance_scale": 1.0},
    {"guidance_scale": 0.0},
    {"guidance_scale": None, "guidance_scale_2": None},
    {"negative_prompt": None, "negative_prompt_embeds": None},
    {"negative_prompt": ""},
    {"negative_prompt": [""]},
    {"num_videos_per_prompt": None},
    {"num_videos_per_prompt": np.int64(1)},
    {"prompt": ["red fox"]},
    {"prompt": ("red fox",)},
    {"generator": cpu_generator(1024)},
    {"generator": [cpu_generator(1024)]},
    {"generator": None, "seed": 1024},
    {"max_sequence_length": 6},
    {"attention_kwargs": None},
    {"attention_kwargs": {}},
    {"height": np.int64(16), "width": 32, "num_frames": 9},
    {"callback_on_step_end": None, "callback_on_step_end_tensor_inputs": ["latents"]},
    {"callback_on_step_end_tensor_inputs": None},
    {"return_dict": True},
]


@pytest.mark.parametrize("arguments", NEUTRAL, ids=[str(n) for n in range(len(NEUTRAL))])
def test_what_changes_nothing_is_taken(pipe: FastWanPipeline, arguments: dict[str, Any]) -> None:
    expected = pipe("red fox").frames
    np.testing.assert_array_equal(pipe(**{"prompt": "red fox", **arguments}).frames, expected)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"num_inference_steps": 50}, "50 steps were asked for, sampler unipc makes 3"),
    ({"num_inference_steps": 3.0}, r"num_inference_steps is 3\.0 \(float\), not an integer"),
    ({"guidance_scale": 6.0}, "guidance_scale is 6.0"),
    ({"guidance_scale": float("nan")}, "guidance_scale is nan"),
    ({"guidance_scale": "much"}, "guidance_scale is 'much'"),
    ({"guidance_scale_2": 1.0}, "second transformer"),
    ({"negative_prompt": "blurry"}, "negative_prompt would have no effect"),
    ({"negative_prompt": ["", "blurry"]}, "negative_prompt are 2 for 1 prompts"),
    ({"negative_prompt": ["blurry"]}, "negative_prompt would have no effect"),
    ({"negative_prompt_embeds": torch.zeros(1, 6, 8)}, "negative_prompt_embeds would have no"),
    ({"num_videos_per_prompt": 0}, "0 videos were asked for"),
    ({"num_videos_per_prompt": True}, "num_videos_per_prompt is True"),
    ({"prompt": []}, "no prompt"),
    ({"prompt": ["a", 7]}, r"prompt is 7 \(int\), not one string"),
    ({"prompt": None}, "either prompt or prompt_embeds"),
    ({"generator": np.random.default_rng(7)}, "not a torch.Generator"),
    ({"generator": [cpu_generator(1), cpu_generator(2)]}, "2 generators were given for 1 videos"),
    ({"generator": cpu_generator(1), "seed": 7}, "either a generator or a seed"),
    ({"max_sequence_length": 512}, "max_sequence_length 512 was asked for, the bundle reads 6"),
    ({"attention_kwargs": {"scale": 0.5}}, "attention_kwargs reach no attention"),
    ({"height": 16.0}, r"height is 16\.0 \(float\), not an integer"),
    ({"height": np.array([16, 32])}, r"height is array\(\[16, 32\]\)"),
    ({"latents": torch.zeros(2, 16, 3, 2, 4)}, "latents are of 2 videos, not of 1"),
    ({"latents": torch.zeros(16, 3, 2, 4)}, r"latents have shape \[16, 3, 2, 4\]"),
    ({"latents": [0.0]}, "is no tensor or array"),
    ({"latents": torch.zeros(1, 16, 3, 2, 4, dtype=torch.int64)}, "latents of dtype int64"),
    ({"output_type": None}, "unknown output_type None"),
    ({"callback_on_step_end": 7}, "cannot be called"),
    ({"callback_on_step_end_tensor_inputs": ["image"]}, r"\['image'\] do not exist"),
]


@pytest.mark.parametrize(
    ("arguments", "message"), REFUSED, ids=[str(n) for n in range(len(REFUSED))]
)
def test_what_a_bundle_cannot_serve_is_refused_in_one_line(
    pipe: FastWanPipeline, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadInput, match=message) as refused:
        pipe(**{"prompt": "red fox", **arguments})
    assert "\n" not in str(refused.value)


def test_an_argument_that_does_not_exist_is_a_type_error_in_words(pipe: FastWanPipeline) -> None:
    with pytest.raises(TypeError, match=r"no argument 'num_inference_step'.*num_inference_steps"):
        pipe("a", num_inference_step=3)
    with pytest.raises(UnknownArgument, match=r"there are prompt, negative_prompt, .*on_frames$"):
        pipe("a", image=None)


def test_arguments_may_be_given_by_place(pipe: FastWanPipeline) -> None:
    made = pipe("a", None, 16, 32, 9, 3, 1.0).frames
    np.testing.assert_array_equal(made, pipe("a").frames)


def test_each_video_of_a_list_is_the_one_that_is_made_alone(pipe: FastWanPipeline) -> None:
    prompts = ["red fox", "a", "fox runs"]
    output = pipe(prompts, seed=7, output_type="uint8")
    assert output.frames.shape == (3, 9, 16, 32, 3)
    assert output.seeds == (7, 7, 7)
    assert output.noise == ("torch-cpu-bf16",) * 3
    for video, prompt in zip(output.frames, prompts, strict=True):
        alone = pipe(prompt, seed=7, output_type="uint8").frames[0]
        np.testing.assert_array_equal(video, alone)


@pytest.mark.parametrize("output_type", ["np", "pt", "pil", "latent"])
def test_several_videos_of_a_prompt_have_seeds_that_follow_each_other(
    pipe: FastWanPipeline, output_type: Any
) -> None:
    output = pipe(["a", "red fox"], seed=7, num_videos_per_prompt=2, output_type=output_type)
    assert output.seeds == (7, 8, 7, 8)
    assert len(output.frames) == 4
    last = pipe("red fox", seed=8, output_type=output_type).frames[0]
    np.testing.assert_array_equal(
        *(np.stack([np.asarray(part) for part in video]) for video in (output.frames[3], last))
    )


def test_generators_draw_for_their_own_video(pipe: FastWanPipeline) -> None:
    each = pipe(["a", "a"], generator=[cpu_generator(3), cpu_generator(4)])
    assert each.seeds == (None, None)
    assert each.noise == ("generator", "generator")
    given = pipe("a", latents=pipe("a", output_type="latent").frames)
    assert given.noise == ("latents",)
    for video, seed in zip(each.frames, (3, 4), strict=True):
        np.testing.assert_array_equal(video, pipe("a", seed=seed).frames[0])
    together, one = pipe(["a", "a"], generator=cpu_generator(3)), cpu_generator(3)
    for video in together.frames:
        np.testing.assert_array_equal(video, pipe("a", generator=one).frames[0])


def test_embeddings_and_latents_of_several_videos(pipe: FastWanPipeline) -> None:
    embeds = np.concatenate([pipe.embed(prompt) for prompt in ("a", "red fox")])
    noise = torch.randn(2, 16, 3, 2, 4, generator=cpu_generator(4))
    made = pipe(prompt_embeds=embeds, latents=noise).frames
    for index, prompt in enumerate(("a", "red fox")):
        alone = pipe(prompt, latents=noise[index : index + 1]).frames[0]
        np.testing.assert_array_equal(made[index], alone)


@pytest.mark.parametrize("seed", [7, np.int64(7), np.uint8(7), torch.tensor(7)])
def test_any_integer_is_a_seed(pipe: FastWanPipeline, seed: Any) -> None:
    output = pipe("a", seed=seed, output_type="latent")
    assert output.seeds == (7,)
    assert torch.equal(output.frames, pipe("a", seed=7, output_type="latent").frames)


@pytest.mark.parametrize("seed", [7.0, np.float32(7), "7", True, -1, 2**64, [7]])
def test_anything_else_is_none(pipe: FastWanPipeline, seed: Any) -> None:
    with pytest.raises(BadInput, match="seed"):
        pipe("a", seed=seed, output_type="latent")


def test_no_seed_is_a_fresh_one_that_is_told(pipe: FastWanPipeline) -> None:
    first, second = (pipe("a", seed=None, output_type="latent") for _ in range(2))
    assert first.seed != second.seed
    again = pipe("a", seed=first.seed, output_type="latent")
    assert torch.equal(again.frames, first.frames)


def test_moves_and_offloads_that_change_nothing_are_taken(pipe: FastWanPipeline) -> None:
    expected = pipe("a").frames
    assert pipe.to("cpu").to(torch.device("cpu"), torch.bfloat16).to(device="cpu") is pipe
    assert pipe.cpu() is pipe
    pipe.enable_model_cpu_offload()
    pipe.enable_sequential_cpu_offload(device="cpu")
    pipe.enable_attention_slicing("max")
    pipe.enable_vae_tiling()
    pipe.maybe_free_model_hooks()
    np.testing.assert_array_equal(pipe("a").frames, expected)
    assert pipe.device == torch.device("cpu")
    assert pipe.dtype == torch.bfloat16
    assert pipe.guidance_scale == 1
    assert not pipe.do_classifier_free_guidance


@pytest.mark.parametrize(
    ("move", "message"),
    [
        (lambda pipe: pipe.to("cuda"), "runs on cpu and cannot move to cuda"),
        (lambda pipe: pipe.cuda(1), "cannot move to cuda:1"),
        (lambda pipe: pipe.to(torch.float16), "cannot be made torch.float16"),
        (lambda pipe: pipe.to(dtype=torch.float32), "cannot be made torch.float32"),
        (lambda pipe: pipe.to("nowhere"), "is no device"),
        (lambda pipe: pipe.to(devise="cpu"), "no argument devise"),
        (lambda pipe: pipe.enable_model_cpu_offload(gpu_id=1), "cannot move to cuda:1"),
        (lambda pipe: pipe.vae.enable_tiling(), "a bundle has no vae.*the decoder streams"),
        (lambda pipe: pipe.transformer, "a bundle has no transformer.*build-engine"),
        (lambda pipe: pipe.load_lora_weights("x"), "no load_lora_weights.*merge the adapter"),
        (lambda pipe: setattr(pipe, "scheduler", None), "scheduler of a bundle cannot be set"),
        (lambda pipe: pipe.set_progress_bar_config(colour_of="red"), "no option colour_of"),
    ],
)
def test_what_a_bundle_cannot_do_is_refused(pipe: FastWanPipeline, move: Any, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        move(pipe)


def test_parts_that_are_not_there_are_not_there(pipe: FastWanPipeline) -> None:
    assert not any(hasattr(pipe, name) for name in ("vae", "scheduler", "encode_prompt"))
    assert hasattr(pipe, "embed")
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = pipe.nonsense


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"torch_dtype": torch.bfloat16},
        {"dtype": "auto"},
        {"device_map": "cpu"},
        {"revision": None, "local_files_only": True},
        {"use_safetensors": True, "low_cpu_mem_usage": True, "variant": None},
    ],
)
def test_from_pretrained_takes_what_changes_nothing(bundle: Any, options: dict[str, Any]) -> None:
    opened = FastWanPipeline.from_pretrained(str(bundle.root), device="cpu", **options)
    assert opened.choice.name == "cpu"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"torch_dtype": torch.float16}, "cannot be made torch.float16"),
        ({"device_map": "balanced"}, "device_map 'balanced'"),
        ({"revision": "v1"}, "a folder has no revision"),
        ({"vae": None}, "opened without vae"),
        ({"variant": "fp16"}, "no variant 'fp16'"),
    ],
)
def test_from_pretrained_refuses_the_rest(
    bundle: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        FastWanPipeline.from_pretrained(bundle.root, device="cpu", **options)


def test_from_pretrained_without_a_bundle_says_so(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no folder of a bundle"):
        FastWanPipeline.from_pretrained(tmp_path / "nothing")


def test_a_bundle_on_the_hub_opens_by_its_id(
    bundle: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = StandInHub({COMMITS[0]: files_of(bundle.root)}, {"main": COMMITS[0]})
    with stand_in_hub.serve(hub) as address:
        stand_in_hub.use(monkeypatch, address, tmp_path / "hub")
        with pytest.raises(EnvironmentLacks, match=r"local_files_only is set.*no copy"):
            FastWanPipeline.from_pretrained(REPO, device="cpu", local_files_only=True)
        with pytest.raises(BadInput, match="no folder of a bundle"):
            FastWanPipeline.from_pretrained(Path(REPO), device="cpu")
        fetched = FastWanPipeline.from_pretrained(REPO, device="cpu", revision=COMMITS[0])
    local = FastWanPipeline.from_pretrained(bundle.root, device="cpu")
    again = FastWanPipeline.from_pretrained(
        f"{REPO}@{COMMITS[0]}", device="cpu", local_files_only=True
    )
    videos = [pipe("a red fox", output_type="uint8").frames for pipe in (local, fetched, again)]
    assert np.array_equal(videos[0], videos[1])
    assert np.array_equal(videos[0], videos[2])


def test_repr_says_what_it_makes_and_where_it_runs(pipe: FastWanPipeline) -> None:
    shown = repr(pipe)
    for words in ("fake", "nvfp4", "sage3", "rtx5090", "9 frames of 32x16", "unipc (3 steps)"):
        assert words in shown
    assert shown.splitlines()[-1].strip() == "runs on: cpu"
    pipe.close()
    assert "closed" in repr(pipe)


class Terminal:
    """A stream that says that it is a terminal, or not."""

    def __init__(self, terminal: bool) -> None:
        self.text = ""
        self.isatty = lambda: terminal
        self.encoding = "utf-8"

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None:
        pass


@pytest.mark.parametrize(
    ("terminal", "config", "shown"),
    [
        (True, {}, True),
        (False, {}, False),
        (True, {"disable": True}, False),
        (False, {"disable": False}, True),
        (True, {"disable": None}, True),
    ],
)
def test_a_bar_is_shown_on_a_terminal_or_as_it_is_set(
    pipe: FastWanPipeline,
    monkeypatch: pytest.MonkeyPatch,
    terminal: bool,
    config: dict[str, Any],
    shown: bool,
) -> None:
    monkeypatch.delenv("FASTWAN_QUIET", raising=False)
    stream = Terminal(terminal)
    monkeypatch.setattr(sys, "stderr", stream)
    pipe.set_progress_bar_config(**config)
    pipe("a")
    assert ("3/3" in stream.text) == shown
    assert ("9/9" in stream.text) == shown


def test_a_bar_ends_where_a_call_fails(
    pipe: FastWanPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tqdm import tqdm

    def fail(*_: Any) -> None:
        raise FastWanError("enough")

    monkeypatch.setattr(sys, "stderr", Terminal(True))
    pipe.set_progress_bar_config(desc="video")
    with pytest.raises(FastWanError, match="enough"):
        pipe("a", callback_on_step_end=fail)
    assert not tqdm._instances


def test_the_package_offers_the_pipeline_and_stays_light() -> None:
    script = (
        "import sys, fastwan; assert 'torch' not in sys.modules; "
        "assert 'FastWanPipeline' in dir(fastwan); "
        "from fastwan import FastWanPipeline as p; print(p.__module__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "fastwan.runtime.pipeline"
