"""Small random models whose attention is far from uniform, for the tests of `attach`."""

from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

LENGTH = 19
ROPE = {
    "default": {"rope_type": "default", "rope_theta": 10000.0},
    "linear": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
}


def tiny_llama(rope: str = "default", dtype: torch.dtype = torch.float32, **overrides: object) -> Any:
    """A Llama with two layers, 4 query heads and 2 key heads of width 16; large weights make attention non-uniform."""
    settings: dict = {
        "vocab_size": 50,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "initializer_range": 0.1,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": None,
        "rope_parameters": ROPE[rope],
    }
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**(settings | overrides))).eval().to(dtype=dtype)


def tokens(*shape: int) -> Tensor:
    return torch.randint(2, 50, shape, generator=torch.Generator().manual_seed(1))


def some_span_ids(batch: int, length: int = LENGTH) -> Tensor:
    """Context, two spans and a placeholder in every row."""
    span_ids = torch.zeros(batch, length, dtype=torch.int32)
    span_ids[:, 3] = -1
    span_ids[:, 5:8] = 1
    span_ids[:, 11:15] = 2
    return span_ids


def relative(actual: Tensor, expected: Tensor) -> float:
    return ((actual.double() - expected.double()).norm() / expected.double().norm()).item()


SMALL = {
    "vocab_size": 50,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "initializer_range": 0.2,
}


def tiny_family(family: str, **overrides: object) -> Any:
    own: dict = {
        "mistral": {"sliding_window": None},
        "granite": {"attention_multiplier": 0.1},
        "hunyuan_v1_dense": {"head_dim": 16},
        "glm": {"head_dim": 16},
        "glm4": {"head_dim": 16},
        "helium": {"head_dim": 16},
        "ernie4_5": {"head_dim": 16},
        "smollm3": {"no_rope_layers": [1, 0, 1, 1]},
        "deepseek_v3": {"num_key_value_heads": 4},
    }
    settings = SMALL | own.get(family, {}) | overrides
    if family == "gpt2":
        settings = {"vocab_size": 50, "n_embd": 64, "n_layer": 2, "n_head": 4}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **settings)).eval()
