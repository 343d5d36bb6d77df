"""The JSON files of a synthetic checkpoint, as diffusers and transformers write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fastwan.config import DiTConfig, TextEncoderConfig, VideoShape
from fastwan.export.checkpoint.model_index import SHAPE_KEY

_DIFFUSERS = "0.35.0"
_TRANSFORMERS = "4.50.0"
PAD, EOS, UNK = "<pad>", "</s>", "<unk>"


def model_index(shape: VideoShape, text_encoder: bool) -> dict[str, Any]:
    """``model_index.json`` of a ``WanPipeline``; `shape` is left out where it is the default."""
    fields: dict[str, Any] = {
        "_class_name": "WanPipeline",
        "_diffusers_version": _DIFFUSERS,
        "scheduler": ["diffusers", "UniPCMultistepScheduler"],
        "text_encoder": ["transformers", "UMT5EncoderModel"] if text_encoder else [None, None],
        "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
        "transformer": ["diffusers", "WanTransformer3DModel"],
        "vae": [None, None],
    }
    if shape != VideoShape():
        fields[SHAPE_KEY] = {
            "height": shape.height,
            "width": shape.width,
            "num_frames": shape.num_frames,
        }
    return fields


def transformer_config(config: DiTConfig) -> dict[str, Any]:
    """``transformer/config.json`` of ``WanTransformer3DModel``."""
    return {
        "_class_name": "WanTransformer3DModel",
        "_diffusers_version": _DIFFUSERS,
        "added_kv_proj_dim": None,
        "attention_head_dim": config.head_dim,
        "cross_attn_norm": True,
        "eps": config.eps,
        "ffn_dim": config.ffn_dim,
        "freq_dim": config.freq_dim,
        "image_dim": None,
        "in_channels": config.in_channels,
        "num_attention_heads": config.num_heads,
        "num_layers": config.num_layers,
        "out_channels": config.out_channels,
        "patch_size": list(config.patch_size),
        "pos_embed_seq_len": None,
        "qk_norm": "rms_norm_across_heads",
        "rope_max_seq_len": 1024,
        "text_dim": config.text_dim,
    }


def text_encoder_config(config: TextEncoderConfig) -> dict[str, Any]:
    """``text_encoder/config.json`` of ``UMT5EncoderModel``."""
    return {
        "architectures": ["UMT5EncoderModel"],
        "classifier_dropout": 0.0,
        "d_ff": config.d_ff,
        "d_kv": config.d_kv,
        "d_model": config.d_model,
        "decoder_start_token_id": 0,
        "dense_act_fn": "gelu_new",
        "dropout_rate": 0.1,
        "eos_token_id": 1,
        "feed_forward_proj": "gated-gelu",
        "initializer_factor": 1.0,
        "is_encoder_decoder": True,
        "is_gated_act": True,
        "layer_norm_epsilon": config.eps,
        "model_type": "umt5",
        "num_decoder_layers": config.num_layers,
        "num_heads": config.num_heads,
        "num_layers": config.num_layers,
        "output_past": True,
        "pad_token_id": 0,
        "relative_attention_max_distance": config.max_distance,
        "relative_attention_num_buckets": config.num_buckets,
        "scalable_attention": True,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": _TRANSFORMERS,
        "use_cache": True,
        "vocab_size": config.vocab_size,
    }


def scheduler_config() -> dict[str, Any]:
    """``scheduler/scheduler_config.json`` as Wan 2.1 publishes it."""
    return {
        "_class_name": "UniPCMultistepScheduler",
        "_diffusers_version": _DIFFUSERS,
        "beta_end": 0.02,
        "beta_schedule": "linear",
        "beta_start": 0.0001,
        "disable_corrector": [],
        "dynamic_thresholding_ratio": 0.995,
        "final_sigmas_type": "zero",
        "flow_shift": 3.0,
        "lower_order_final": True,
        "num_train_timesteps": 1000,
        "predict_x0": True,
        "prediction_type": "flow_prediction",
        "rescale_betas_zero_snr": False,
        "sample_max_value": 1.0,
        "solver_order": 2,
        "solver_p": None,
        "solver_type": "bh2",
        "steps_offset": 0,
        "thresholding": False,
        "timestep_spacing": "linspace",
        "trained_betas": None,
        "use_beta_sigmas": False,
        "use_exponential_sigmas": False,
        "use_flow_sigmas": True,
        "use_karras_sigmas": False,
    }


def tokenizer_files() -> dict[str, dict[str, Any]]:
    """A byte-level tokenizer: any text encodes, ``</s>`` (1) ends it, ``<pad>`` is 0.

    The format of the `tokenizers` library, written out so that its bytes do not depend on the
    library's version. Ids 3 to 258 are the 256 bytes.
    """
    vocabulary = {PAD: 0, EOS: 1, UNK: 2}
    for letter in _byte_letters():
        vocabulary[letter] = len(vocabulary)
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": False,
    }
    special = [
        {
            "id": vocabulary[text],
            "content": text,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for text in (PAD, EOS, UNK)
    ]
    eos = {"SpecialToken": {"id": EOS, "type_id": 0}}
    tokenizer: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"Sequence": {"id": "A", "type_id": 0}}, eos],
            "pair": [
                {"Sequence": {"id": "A", "type_id": 0}},
                eos,
                {"Sequence": {"id": "B", "type_id": 0}},
                eos,
            ],
            "special_tokens": {EOS: {"id": EOS, "ids": [vocabulary[EOS]], "tokens": [EOS]}},
        },
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": [],
        },
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 512,
        "pad_token": PAD,
        "eos_token": EOS,
        "unk_token": UNK,
    }
    special_map = {"pad_token": PAD, "eos_token": EOS, "unk_token": UNK}
    return {
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": config,
        "special_tokens_map.json": special_map,
    }


def _byte_letters() -> list[str]:
    """The letter that stands for each byte in a byte-level vocabulary (GPT-2's table)."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def write_json(path: Path, fields: dict[str, Any]) -> None:
    """Write an indented JSON file; the same fields give the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(fields, indent=2, ensure_ascii=False) + "\n"
    path.write_bytes(text.encode("utf-8"))
