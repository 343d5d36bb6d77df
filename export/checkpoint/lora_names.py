"""Keys of LoRA files: which part of an adapter a tensor is, and which tensor of the model it is of.

diffusers and PEFT write ``transformer.blocks.0.attn1.to_q.lora_A.weight``, PEFT alone
``base_model.model.blocks.0...``; trainers of Wan's own code
``diffusion_model.blocks.0.self_attn.q.lora_A.weight``, or ``lora_down`` and ``lora_up``; kohya's
``lora_unet_blocks_0_self_attn_q.lora_down.weight``. Any may have an ``alpha`` beside, and some have
whole differences of a weight, a bias or a modulation: ``diff``, ``diff_b`` and ``diff_m``, as
LightX2V extracts them.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from fastwan.export.checkpoint.names import canonical_dit_name

Part = Literal["down", "up", "alpha", "diff", "bias", "bias_diff", "modulation"]

PEFT = "base_model.model."
"""What PEFT puts before every key; its scales stand in ``adapter_config.json``."""

_KOHYA = "lora_unet_"

_PARTS: tuple[tuple[re.Pattern[str], Part], ...] = (
    (re.compile(r"\.(lora_A(\.[\w-]+)?|lora_down|lora\.down)\.weight$"), "down"),
    (re.compile(r"\.(lora_B(\.[\w-]+)?|lora_up|lora\.up)\.weight$"), "up"),
    (re.compile(r"\.lora_B(\.[\w-]+)?\.bias$"), "bias"),
    (re.compile(r"\.alpha$"), "alpha"),
    (re.compile(r"\.diff$"), "diff"),
    (re.compile(r"\.diff_b$"), "bias_diff"),
    (re.compile(r"\.diff_m$"), "modulation"),
)

_UNDERSCORED = tuple(
    (re.compile(pattern), dotted)
    for pattern, dotted in (
        (r"^blocks_(\d+)_(self_attn|cross_attn)_(norm_[qk]|[qkvo])$", r"blocks.\1.\2.\3"),
        (r"^blocks_(\d+)_ffn_([02])$", r"blocks.\1.ffn.\2"),
        (r"^(text_embedding|time_embedding|time_projection)_(\d)$", r"\1.\2"),
        (r"^head_head$", "head.head"),
    )
)


class Key(NamedTuple):
    """What a key of a LoRA file is.

    Attributes:
        module: of the model, under diffusers' name; of a modulation the table itself.
        part: of its adapter.
    """

    module: str
    part: Part

    @property
    def tensor(self) -> str:
        """The tensor of the model that says whether it has this module."""
        return self.module if self.part == "modulation" else f"{self.module}.weight"


def parse_key(key: str) -> Key | None:
    """A key taken apart; None where it is no part of a LoRA that is known here."""
    for pattern, part in _PARTS:
        found = pattern.search(key)
        if found:
            stored = key[: found.start()].removeprefix(PEFT)
            if part == "modulation":
                return Key(canonical_dit_name(f"{stored}.modulation"), part)
            return Key(_module(stored), part)
    return None


def _module(name: str) -> str:
    if name.startswith(_KOHYA):
        name = name.removeprefix(_KOHYA)
        for pattern, dotted in _UNDERSCORED:
            name = pattern.sub(dotted, name)
    return canonical_dit_name(f"{name}.weight").removesuffix(".weight")
