"""Small graphs with the names, dtypes and dynamic axes of the real ones."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, pre_tokenizers, processors

TEXT_LENGTH, TEXT_DIM = 6, 8
LATENTS = (1, 16, 3, 2, 4)
FLOAT, HALF, BF16 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16
WORDS = ("</s>", "<unk>", "a", "red", "fox", "runs")


def tokenizer() -> Tokenizer:
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, "<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 0)]
    )
    made.enable_padding(length=TEXT_LENGTH)
    return made


def model_of(nodes: list, inputs: list, outputs: list, **constants: np.ndarray) -> onnx.ModelProto:
    """Checked model; inputs and outputs are (name, type, shape)."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(*each) for each in inputs],
        [helper.make_tensor_value_info(*each) for each in outputs],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model)
    return model


def text_encoder_graph(dtype: int) -> onnx.ModelProto:
    weight = np.random.default_rng(1).standard_normal((TEXT_DIM, TEXT_DIM)).astype(np.float32)
    return model_of(
        [
            helper.make_node("Cast", ["embeddings"], ["x"], to=FLOAT),
            helper.make_node("MatMul", ["x", "w"], ["y"]),
            helper.make_node("Cast", ["y"], ["hidden_states"], to=dtype),
        ],
        [("embeddings", dtype, [1, "length", TEXT_DIM])],
        [("hidden_states", dtype, [1, "length", TEXT_DIM])],
        w=weight,
    )


def time_tables_graph(timestep_type: int) -> onnx.ModelProto:
    """temb = timestep in fp32."""
    return model_of(
        [helper.make_node("Cast", ["timestep"], ["temb"], to=FLOAT)],
        [("timestep", timestep_type, [1])],
        [("temb", FLOAT, [1])],
    )


def text_kv_graph(dtype: int) -> onnx.ModelProto:
    shape = [1, TEXT_LENGTH, TEXT_DIM]
    return model_of(
        [
            helper.make_node("Cast", ["encoder_hidden_states"], ["x"], to=FLOAT),
            helper.make_node("Mul", ["x", "two"], ["y"]),
            helper.make_node("Cast", ["x"], ["blocks.0.attn2.k"], to=dtype),
            helper.make_node("Cast", ["y"], ["blocks.0.attn2.v"], to=dtype),
        ],
        [("encoder_hidden_states", dtype, shape)],
        [("blocks.0.attn2.k", dtype, shape), ("blocks.0.attn2.v", dtype, shape)],
        two=np.array(2, np.float32),
    )


def dit_graph(latents: tuple[int, ...], dtype: int) -> onnx.ModelProto:
    """velocity = latents * w + temb / 1000 * mean(k + v), w by channel, in external data."""
    weight = np.random.default_rng(2).standard_normal((1, latents[1], 1, 1, 1)) * 0.5
    text = [1, TEXT_LENGTH, TEXT_DIM]
    return model_of(
        [
            helper.make_node("Cast", ["latents"], ["x"], to=FLOAT),
            helper.make_node("Cast", ["blocks.0.attn2.k"], ["k"], to=FLOAT),
            helper.make_node("Cast", ["blocks.0.attn2.v"], ["v"], to=FLOAT),
            helper.make_node("Add", ["k", "v"], ["kv"]),
            helper.make_node("ReduceMean", ["kv"], ["mean"], keepdims=0),
            helper.make_node("Div", ["temb", "thousand"], ["time"]),
            helper.make_node("Mul", ["time", "mean"], ["shift"]),
            helper.make_node("Mul", ["x", "w"], ["scaled"]),
            helper.make_node("Add", ["scaled", "shift"], ["sum"]),
            helper.make_node("Cast", ["sum"], ["velocity"], to=dtype),
        ],
        [
            ("latents", dtype, latents),
            ("temb", FLOAT, [1]),
            ("blocks.0.attn2.k", dtype, text),
            ("blocks.0.attn2.v", dtype, text),
        ],
        [("velocity", dtype, latents)],
        w=weight.astype(np.float32),
        thousand=np.array(1000, np.float32),
    )


def decoder_graph(h: int, w: int) -> onnx.ModelProto:
    """Frame f = clamp(0.5 + 0.1 (f+1) latent + 0.2 previous + 0.1 the one before) in RGB, x8."""
    latent = [1, 16, h, w]
    return model_of(
        [
            # ONNX Runtime computes fp16 arithmetic in fp32 anyway: say so in the graph.
            *(
                helper.make_node("Cast", [name], [f"{name}_f"], to=FLOAT)
                for name in ("latent", "memory_0", "memory_1")
            ),
            helper.make_node("Mul", ["memory_0_f", "previous"], ["a"]),
            helper.make_node("Mul", ["memory_1_f", "before"], ["b"]),
            helper.make_node("Add", ["a", "b"], ["past"]),
            helper.make_node("Mul", ["latent_f", "growth"], ["now"]),
            helper.make_node("Add", ["now", "past"], ["sum"]),
            helper.make_node("Slice", ["sum", "start", "end", "axis"], ["rgb"]),
            helper.make_node("Add", ["rgb", "half"], ["shifted"]),
            helper.make_node("Clip", ["shifted", "zero", "one"], ["clipped"]),
            helper.make_node("Resize", ["clipped", "", "scales"], ["large"], mode="nearest"),
            helper.make_node("Mul", ["large", "levels"], ["scaled"]),
            helper.make_node("Transpose", ["scaled"], ["nhwc"], perm=[0, 2, 3, 1]),
            helper.make_node("Cast", ["nhwc"], ["frames"], to=TensorProto.UINT8),
            helper.make_node("Identity", ["latent"], ["memory_0_out"]),
            helper.make_node("Identity", ["memory_0"], ["memory_1_out"]),
        ],
        [("latent", HALF, latent), ("memory_0", HALF, latent), ("memory_1", HALF, latent)],
        [
            ("frames", TensorProto.UINT8, [4, 8 * h, 8 * w, 3]),
            ("memory_0_out", HALF, latent),
            ("memory_1_out", HALF, latent),
        ],
        previous=np.array(0.2, np.float32),
        before=np.array(0.1, np.float32),
        half=np.array(0.5, np.float32),
        growth=np.arange(1, 5, dtype=np.float32).reshape(4, 1, 1, 1) * np.float32(0.1),
        start=np.array([0], np.int64),
        end=np.array([3], np.int64),
        axis=np.array([1], np.int64),
        zero=np.array(0, np.float32),
        one=np.array(1, np.float32),
        scales=np.array([1, 1, 8, 8], np.float32),
        levels=np.array(255, np.float32),
    )
