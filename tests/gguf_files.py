"""Small GGUF files of random models, by llama.cpp's names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from transformers import AutoConfig, AutoModelForCausalLM

LAYERS, HIDDEN, HEADS, KV_HEADS, INNER, VOCABULARY, EXPERTS = 2, 64, 4, 2, 96, 320, 4

Q8 = gguf.GGMLQuantizationType.Q8_0


@dataclass(frozen=True)
class Sizes:
    """Sizes that transformers takes from its classes, not from the files, for some architectures."""

    head: int = 16
    expert: int = 32
    shared: int = 32


USUAL = {"qwen3": Sizes(head=128), "qwen3moe": Sizes(128, 768), "qwen2moe": Sizes(16, 1408, 5632)}


def numbers(architecture: str, sizes: Sizes) -> dict[str, int | float]:
    """What a file of this architecture says of its size, by llama.cpp's names."""
    said: dict[str, int | float] = {
        "context_length": 128,
        "block_count": LAYERS,
        "embedding_length": HIDDEN,
        "feed_forward_length": INNER,
        "attention.head_count": HEADS,
        "attention.head_count_kv": KV_HEADS,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.freq_base": 10000.0,
        "attention.key_length": sizes.head,
        "attention.value_length": sizes.head,
    }
    if architecture.endswith("moe"):
        said |= {"expert_count": EXPERTS, "expert_used_count": 2, "expert_feed_forward_length": sizes.expert}
        said |= {"expert_shared_feed_forward_length": sizes.shared}
    if architecture.startswith("gemma"):
        said |= {"attention.sliding_window": 32}
    return said


def shapes(architecture: str, sizes: Sizes) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The tensors of such a file, in torch's order of dimensions."""
    yield "token_embd.weight", (VOCABULARY, HIDDEN)
    yield "output_norm.weight", (HIDDEN,)
    if not architecture.startswith("gemma"):
        yield "output.weight", (VOCABULARY, HIDDEN)
    for layer in range(LAYERS):
        for name, shape in layer_shapes(architecture, sizes):
            yield f"blk.{layer}.{name}", shape


def layer_shapes(architecture: str, sizes: Sizes) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "attn_norm.weight", (HIDDEN,)
    yield "ffn_norm.weight", (HIDDEN,)
    for name, heads in (("attn_q", HEADS), ("attn_k", KV_HEADS), ("attn_v", KV_HEADS)):
        yield f"{name}.weight", (heads * sizes.head, HIDDEN)
        if architecture.startswith("qwen2"):
            yield f"{name}.bias", (heads * sizes.head,)
    yield "attn_output.weight", (HIDDEN, HEADS * sizes.head)
    if architecture in ("qwen3", "qwen3moe", "gemma3"):
        yield "attn_q_norm.weight", (sizes.head,)
        yield "attn_k_norm.weight", (sizes.head,)
    if architecture in ("gemma2", "gemma3"):
        yield "post_attention_norm.weight", (HIDDEN,)
        yield "post_ffw_norm.weight", (HIDDEN,)
    if architecture.endswith("moe"):
        yield "ffn_gate_inp.weight", (EXPERTS, HIDDEN)
        yield "ffn_gate_exps.weight", (EXPERTS, sizes.expert, HIDDEN)
        yield "ffn_up_exps.weight", (EXPERTS, sizes.expert, HIDDEN)
        yield "ffn_down_exps.weight", (EXPERTS, HIDDEN, sizes.expert)
    else:
        yield "ffn_gate.weight", (INNER, HIDDEN)
        yield "ffn_up.weight", (INNER, HIDDEN)
        yield "ffn_down.weight", (HIDDEN, INNER)
    if architecture == "qwen2moe":
        yield "ffn_gate_inp_shexp.weight", (HIDDEN,)
        yield "ffn_gate_shexp.weight", (sizes.shared, HIDDEN)
        yield "ffn_up_shexp.weight", (sizes.shared, HIDDEN)
        yield "ffn_down_shexp.weight", (HIDDEN, sizes.shared)


