"""Frozen configurations and the tables of models, targets and the names they are made of.

A stage takes one of these dataclasses; everything that follows from their fields is a property.
A model or a target is a row of a table below. Of a recipe and an attention this module has the
name alone, for the command line and the manifests; `fastwan.export.recipes` and
`fastwan.export.attentions` have the object that does the work.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from fastwan.errors import BadInput

Component = Literal["dit", "decoder", "text_encoder"]
COMPONENTS: tuple[Component, ...] = get_args(Component)

TOKEN_TILE = 128
"""Rows of one FP4 attention tile; token counts are padded to a multiple of it."""
KEY_SAMPLE = 24
"""Attention ``fp8`` takes a mean of keys over one token of so many."""

VAE_SPATIAL = 8
VAE_TEMPORAL = 4

MAX_PIXELS = 8192
"""Largest height and width; a side of the decoder's largest tensors is counted in 32 bits."""
MAX_FRAMES = 4097
MAX_GUIDANCE = 100
MAX_TOKENS = 1 << 20
"""32 times those of 832x480x81; attention takes 1,000 times as long there."""

_DIT_BOUNDS = {
    "num_layers": 256, "num_heads": 128, "ffn_dim": 1 << 17, "text_dim": 1 << 16,
    "text_length": 1 << 13, "freq_dim": 1 << 13, "in_channels": 1 << 10, "out_channels": 1 << 10,
}  # fmt: skip
_TEXT_BOUNDS = {
    "vocab_size": 1 << 22, "d_model": 1 << 16, "d_kv": 1 << 10, "d_ff": 1 << 18,
    "num_layers": 256, "num_heads": 1 << 10, "num_buckets": 1 << 10, "max_distance": 1 << 16,
}  # fmt: skip
"""Largest sizes by field: several times those of any published model of the kind."""


def check_bounds(config: object, largest: Mapping[str, int], where: str) -> None:
    """Refuse a configuration with a size that is not within 1 and its bound.

    Raises:
        BadInput: names the first such field.
    """
    for name, most in largest.items():
        value = getattr(config, name)
        if not 1 <= value <= most:
            raise BadInput(f"{name} is not within 1 .. {most:,}", where=where)


def check_eps(eps: float, where: str) -> None:
    """Refuse a term that is added to a variance and that fp32 does not hold, or that drowns it.

    Raises:
        BadInput: not a normal number of fp32 below 1.
    """
    if not _SMALLEST_FP32 <= eps < 1:
        raise BadInput(f"eps {eps} is not within {_SMALLEST_FP32:.3g} .. 1", where=where)


_SMALLEST_FP32 = 2.0**-126


@dataclass(frozen=True)
class DiTConfig:
    """Shape of a Wan 2.1 text-to-video transformer; the defaults are the 1.3 B model."""

    num_layers: int = 30
    num_heads: int = 12
    head_dim: int = 128
    ffn_dim: int = 8960
    in_channels: int = 16
    out_channels: int = 16
    text_dim: int = 4096
    text_length: int = 512
    freq_dim: int = 256
    patch_size: tuple[int, int, int] = (1, 2, 2)
    eps: float = 1e-6

    def __post_init__(self) -> None:
        where = "transformer/config.json"
        check_bounds(self, _DIT_BOUNDS, where)
        check_eps(self.eps, where)
        if self.head_dim != 128:
            raise BadInput(
                f"head_dim is {self.head_dim}",
                where=where,
                fix="the FP4 attention is made for 128",
            )
        if self.patch_size != (1, 2, 2):
            raise BadInput("patch_size must be [1, 2, 2]", where=where)
        for name in ("width", "ffn_dim"):
            if getattr(self, name) % 16:
                raise BadInput(f"{name} is no multiple of the NVFP4 block of 16", where=where)

    @property
    def width(self) -> int:
        """Channels of the residual stream, C."""
        return self.num_heads * self.head_dim


