"""Families of transformers and what `attach` makes of them: small configurations, a dense definition, and the docs.

`python python_tests/models/families.py` writes docs/families.md.
"""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from tiny_models import SMALL
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, AutoConfig, AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from bico_ext.models import hooks
from bico_ext.models.attach import attach
from bico_ext.models.tokenization import sliding_window

PAGE = Path(__file__).parents[2] / "docs" / "families.md"

_HEAD = {"head_dim": 16}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
_ROUTED_EXPERTS = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_group": 1}
_LATENT = {"q_lora_rank": 32, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16}
_LATENT |= {"num_key_value_heads": 4, "head_dim": 8, "topk_group": 1}
_MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 32}
_DELTA = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
_MIXED = {"layer_types": ["conv", "full_attention", "conv", "full_attention"]}

# Families that attach, with what their small models need beside `SMALL`.
ATTACHED: dict[str, dict[str, Any]] = {
    "afmoe": _HEAD | _EXPERTS,
    "apertus": {},
    "arcee": {},
    "aria_text": {"moe_num_experts": 4},
    "bitnet": {},
    "cohere": {},
    "cohere2": _HEAD,
    "cwm": _HEAD,
    "dots1": _HEAD | _ROUTED_EXPERTS | {"n_shared_experts": 1, "topk_group": 1},
    "ernie4_5": _HEAD,
    "ernie4_5_moe": _HEAD | {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 32},
    "exaone4": _HEAD,
    "flex_olmo": _EXPERTS,
    "gemma": _HEAD,
    "gemma3_text": _HEAD,
    "glm": _HEAD,
    "glm4": _HEAD,
    "glm4_moe": _HEAD | _ROUTED_EXPERTS | {"topk_group": 1},
    "gpt_neox": {},
    "granite": {"attention_multiplier": 0.1},
    "granitemoe": _LOCAL_EXPERTS | {"attention_multiplier": 0.1},
    "granitemoeshared": _LOCAL_EXPERTS | {"attention_multiplier": 0.1, "shared_intermediate_size": 32},
    "helium": _HEAD,
    "jetmoe": {"kv_channels": 16, "num_local_experts": 4, "num_experts_per_tok": 2},
    "lfm2_moe": _HEAD | _EXPERTS | {"layer_types": ["full_attention"] * 4, "num_dense_layers": 2},
    "llama": {},
    "minimax_m2": _HEAD | _LOCAL_EXPERTS,
    "ministral": _HEAD,
    "ministral3": _HEAD,
    "mistral": _HEAD,
    "mixtral": _LOCAL_EXPERTS,
    "modernbert-decoder": {},
    "olmo": {},
    "olmo2": {},
    "olmo3": {},
    "olmoe": _EXPERTS,
    "persimmon": {},
    "phi": {},
    "phi3": {},
    "phimoe": _LOCAL_EXPERTS,
    "qwen2": {},
    "qwen2_moe": _EXPERTS | {"shared_expert_intermediate_size": 32},
    "qwen3": _HEAD,
    "qwen3_moe": _HEAD | _EXPERTS,
    "seed_oss": _HEAD,
    "smollm3": {},
    "solar_open": _HEAD | _ROUTED_EXPERTS | {"topk_group": 1},
    "starcoder2": {},
}

# Families that attach with `allow_causal_layers=True` only.
HYBRID: dict[str, dict[str, Any]] = {
    "bamba": _MAMBA | {"attn_layer_indices": [1, 3]},
    "falcon_h1": _HEAD | _MAMBA | {"mamba_d_ssm": 128},
    "lfm2": _HEAD | _MIXED,
    "qwen3_next": _HEAD | _EXPERTS | _DELTA,
}


@dataclass(frozen=True)
class Refusal:
    """Why a family is refused.

    Attributes:
        reason: for the docs.
        message: a pattern of the error.
        settings: what the small model needs beside `SMALL`.
    """

    reason: str
    message: str
    settings: dict[str, Any]


