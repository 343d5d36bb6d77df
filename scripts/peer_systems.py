"""The systems that `compare_peers.py` runs: command lines, what is timed in each, published times.

Command lines and names of functions are those of FastVideo 2f3d4074, TurboDiffusion aaecff54 and
LightX2V f8aee98b.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

READ = "2026-08-21"
"""When the published figures were read."""


@dataclass(frozen=True)
class Published:
    """A published time of a whole run, in seconds.

    Attributes:
        decoder: of the row that it stands beside, ``own`` or ``taehv``.
        covers: what the time is of, in the publisher's terms.
    """

    seconds: float
    gpu: str
    decoder: str
    covers: str
    source: str
    date: str = READ


@dataclass(frozen=True)
class System:
    """A program that makes videos.

    Attributes:
        steps: those that its model was trained for.
        program: file in its folder.
        arguments: of the command line; ``{name}`` is a value of the caller's peers file or one of
            width, height, frames, steps, prompt, runs (warm-ups included), output and config.
        own: further arguments for its own decoder; None where it has no other than TAEHV.
        taehv: likewise for TAEHV; None where it cannot: its row then has TAEHV's time alone.
        repeats: whether the program makes several videos itself.
        hooks: functions that are timed, by stage, whatever the decoder.
        own_hooks: further ones with its own decoder.
        taehv_hooks: further ones with TAEHV.
        environment: variables of its process.
        config: contents of a JSON file that the command line names.
        needs: keys of the caller's peers file beside ``folder`` and ``python``.
    """

    title: str
    steps: int
    program: str
    arguments: tuple[str, ...]
    hooks: Mapping[str, tuple[str, ...]]
    own: tuple[str, ...] | None = ()
    taehv: tuple[str, ...] | None = None
    repeats: bool = False
    own_hooks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    taehv_hooks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, object] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    published: tuple[Published, ...] = ()


_FASTVIDEO = {
    "text": ("fastvideo.pipelines.stages.text_encoding:TextEncodingStage.forward",),
    "denoise": (
        "fastvideo.pipelines.stages.denoising:DenoisingStage.forward",
        "fastvideo.pipelines.stages.denoising:DmdDenoisingStage.forward",
    ),
}
_FASTVIDEO_DECODE = ("fastvideo.pipelines.stages.decoding:DecodingStage.forward",)
TAEHV_DECODE = ("taehv:TAEHV.decode_video",)
_CHART = "FastVideo's chart of 2026, an RTX 5090"
_WHOLE = "text, denoising, latents to host, TAEHV, frames to host; no file"


def _of_the_qad_benchmark(model: str, mode: str, published: Published) -> System:
    """A model that FastVideo times by one program with a mode each, by TAEHV alone."""
    return System(
        title=f"FastVideo, {model}",
        steps=3,
        program="examples/inference/optimizations/benchmark_qad_wan2_1_1_3b.py",
        arguments=("--mode", mode),
        own=None,
        taehv=("--taehv-checkpoint", "{taehv_checkpoint}"),
        repeats=True,
        hooks=_FASTVIDEO,
        taehv_hooks={"copy": _FASTVIDEO_DECODE, "decode": TAEHV_DECODE},
        needs=("taehv_checkpoint",),
        published=(published,),
    )


OURS = "fastwan-export"
PUBLISHED_OURS: tuple[Published, ...] = ()
"""Nobody has published a time of ours."""

SYSTEMS: dict[str, System] = {
    "fastvideo-qad": System(
        title="FastVideo, FastWan-QAD-1.3B",
        steps=3,
        program="examples/inference/optimizations/FastWan_QAD_TAEHV.py",
        arguments=(
            "--model", "{model}", "--distilled_model", "", "--infer_steps", "{steps}",
            "--warmups", "5", "--benchmark-runs", "{runs}",
        ),
        own=("--no-taehv",),
        taehv=("--taehv_checkpoint", "{taehv_checkpoint}"),
        repeats=True,
        hooks=_FASTVIDEO,
        own_hooks={"decode": _FASTVIDEO_DECODE},
        taehv_hooks={"copy": _FASTVIDEO_DECODE, "decode": TAEHV_DECODE},
        environment={
            "FASTVIDEO_DISABLE_ATTENTION_COMPILE": "0",
            "FASTVIDEO_ATTENTION_BACKEND": "ATTN_QAT_INFER",
        },
        needs=("model", "taehv_checkpoint"),
        published=(
            Published(1.78, "RTX 5090", "taehv", _WHOLE, "card of FastVideo/FastWan-QAD-1.3B"),
        ),
    ),
    "fastvideo-sa2": _of_the_qad_benchmark(
        "FastWan-QAD-1.3B-SA2", "nvfp4_sa2", Published(2.01, "RTX 5090", "taehv", _WHOLE, _CHART)
    ),
    "fastvideo-fp8": _of_the_qad_benchmark(
        "FastWan-QAD-FP8-1.3B",
        "fp8",
        Published(3.4, "RTX 4090", "taehv", _WHOLE, "card of FastVideo/FastWan-QAD-FP8-1.3B"),
    ),
    "turbodiffusion": System(
        title="TurboDiffusion, TurboWan2.1-T2V-1.3B-480P",
        steps=4,
        program="turbodiffusion/inference/wan2.1_t2v_infer.py",
        arguments=(
            "--model", "Wan2.1-1.3B", "--dit_path", "{dit_path}", "--vae_path", "{vae_path}",
            "--text_encoder_path", "{text_encoder_path}", "--num_steps", "{steps}",
            "--num_frames", "{frames}", "--quant_linear", "--attention_type", "sagesla",
            "--sla_topk", "0.1", "--save_path", "{output}", "--prompt", "{prompt}",
        ),
        hooks={
            "text": ("rcm.utils.umt5:UMT5EncoderModel.__call__",),
            "step": ("rcm.networks.wan2pt1:WanModel.forward",),
        },
        own_hooks={"decode": ("rcm.tokenizers.wan2pt1:Wan2pt1VAEInterface.decode",)},
        environment={"PYTHONPATH": "turbodiffusion"},
        needs=("dit_path", "vae_path", "text_encoder_path"),
        published=(
            Published(1.9, "RTX 5090", "own", "diffusion alone", "README of TurboDiffusion"),
            Published(6.10, "RTX 5090", "own", "a whole video, with the full Wan VAE", _CHART),
        ),
    ),
    "lightx2v": System(
        title="LightX2V, wan2.1_t2v_1_3b_nvfp4_lightx2v_4step",
        steps=4,
        program="lightx2v/infer.py",
        arguments=(
            "--model_cls", "wan2.1_distill", "--task", "t2v", "--model_path", "{model_path}",
            "--config_json", "{config}", "--prompt", "{prompt}", "--save_result_path", "{output}",
        ),
        hooks={
            "text": ("lightx2v.models.runners.wan.wan_runner:WanRunner.run_text_encoder",),
            "denoise": ("lightx2v.models.runners.default_runner:DefaultRunner.run_segment",),
        },
        own_hooks={
            "decode": ("lightx2v.models.runners.default_runner:DefaultRunner.run_vae_decoder",)
        },
        config={
            "infer_steps": 4, "target_video_length": 81, "target_height": 480,
            "target_width": 832, "sample_shift": 5.0, "sample_guide_scale": 1.0,
            "enable_cfg": False, "cpu_offload": False, "self_attn_1_type": "sage_attn2",
            "cross_attn_1_type": "sage_attn2", "cross_attn_2_type": "sage_attn2",
            "dit_quantized": True, "dit_quant_scheme": "nvfp4",
            "dit_quantized_ckpt": "{dit_quantized_ckpt}",
        },
        environment={"PYTHONPATH": "."},
        needs=("model_path", "dit_quantized_ckpt"),
        published=(
            Published(6.91, "RTX 5090", "own", "a whole video, with the full Wan VAE", _CHART),
        ),
    ),
}  # fmt: skip