@dataclass(frozen=True)
class TextEncoderConfig:
    """Shape of a UMT5 encoder; the defaults are UMT5-XXL."""

    vocab_size: int = 256384
    d_model: int = 4096
    d_kv: int = 64
    d_ff: int = 10240
    num_layers: int = 24
    num_heads: int = 64
    num_buckets: int = 32
    max_distance: int = 128
    eps: float = 1e-6

    def __post_init__(self) -> None:
        where = "text_encoder/config.json"
        check_bounds(self, _TEXT_BOUNDS, where)
        check_eps(self.eps, where)


@dataclass(frozen=True)
class DecoderConfig:
    """Shape of a TAEHV decoder; the defaults are ``taew2_1``.

    Attributes:
        channels: channels of the four levels, coarse to fine.
        latent_channels: channels of the latents.
        time_growth: frames made of one, by level; their product is frames a latent.
        space_growth: whether a level doubles height and width.
    """

    channels: tuple[int, int, int, int] = (256, 128, 64, 64)
    latent_channels: int = 16
    image_channels: int = 3
    time_growth: tuple[int, int, int] = (1, 2, 2)
    space_growth: tuple[bool, bool, bool] = (True, True, True)

    def __post_init__(self) -> None:
        check_bounds(self, {"latent_channels": 1 << 10, "image_channels": 1 << 10}, "decoder")
        if not all(1 <= size <= 1 << 14 for size in self.channels):
            raise BadInput(f"channels {self.channels} are not within 1 .. 16384", where="decoder")
        if not all(1 <= factor <= 16 for factor in self.time_growth):
            raise BadInput(f"time_growth {self.time_growth} is not within 1 .. 16", where="decoder")

    @property
    def frames_per_latent(self) -> int:
        product = 1
        for factor in self.time_growth:
            product *= factor
        return product

    @property
    def frames_to_trim(self) -> int:
        """Leading frames that the decoder makes and the video does not have."""
        return self.frames_per_latent - 1


