"""What `attach` puts into a model: hooks on the decoder and its attention layers, and the attention function."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from bico_ext.models.proof import Proof
from bico_ext.models.rotary import Pairing, Rotation, block_tables
from bico_ext.models.span_cache import SpanCache
from bico_ext.ops.attention import split_triangle_attention

IMPLEMENTATION = "bico"  # the name under which transformers looks up the attention function


def decoder_hook(decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, pairing: Pairing) -> Any:
    """Forward pre-hook of the decoder: check the call's arguments and prepare them for the attention layers.

    It refuses contradictory arguments and builds the tables of `block_positions`. In a call with `span_ids` it also
    keeps transformers from building a KV cache and an attention mask.
    """
    if kwargs.get("block_positions") is not None:
        kwargs = {**kwargs, "block_tables": _block_tables(decoder, kwargs, pairing)}
    if kwargs.get("span_ids") is None:
        for name in ("mirror", "span_cache"):
            if name in kwargs:
                raise ValueError(
                    f"{name} has an effect only together with span_ids, which the call lacks; give span_ids or drop "
                    f"{name}"
                )
        return args, kwargs
    config: Any = decoder.config
    if config._attn_implementation != IMPLEMENTATION:
        raise RuntimeError(
            f"span_ids need the attention implementation {IMPLEMENTATION!r}, which attach had set, but it is now "
            f"{config._attn_implementation!r}; detach and attach the model again"
        )
    if len(args) > 1:
        raise TypeError(
            f"with span_ids, only input_ids may be positional, got {len(args)} positional arguments; name the others"
        )
    if kwargs.get("attention_mask") is not None:
        raise ValueError("attention_mask cannot be given together with span_ids; mark padding with -1 in span_ids")
    for name in ("past_key_values", "cache"):  # transformers 5.24 renamed the first to the second
        if kwargs.get(name) is not None:
            raise ValueError(
                f"{name} cannot be given together with span_ids, which cover the whole sequence; "
                "leave one of the two out (generation needs no span_ids)"
            )
    output_attentions = kwargs.get("output_attentions")
    if config.output_attentions if output_attentions is None else output_attentions:
        raise ValueError(
            "output_attentions is not available with span_ids, because the attention matrix is never built"
        )
    # transformers passes a 4-D mask through unchanged. Without one it would build a [B, 1, S, S] mask for packed
    # position ids, and under torch.compile for any position ids.
    unused_mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=kwargs["span_ids"].device)
    return args, {**kwargs, "attention_mask": unused_mask, "use_cache": False}


def _block_tables(decoder: nn.Module, kwargs: dict[str, Any], pairing: Pairing) -> tuple[Tensor, Tensor]:
    """Return cos and sin for the call's `block_positions`, in the layout of the decoder's own tables."""
    name = type(decoder).__name__
    if kwargs.get("position_ids") is not None:
        raise ValueError("position_ids cannot be given together with block_positions; leave one of the two out")
    inner: Any = decoder
    if not hasattr(inner, "rotary_emb"):
        raise TypeError(f"{name} has no rotary_emb module, which block_positions need; use position_ids")
    return block_tables(inner.rotary_emb, kwargs["block_positions"], pairing, inner.get_input_embeddings().weight.dtype)


def output_hook(decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    """Forward hook of the decoder: keep the last hidden states at the call's `output_positions`."""
    if kwargs.get("output_positions") is not None:
        hidden = output.last_hidden_state.flatten(0, 1)  # [B * S, E]
        output.last_hidden_state = hidden.index_select(0, kwargs["output_positions"])[None]  # [1, N, E]
    return output


def attention_hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, pairing: Pairing) -> Any:
    """Forward pre-hook of an attention layer: pass (cos, sin) on and give the layer itself an identity rotation.

    It must stay pure, because gradient checkpointing runs it again.
    """
    if kwargs.get("block_tables") is not None:
        kwargs = {**kwargs, "position_embeddings": kwargs["block_tables"]}
    if kwargs.get("span_ids") is None:
        return args, kwargs
    tables = kwargs.get("position_embeddings")
    if not (isinstance(tables, (tuple, list)) and len(tables) == 2 and all(isinstance(t, Tensor) for t in tables)):
        raise TypeError(
            f"{type(layer).__name__} must be given position_embeddings=(cos, sin) by name, got {type(tables).__name__}"
        )
    cos, sin = tables
    # During the proof the factor is 2: a layer that normalises q and k after the rotation undoes it and is detected.
    # Under autocast, tables in float32 would make q and k float32, which the op would only cast back.
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device := cos.device.type) else cos.dtype
    factor = cos.new_full((), 2.0 if kwargs.get("attach_proof") is not None else 1.0, dtype=dtype)
    identity = (factor.expand_as(cos), torch.zeros_like(factor).expand_as(sin))
    rotation = Rotation(pairing.by_element(cos), pairing.by_element(sin), pairing)
    return args, {**kwargs, "position_embeddings": identity, "rotation": rotation}


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    span_ids: Tensor | None = None,
    mirror: bool = True,
    rotation: Rotation | None = None,
    attach_proof: Proof | None = None,
    span_cache: SpanCache | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Compute attention for transformers: query [B, Hq, S, D]; key, value [B, Hkv, S, D] -> [B, S, Hq, D]."""
    name = type(module).__name__
    if span_ids is not None or attach_proof is not None:
        for unsupported in ("sliding_window", "softcap", "s_aux", "position_bias"):
            if kwargs.get(unsupported) is not None:
                raise TypeError(f"{name} uses {unsupported}, which split-triangle attention does not support")
    if span_ids is None:
        stock_out, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        if attach_proof is not None:
            attach_proof.stock[module] = (query, key, stock_out)
        return stock_out, None

    if rotation is None:
        raise RuntimeError(
            f"{name} got span_ids but lacks the hook of attach; call attach(model), do not set attn_implementation"
        )
    expected = [query.shape[0], query.shape[2]]
    if span_ids.dtype != torch.int32 or list(span_ids.shape) != expected:
        got = f"{str(span_ids.dtype).removeprefix('torch.')} {list(span_ids.shape)}"
        remedy = "; use span_ids.int()" if span_ids.dtype != torch.int32 else ""
        raise ValueError(f"span_ids must be int32 [B, S] = {expected}, got {got}{remedy}")
    if dropout > 0:
        raise ValueError(
            f"{name} asks for attention dropout {dropout}, which split-triangle attention does not support; "
            "set config.attention_dropout = 0 before the model is built"
        )
    if attention_mask is not None and attention_mask.numel() > 1:
        raise TypeError(f"{name} makes an attention mask of its own, which split-triangle attention would ignore")
    if span_cache is not None:
        if module in span_cache:  # the context is there, and this is the next token of the span
            return span_cache.attend(module, query, key, value, rotation, scaling).transpose(1, 2), None
        span_cache.store(module, key, value, span_ids, rotation, mirror)
    if attach_proof is not None:
        doubled = torch.arange(query.shape[-1], device=query.device) < rotation.cos.shape[-1]  # [D]
        query, key = (torch.where(doubled, x / 2, x) for x in (query, key))
    out: Any = split_triangle_attention(
        query,
        key,
        value,
        rotation.cos,
        rotation.sin,
        span_ids=span_ids,
        cu_seqlens=kwargs.get("cu_seq_lens_q"),
        scale=scaling,
        mirror=mirror,
        interleaved=rotation.pairing.interleaved,
    )
    out = out.transpose(1, 2)  # [B, S, Hq, D]
    return (out if attach_proof is None else attach_proof.judge(module, query, key, out, rotation)), None