def add_vocabulary(writer: gguf.GGUFWriter, architecture: str) -> None:
    byte_level = not architecture.startswith(("gemma", "llama"))
    if byte_level:
        from transformers.convert_slow_tokenizer import bytes_to_unicode

        letters = list(bytes_to_unicode().values())
        specials = ["<s>", "</s>"]
        merges = ["t h", "th e"]
        tokens = [*specials, *letters, "th", "the"]
        writer.add_token_merges(merges)
    else:
        tokens = [
            "<unk>",
            "<s>",
            "</s>",
            *(f"<0x{byte:02X}>" for byte in range(256)),
            "▁",
            *"theabc",
            "th",
            "the",
            "▁the",
        ]
    tokens += [f"[unused{i}]" for i in range(VOCABULARY - len(tokens))]
    writer.add_tokenizer_model("gpt2" if byte_level else "llama")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in ("<unk>", "<s>", "</s>") else 1 for token in tokens])
    writer.add_token_scores([-float(i) for i in range(len(tokens))])
    writer.add_bos_token_id(tokens.index("<s>"))
    writer.add_eos_token_id(tokens.index("</s>"))


def write(
    path: Path, architecture: str, extra: dict[str, Any] | None = None, drop: str = "", sizes: Sizes = Sizes()
) -> Path:
    """A GGUF file of a small random model; matrices with rows of 32 and more are quantised, gates are half."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("small")
    for key, value in numbers(architecture, sizes).items():
        add = writer.add_uint32 if isinstance(value, int) else writer.add_float32
        add(f"{architecture}.{key}", value)
    for key, value in (extra or {}).items():
        (writer.add_string if isinstance(value, str) else writer.add_uint16)(key, value)
    add_vocabulary(writer, architecture)
    random = np.random.default_rng(0)
    for name, shape in shapes(architecture, sizes):
        values = random.standard_normal(shape, np.float32)
        if drop and name.endswith(drop):
            continue
        if len(shape) > 1 and shape[-1] % 32 == 0 and "inp" not in name:
            writer.add_tensor(name, gguf.quants.quantize(values, Q8), raw_dtype=Q8)
        else:
            writer.add_tensor(name, values.astype(np.float16) if "inp" in name else values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_by_names(directory: Path, architecture: str) -> Path:
    """A GGUF file with the tensors that transformers looks for in one of this architecture.

    A first file, which has no tensors yet, tells the configuration and with it their shapes.
    """
    import torch
    from transformers import modeling_gguf_pytorch_utils as tables

    beginning = writer_of(directory / "beginning.gguf", architecture)
    beginning.write_header_to_file()
    beginning.write_kv_data_to_file()
    beginning.close()
    config = AutoConfig.from_pretrained(directory, gguf_file="beginning.gguf")
    config.tie_word_embeddings = False
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    processor = tables.TENSOR_PROCESSORS.get(architecture, tables.TensorProcessor)(config=config.to_dict())
    names, shapes = tables.get_gguf_hf_weights_map(model, processor), model.state_dict()
    writer, random = writer_of(directory / "small.gguf", architecture), np.random.default_rng(0)
    for name, target in names.items():
        if target in shapes:
            shape = shape_in_file(architecture, name, tuple(shapes[target].shape))
            values = -np.abs(random.standard_normal(shape, np.float32)) - 0.1
            writer.add_tensor(
                name if name.endswith((".weight", ".bias")) or "exps" not in name else f"{name}.weight", values
            )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return directory / "small.gguf"


def writer_of(path: Path, architecture: str) -> gguf.GGUFWriter:
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("small")
    said = numbers(architecture, Sizes()) | {"vocab_size": VOCABULARY, "attention.layer_norm_epsilon": 1e-5}
    if architecture in ("gpt2", "bloom", "falcon"):
        said["attention.head_count_kv"] = HEADS
    if architecture == "minimax-m2":
        said |= {"expert_count": EXPERTS, "expert_used_count": 2}
    if architecture == "lfm2":
        said |= {"shortconv.l_cache": 3}
        del said["attention.head_count_kv"]
        writer.add_array("lfm2.attention.head_count_kv", [0, KV_HEADS])
    for key, value in said.items():
        (writer.add_uint32 if isinstance(value, int) else writer.add_float32)(f"{architecture}.{key}", value)
    add_vocabulary(writer, architecture)
    return writer


def shape_in_file(architecture: str, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    if "gate_exps" in name or "up_exps" in name:
        return (shape[0], shape[1] // 2, shape[2])
    if architecture == "gpt2" and name.endswith(
        (".attn_qkv.weight", "_down.weight", "_up.weight", "attn_output.weight")
    ):
        return shape[::-1]
    return (shape[0], shape[2]) if "conv" in name and len(shape) == 3 else shape
