"""A tiny Llama as the wheel of a package index carries it: a GGUF file in one or more parts, and its known entry."""

import hashlib
import zipfile
from pathlib import Path
from typing import Any

import gguf
import torch
from tiny_models import tiny_llama
from torch import Tensor

from bico_ext.models.known_models import KnownModel, Wheel

# GGUF's names of a Llama's weights.
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers": "blk",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
# 50, as many as the model has. Two merges: transformers 5.17 reads a list of one as a string.
TOKENS = ["<|endoftext|>", "<s>", "</s>", *map(chr, range(ord("!"), ord("N"))), "BE", "AD"]


def write_gguf(path: Path) -> Any:
    """Write a tiny Llama with its tokenizer, and return the model."""
    model = tiny_llama(eos_token_id=2)
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * (len(TOKENS) - 3))
    writer.add_token_merges(["A D", "B E"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    for name, weight in model.state_dict().items():
        if "q_proj" in name or "k_proj" in name:
            weight = neighbours(weight, config.head_dim)
        for theirs, ours in NAMES.items():
            name = name.replace(theirs, ours)
        writer.add_tensor(name, weight.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def neighbours(weight: Tensor, head_dim: int) -> Tensor:
    """Reorder the rows of q or k: GGUF's Llama rotates neighbouring elements, transformers' element i with i + D/2."""
    return weight.view(-1, 2, head_dim // 2, weight.shape[-1]).transpose(1, 2).reshape(weight.shape).contiguous()


def write_wheels(folder: Path, content: bytes, parts: int = 1) -> tuple[Wheel, ...]:
    """Write the parts of a file into one wheel each, which pip accepts."""
    size = -(-len(content) // parts)
    wheels = []
    for part in range(parts):
        path = folder / f"tiny_llama{part}-1.0-py3-none-any.whl"
        info = f"tiny_llama{part}-1.0.dist-info"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("data/part", content[part * size : (part + 1) * size])
            archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: tiny-llama{part}\nVersion: 1.0\n")
            archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        wheels.append(Wheel(f"tiny-llama{part}", "1.0", digest, "data/part"))
    return tuple(wheels)


def known_tiny(wheels: tuple[Wheel, ...], model: Any, **overrides: Any) -> KnownModel:
    """The entry of the tiny model, with what it really writes after its prompt."""
    prompt = torch.tensor([[TOKENS.index("AD"), TOKENS.index("A")]])
    written = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=4, do_sample=False)
    settings: dict[str, Any] = {
        "name": "tiny",
        "wheels": wheels,
        "licence": "CC0-1.0",
        "source": "https://example.org",
        "prompt": "ADA",
        "completion": "".join(TOKENS[index] for index in written[0, 2:]),
        "download_bytes": 1,
        "disk_bytes": 1,
    }
    return KnownModel(**(settings | overrides))
