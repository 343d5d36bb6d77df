"""Checkpoints with files that are damaged, missing, or of another model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from testkit.fault_tables.options import BUILD
from testkit.faults import (
    Fault,
    Plant,
    both,
    cut,
    directory,
    edit,
    flip,
    gone,
    grow,
    link,
    pipe,
    put,
    replace,
)

DIT = BUILD.replace("text_encoder", "dit")
DECODER = BUILD.replace("text_encoder", "decoder")
INDEX = "ck/model_index.json"
CONFIG = "ck/transformer/config.json"
SCHEDULER = "ck/scheduler/scheduler_config.json"
WEIGHTS = "ck/transformer/diffusion_pytorch_model.safetensors"
TEXT_CONFIG = "ck/text_encoder/config.json"
TEXT = "ck/text_encoder/model.safetensors"
TOKENIZER = "ck/tokenizer/tokenizer.json"
TAEHV = "ck/taew2_1.safetensors"

Tensors = dict[str, torch.Tensor]


def tensors(name: str, change: Callable[[Tensors], object]) -> Plant:
    """A weight file with other tensors."""

    def plant(folder: Path) -> None:
        held = load_file(folder / name)
        change(held)
        save_file(held, folder / name)

    return plant


def _first(held: Tensors) -> str:
    return next(name for name in sorted(held) if held[name].ndim == 2)


def _drop(held: Tensors) -> None:
    del held[_first(held)]


def _add(held: Tensors) -> None:
    held["blocks.99.mine"] = torch.ones(3)


def _narrow(held: Tensors) -> None:
    held[_first(held)] = held[_first(held)][:, :-16].contiguous()


def _integers(held: Tensors) -> None:
    held[_first(held)] = held[_first(held)].to(torch.int64)


def _with(value: float) -> Callable[[Tensors], None]:
    def change(held: Tensors) -> None:
        held[_first(held)][0, 0] = value

    return change


def _only_pickle(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "ck/transformer/pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def _outside(folder: Path) -> None:
    """An index whose shard lies beside the checkpoint."""
    (folder / WEIGHTS).rename(folder / "shard.safetensors")
    name = next(iter(load_file(folder / "shard.safetensors")))
    index = f'{{"weight_map": {{"{name}": "../../shard.safetensors"}}}}'
    (folder / f"{WEIGHTS}.index.json").write_text(index)


def _fault(
    name: str, command: str, words: str, plant: Plant, kind: str = "C", code: int = 2
) -> Fault:
    part = command.split("--components ")[1].split()[0]
    return Fault(f"checkpoint, {part}: {name}", kind, command, code, words, plant)


FAULTS = (
    _fault("no index", DIT, r"model_index\.json", gone(INDEX)),
    _fault("the index is a pipe", DIT, r"model_index\.json", pipe(INDEX), "M"),
    _fault("the index is a device", DIT, r"model_index\.json", link(INDEX, "/dev/zero"), "M"),
    _fault("the index is cut off", DIT, r"model_index\.json", cut(INDEX)),
    _fault("another pipeline", DIT, "FluxPipeline", edit(INDEX, "_class_name", "FluxPipeline")),
    _fault("a height of 16,000,000", DIT, "height",
           edit(INDEX, "_fastwan_shape.height", 16_000_000), "M"),
    _fault("frames in quotes", DIT, "num_frames",
           edit(INDEX, "_fastwan_shape.num_frames", "9"), "M"),
    _fault("a sibling by its name", BUILD.replace("--model FastWan-QAD-1.3B ", ""), "T2V-14B",
           edit(INDEX, "_name_or_path", "FastVideo/FastWan2.1-T2V-14B")),
    _fault("another solver", DIT, "DDIMScheduler",
           both(edit(SCHEDULER, "_class_name", "DDIMScheduler"),
                edit(INDEX, "scheduler", ["diffusers", "DDIMScheduler"]))),
    _fault("another prediction", DIT, "prediction_type|epsilon",
           edit(SCHEDULER, "prediction_type", "epsilon")),
    _fault("a shift in words", DIT, "shift", edit(SCHEDULER, "flow_shift", "three"), "M"),
    _fault("a shift of a million", DIT, "shift", edit(SCHEDULER, "flow_shift", 1e6), "M"),
    _fault("a second transformer", DIT, "transformer_2",
           edit(INDEX, "transformer_2", ["diffusers", "WanTransformer3DModel"])),
    _fault("a transformer of another class", DIT, "FluxTransformer2DModel",
           edit(INDEX, "transformer", ["diffusers", "FluxTransformer2DModel"])),
    _fault("layers without end", DIT, "num_layers", edit(CONFIG, "num_layers", 10**9), "M"),
    _fault("no layers", DIT, "num_layers", edit(CONFIG, "num_layers", 0), "M"),
    _fault("layers in quotes", DIT, "num_layers", edit(CONFIG, "num_layers", "2"), "M"),
    _fault("layers twice", DIT, "num_layers",
           replace(CONFIG, '"num_layers": 2', '"num_layers": 2, "num_layers": 30'), "M"),
    _fault("more layers than weights", DIT, "missing", edit(CONFIG, "num_layers", 3)),
    _fault("an eps that fp32 does not hold", DIT, "eps", edit(CONFIG, "eps", 1e-46), "M"),
    _fault("an eps of NaN", DIT, "NaN", replace(CONFIG, '"eps": ', '"eps": NaN, "x": '), "M"),
    _fault("heads of 64", DIT, "attention_head_dim", edit(CONFIG, "attention_head_dim", 64)),
    _fault("an image model", DIT, "image_dim", edit(CONFIG, "image_dim", 1280)),
    _fault("36 channels", DIT, "in_channels", edit(CONFIG, "in_channels", 36)),
    _fault("quantised already", DIT, "quantization_config",
           edit(CONFIG, "quantization_config", {"quant_method": "gguf"}), "H"),
    _fault("a huge configuration", DIT, r"too large.*config\.json",
           put(CONFIG, b" " * 2_000_000), "M"),
    _fault("no weights", DIT, "safetensors", gone(WEIGHTS)),
    _fault("weights as a pickle alone", DIT, "safetensors", _only_pickle, "H"),
    _fault("a GGUF file under the name", DIT, "safetensors", put(WEIGHTS, b"GGUF" + bytes(60)),
           "H"),
    _fault("weights cut off", DIT, "safetensors", cut(WEIGHTS, 100_000)),
    _fault("weights a byte longer", DIT, "safetensors", grow(WEIGHTS)),
    _fault("weights of no bytes", DIT, "safetensors", cut(WEIGHTS, 0)),
    _fault("a header beyond the file", DIT, "safetensors", put(WEIGHTS, b"\xff" * 7 + b"\x7f{}"),
           "M"),
    _fault("weights are a folder", DIT, "safetensors", directory(WEIGHTS)),
    _fault("weights are a pipe", DIT, "safetensors", pipe(WEIGHTS), "M"),
    _fault("weights are a device", DIT, "safetensors", link(WEIGHTS, "/dev/zero"), "M"),
    _fault("a link to itself", DIT, "safetensors", link(WEIGHTS, Path(WEIGHTS).name)),
    _fault("a shard outside", DIT, "outside", _outside),
    _fault("a tensor is missing", DIT, "missing", tensors(WEIGHTS, _drop)),
    _fault("a tensor too many", DIT, r"blocks\.99\.mine", tensors(WEIGHTS, _add)),
    _fault("a tensor is narrower", DIT, "shape", tensors(WEIGHTS, _narrow)),
    _fault("a tensor of integers", DIT, "int64|I64", tensors(WEIGHTS, _integers)),
    _fault("a weight that is NaN", DIT, "NaN", tensors(WEIGHTS, _with(float("nan"))), "E"),
    _fault("a weight that is Inf", DIT, "NaN or Inf", tensors(WEIGHTS, _with(float("inf"))), "E"),
    _fault("no text encoder", BUILD, "text_encoder", gone("ck/text_encoder")),
    _fault("another text encoder", BUILD, "model_type", edit(TEXT_CONFIG, "model_type", "t5")),
    _fault("a vocabulary without end", BUILD, "vocab_size",
           edit(TEXT_CONFIG, "vocab_size", 1 << 30), "M"),
    _fault("a width that the transformer does not take", BUILD, "channels",
           edit(TEXT_CONFIG, "d_model", 128)),
    _fault("a text weight that is NaN", BUILD, "NaN", tensors(TEXT, _with(float("nan"))), "E"),
    _fault("no tokenizer", BUILD, r"tokenizer\.json", gone("ck/tokenizer")),
    _fault("spiece alone", BUILD, r"tokenizer\.json",
           both(gone(TOKENIZER), put("ck/tokenizer/spiece.model")), "H"),
    _fault("a tokenizer that is a bracket", BUILD, "tokenizer", put(TOKENIZER, "{"), "M"),
    _fault("a tokenizer that is a pipe", BUILD, "tokenizer", pipe(TOKENIZER), "M"),
    _fault("no decoder", DECODER, "taew2_1", gone(TAEHV)),
    _fault("a decoder cut off", DECODER, "taew2_1", cut(TAEHV, 1000)),
    _fault("a decoder byte that breaks the header", DECODER, "taew2_1", flip(TAEHV, 9)),
    _fault("a state dict that is none", DECODER, r"taew2_1\.pth",
           both(gone(TAEHV), put("ck/taew2_1.pth", b"\x80\x21" * 50)), "H"),
    _fault("an encoder alone", DECODER, "decoder", tensors(TAEHV, lambda held: [
        held.update({f"encoder.{name}": held.pop(name)}) for name in list(held)])),
)  # fmt: skip