@dataclass(frozen=True)
class VideoShape:
    """Height and width in pixels (multiples of 16) and number of frames (4n+1)."""

    height: int = 480
    width: int = 832
    num_frames: int = 81

    def __post_init__(self) -> None:
        for name in ("height", "width"):
            value = getattr(self, name)
            if value < 16 or value % 16:
                raise BadInput(f"{name} {value} is no multiple of 16", where=f"--{name}")
            if value > MAX_PIXELS:
                raise BadInput(f"{name} {value} is above {MAX_PIXELS:,}", where=f"--{name}")
        if self.num_frames > MAX_FRAMES:
            raise BadInput(
                f"num_frames {self.num_frames} is above {MAX_FRAMES:,}", where="--num-frames"
            )
        if self.num_frames < 1 or self.num_frames % VAE_TEMPORAL != 1:
            raise BadInput(
                f"num_frames {self.num_frames} is not 4n+1", where="--num-frames", fix="try 81"
            )
        if self.num_tokens > MAX_TOKENS:
            raise BadInput(
                f"{self.width}x{self.height}x{self.num_frames} are {self.num_tokens:,} tokens, "
                f"above {MAX_TOKENS:,}",
                where="--height, --width, --num-frames",
                fix="a smaller or shorter video; 480x832x81 are 32,760 tokens",
            )

    @property
    def latent_frames(self) -> int:
        return (self.num_frames - 1) // VAE_TEMPORAL + 1

    @property
    def latent_height(self) -> int:
        return self.height // VAE_SPATIAL

    @property
    def latent_width(self) -> int:
        return self.width // VAE_SPATIAL

    @property
    def patches(self) -> tuple[int, int, int]:
        """Patch grid (frames, rows, columns) for patches of 1x2x2 latents."""
        return self.latent_frames, self.latent_height // 2, self.latent_width // 2

    @property
    def num_tokens(self) -> int:
        """True number of tokens; 32,760 for 832x480x81."""
        frames, rows, columns = self.patches
        return frames * rows * columns

    @property
    def padded_tokens(self) -> int:
        """`num_tokens` rounded up to whole attention tiles; 32,768 for 832x480x81."""
        return -(-self.num_tokens // TOKEN_TILE) * TOKEN_TILE

    def latents(self, channels: int = 16, batch: int = 1) -> tuple[int, int, int, int, int]:
        """Shape of the latents, [B, C, T, H, W]."""
        return batch, channels, self.latent_frames, self.latent_height, self.latent_width


@dataclass(frozen=True)
class Target:
    """A GPU that engines are built for.

    Attributes:
        backends: those that build for it.
        recipes: those whose GEMMs it has.
        attentions: those that it runs.
        processors: its multiprocessors, for the schedule of a kernel that depends on them.
    """

    name: str
    gpu: str
    compute_capability: int
    backends: tuple[str, ...]
    recipes: tuple[str, ...]
    attentions: tuple[str, ...]
    processors: int = 0


@dataclass(frozen=True)
class SamplerSpec:
    """What a sampler's constants are derived from; a bundle's manifest carries it whole.

    Attributes:
        name: what people choose it by.
        kind: how the constants follow; see `fastwan.runtime.model.samplers`.
        steps: of a video; a forward of the transformer each, two with guidance.
        shift: of the flow-matching schedule.
        shift_twice: shift the levels between the ends of a shifted schedule once more.
        timesteps: those of the steps; empty where the kind derives them.
        guidance: scale of classifier-free guidance; 1 is none, and one forward a step. A caller
            may ask for another where it is not 1.
    """

    name: str
    kind: str
    steps: int
    shift: float
    shift_twice: bool = False
    timesteps: tuple[int, ...] = ()
    guidance: float = 1.0

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= 1000:
            raise BadInput(f"{self.steps} steps are not within 1 .. 1000", where=self.name)
        if not 0 < self.shift < 1000:
            raise BadInput(f"shift {self.shift} is not within 0 .. 1000", where=self.name)
        if self.timesteps and len(self.timesteps) != self.steps:
            raise BadInput(f"{len(self.timesteps)} timesteps, {self.steps} steps", where=self.name)
        if not all(0 < timestep <= 1000 for timestep in self.timesteps):
            raise BadInput("a timestep is not within 1 .. 1000", where=self.name)
        if not 1 <= self.guidance < MAX_GUIDANCE:
            raise BadInput(
                f"guidance {self.guidance} is not within 1 .. {MAX_GUIDANCE}", where=self.name
            )


@dataclass(frozen=True)
class ModelPreset:
    """A published model: the recipe and the attention it was made for, and where it runs.

    Attributes:
        samplers: those that it was trained for, the default first.
        dit: shape of its transformer.
    """

    name: str
    recipe: str
    attention: str
    samplers: tuple[str, ...]
    targets: tuple[str, ...]
    dit: DiTConfig = DiTConfig()


BACKENDS = {
    "tensorrt-rtx": "on any machine, for a GPU that need not be there",
    "tensorrt": "on the GPU itself, with the attention inside the engine",
}
"""Builders of engines by name; see `fastwan.engines.backend`."""

RECIPES = {
    "nvfp4": "FP4 weights and activations, a scale for every 16 values",
    "fp8": "FP8 weights and activations, a scale a weight and one a token",
    "bf16": "not quantised",
}
"""What the targeted linears are made of, by name; see `fastwan.export.recipes`."""

ACTIVATIONS = {
    "per_token": "one a row, from its largest value",
    "per_tensor": "one a tensor, from its largest value, as published",
    "static": "one a linear, from a calibration",
}
"""Scales of FP8 activations, by name; see `fastwan.export.recipes.fp8`."""

ATTENTIONS = {
    "sage3": "SageAttention3, FP4",
    "native": "bf16, by the builder's own kernels",
    "fp8": "FP8, by the builder's own kernel",
    "sage2": "SageAttention2++, int8 and FP8",
}
"""How self-attention is computed, by name; see `fastwan.export.attentions`."""

FUSIONS = {
    "none": "the builder's kernels between GEMMs",
    "gelu": "bias, GELU and quantiser of the feed-forward in one kernel",
    "gelu+cross": "that, and cross-attention over the keys that a prompt has",
    "all": "those, residual and norm, and the quantiser of the attention",
}
"""What our own kernels compute between GEMMs, see `fastwan.export.passes.fusions`."""
FUSION_CHOICES = {"auto": "the last that backend, attention and transformer allow", **FUSIONS}

WEIGHTS = {
    "inline": "in the engines, each of which is a block's own",
    "data": "in the ONNX data file, given to engines that serve all blocks",
}
"""Where the weights of a step's linears are, by name; see `fastwan.engines.plan`."""

_BOTH = ("tensorrt-rtx", "tensorrt")
_FP4 = ("nvfp4", "fp8", "bf16")
_FP8 = ("fp8", "bf16")
_ANY = ("sage3", "native", "fp8", "sage2")
_ADA = ("native", "fp8", "sage2")

TARGETS = {
    target.name: target
    for target in (
        Target("rtx5090", "GeForce RTX 5090", 120, _BOTH, _FP4, _ANY, 170),
        Target("gb10", "GB10 (DGX Spark)", 121, _BOTH, _FP4, _ANY, 48),
        Target("rtx5080", "GeForce RTX 5080", 120, _BOTH, _FP4, _ANY, 84),
        Target("rtxpro6000", "RTX PRO 6000 Blackwell", 120, _BOTH, _FP4, _ANY, 188),
        Target("rtx4090", "GeForce RTX 4090", 89, _BOTH, _FP8, _ADA, 128),
        Target("rtx4080", "GeForce RTX 4080", 89, _BOTH, _FP8, _ADA, 76),
        Target("rtx6000ada", "RTX 6000 Ada Generation", 89, _BOTH, _FP8, _ADA, 142),
        Target("rtx3090", "GeForce RTX 3090", 86, _BOTH, ("bf16",), ("native",)),
        Target("a100", "A100", 80, _BOTH, ("bf16",), ("native",)),
    )
}

SAMPLERS = {
    sampler.name: sampler
    for sampler in (
        SamplerSpec("unipc", "unipc", steps=3, shift=3.0, shift_twice=True),
        SamplerSpec("dmd", "dmd", steps=3, shift=8.0, timesteps=(1000, 757, 522)),
        # As the published diffusers folder and WanPipeline's defaults have it, for 480p.
        SamplerSpec("unipc-50", "unipc", steps=50, shift=3.0, guidance=5.0),
    )
}
"""Published samplers. FastWan-QAD runs as ``unipc`` and was trained with ``dmd``."""

_BLACKWELL = ("rtx5090", "gb10", "rtx5080", "rtxpro6000")
_HAVE_FP8 = (*_BLACKWELL, "rtx4090", "rtx4080", "rtx6000ada")

MODELS = {
    model.name: model
    for model in (
        ModelPreset("FastWan-QAD-1.3B", "nvfp4", "sage3", ("unipc", "dmd"), _BLACKWELL),
        ModelPreset("FastWan-QAD-1.3B-SA2", "nvfp4", "sage2", ("unipc", "dmd"), _BLACKWELL),
        ModelPreset("FastWan-QAD-FP8-1.3B", "fp8", "fp8", ("unipc", "dmd"), _HAVE_FP8),
        ModelPreset(
            "Wan2.1-T2V-1.3B",
            "bf16",
            "native",
            ("unipc-50",),
            (*_HAVE_FP8, "rtx3090", "a100"),
        ),
    )
}

DEFAULT_MODEL = "FastWan-QAD-1.3B"
"""What a checkpoint is taken for that names no model, and what is planned where none is named."""