_NO_ROTARY = "no rotary positions"
_AFTER = "normalises or changes q and k after the rotation"
_UNREACHED = "its layers do not pass their arguments on to the attention function"
_SINKS = "attention sinks"
_SOFTCAP = "soft-capping of scores"
_WIDTHS = "keys and values of different widths (multi-head latent attention)"
REFUSED = {
    "codegen": Refusal("rotates inside its own attention code", "CodeGen", {"rotary_dim": 8}),
    "deepseek_v2": Refusal(_WIDTHS, "queries of width 24 but values of width 16", _LATENT | _ROUTED_EXPERTS),
    "deepseek_v3": Refusal(_WIDTHS, "queries of width 24 but values of width 16", _LATENT | _ROUTED_EXPERTS),
    "doge": Refusal("an attention mask of its own", "makes an attention mask of its own", {}),
    "falcon": Refusal(_UNREACHED, "FalconAttention: it never received span_ids and would stay causal", {}),
    "gemma2": Refusal(_SOFTCAP, "Gemma2Attention uses soft-capping of scores", _HEAD),
    "gpt2": Refusal(_NO_ROTARY, "GPT2LMHeadModel has 4 layers but 0 attention modules", {}),
    "gpt_oss": Refusal(_SINKS, "GptOssAttention uses attention sinks", _HEAD | _LOCAL_EXPERTS),
    "gptj": Refusal("rotates inside its own attention code", "GPTJ", {"rotary_dim": 8}),
    "hunyuan_v1_dense": Refusal(_AFTER, "HunYuanDenseV1Attention: it does not just rotate", _HEAD),
    "jamba": Refusal(
        _NO_ROTARY,
        "JambaForCausalLM has 4 layers but 0 attention modules",
        {"num_experts": 2, "attn_layer_period": 2, "attn_layer_offset": 0},
    ),
    "llama4_text": Refusal(
        "rotates by complex numbers", r"must be given position_embeddings=\(cos, sin\) by name, got Tensor", _HEAD
    ),
    "nemotron": Refusal(_UNREACHED, "NemotronAttention: it never received span_ids", {}),
    "opt": Refusal(_NO_ROTARY, "OPTForCausalLM has 4 layers but 0 attention modules", {}),
    "recurrent_gemma": Refusal(
        "attention in some layers only, without arguments",
        "RecurrentGemmaForCausalLM has 4 layers but 0 attention modules",
        {"lru_width": 64},
    ),
    "stablelm": Refusal(_UNREACHED, "StableLmAttention: it never received span_ids", {}),
}


def known(family: str) -> bool:
    """Whether the installed transformers has the family."""
    return family in CONFIG_MAPPING


def small(family: str, **overrides: Any) -> Any:
    """A model of a family with four layers of width 64 and random weights; large ones make attention non-uniform."""
    own = ATTACHED.get(family) or HYBRID.get(family) or (REFUSED[family].settings if family in REFUSED else {})
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **(SMALL | own | overrides))
    return AutoModelForCausalLM.from_config(config).eval()


# The dense definition. Each layer runs in its own code twice: with (cos, -sin), which gives q and k in the minus frame,
# and with (cos, sin). So nothing is assumed about the way in which a family rotates.


def dense_logits(model: Any, input_ids: Tensor, span_ids: Tensor, mirror: bool = True) -> Tensor:
    """Return the logits [B, S, V] of a stock model with split-triangle attention, computed in fp64."""
    model = copy.deepcopy(model).double()
    index = torch.arange(input_ids.shape[1])
    m_span, n_span = span_ids[:, :, None], span_ids[:, None, :]
    past = index[None, :] <= index[:, None]  # [m, n]
    distance = (index[None, :] - index[:, None]).abs()
    visible = ((n_span == 0) | ((n_span > 0) & (n_span == m_span) & past))[:, None]  # [B, 1, m, n]
    minus: dict[Any, tuple[Tensor, Tensor]] = {}
    finding_minus = False

    def attention(
        module: Any, q: Tensor, k: Tensor, v: Tensor, *_: Any, scaling: float | None = None, **own: Any
    ) -> Any:
        if finding_minus:
            minus[module] = (q, k)
            return torch.zeros_like(q).transpose(1, 2).contiguous(), None
        group = q.shape[1] // k.shape[1]

        def scores(q: Tensor, k: Tensor) -> Tensor:
            return q @ k.repeat_interleave(group, dim=1).mT * (q.shape[-1] ** -0.5 if scaling is None else scaling)

        kinds = getattr(module.config, "layer_types", None)
        slides = kinds is None or kinds[module.layer_idx] == "sliding_attention"
        window = own.get("sliding_window", getattr(module.config, "sliding_window", None) if slides else None)
        seen = visible if window is None else visible & (distance < window)
        plus_scores, minus_scores = scores(q, k), scores(*minus[module])
        chosen = torch.where(past, plus_scores, minus_scores) if mirror else plus_scores
        weights = chosen.masked_fill(~seen, -math.inf).softmax(-1).nan_to_num(0)
        return (weights @ v.repeat_interleave(group, dim=1)).transpose(1, 2).contiguous(), None

    def twice(layer: Any) -> Any:
        forward = layer.forward

        def run(*args: Any, **kwargs: Any) -> Any:
            nonlocal finding_minus
            cos, sin = kwargs["position_embeddings"]
            finding_minus = True
            forward(*args, **(kwargs | {"position_embeddings": (cos, -sin)}))
            finding_minus = False
            return forward(*args, **kwargs)

        return run

    AttentionInterface.register("dense-definition", attention)
    AttentionMaskInterface.register("dense-definition", lambda *_, **__: None)
    model.set_attn_implementation("dense-definition")
    model.set_experts_implementation("eager")  # the default does not know float64
    for module in model.modules():
        if "Attention" in type(module).__name__:
            module.forward = twice(module)
    with torch.no_grad():
        return model(input_ids=input_ids, use_cache=False).logits


# The page of the docs.


@contextmanager
def _recorded() -> Iterator[list[dict[str, Any]]]:
    """Record the head dimension, the rotary width and the pairing of each call of the op."""
    calls: list[dict[str, Any]] = []

    def record(q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, **options: Any) -> Tensor:
        calls.append({"share": cos.shape[-1] / q.shape[-1], "interleaved": options["interleaved"]})
        return torch.zeros_like(q)

    with patch.object(hooks, "split_triangle_attention", record):
        yield calls


def _row(family: str, allow_causal_layers: bool) -> str:
    model = attach(small(family), allow_causal_layers=allow_causal_layers)
    with torch.no_grad(), _recorded() as calls:
        model(input_ids=torch.arange(2, 10)[None], span_ids=torch.zeros(1, 8, dtype=torch.int32))
    rotated = [call for call in calls if call["share"]]
    pairs = "(2i, 2i + 1)" if rotated[0]["interleaved"] else "(i, i + R/2)"
    window = sliding_window(AutoConfig.for_model(family))
    return (
        f"| `{family}` | {pairs} | {rotated[0]['share']:.0%} | {len(calls) - len(rotated) or ''} | {window or ''} | "
        f"{'' if not allow_causal_layers else 'yes'} |"
    )


def page() -> str:
    """Return docs/families.md."""
    attached = [_row(family, False) for family in ATTACHED] + [_row(family, True) for family in HYBRID]
    refused = [f"| `{family}` | {refusal.reason} |" for family, refusal in REFUSED.items()]
    return _PAGE.format(attached="\n".join(attached), refused="\n".join(refused))


_PAGE = """# Model families

For readers who want to know whether `attach` takes their model, and why not if it does not. The page is generated by
`python python_tests/models/families.py` from small models with random weights; the tests check that it is current.
`attach` does not know these families by name. It examines any model of transformers, so other families may work, too,
and a model that it does not refuse computes split-triangle attention in every attention layer.

## Families that attach

In float32, the logits of each small model are within 1e-5 (relative) of a dense computation in float64, and calls
without `span_ids` are bit-equal to the stock model.

* **Layers without positions** do not rotate q and k, in small models of four layers. They follow `span_ids` and have no
  frames.
* **Window**: the sliding window of the default configuration, in tokens, in some layers or all. With `span_ids` it
  reaches to both sides: a query sees keys fewer than that many places away in its row.
* **Causal layers**: convolutions or recurrences mix tokens beside attention and stay causal, so the model is refused
  unless you say `attach(model, allow_causal_layers=True)`.

| family (`model_type`) | rotary pairs | rotated share of a head | layers without positions | window | causal layers |
|---|---|---|---|---|---|
{attached}

## Families that are refused

The error is a `TypeError` that names the reason, and the model is left as it was.

| family | reason |
|---|---|
{refused}
"""

if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
