"""What `attach` puts into a model: hooks on the decoder and its attention layers, and the attention function."""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from bico_ext.models.call_arguments import check_call_arguments, known_arguments
from bico_ext.models.proof import Proof
from bico_ext.models.rotary import Pairing, Rotation, block_tables
from bico_ext.models.span_cache import SpanCache
from bico_ext.models.tokenization import sliding_window
from bico_ext.ops.attention import split_triangle_attention

IMPLEMENTATION = "bico"  # the name under which transformers looks up the attention function

# Arguments of attention functions that ask for what the op does not compute.
_UNSUPPORTED = {"softcap": "soft-capping of scores", "s_aux": "attention sinks", "position_bias": "a position bias"}


@dataclass
class Attachment:
    """How a model is attached: its hooks, and what they need to know.

    It is stored on the model, so that a copy of an attached model is attached, too, also one that was pickled.

    Attributes:
        pairing: which elements of a head are rotated together.
        stock_implementation: the attention implementation that the model had before.
        bidirectional, mirror, allow_causal_layers: the arguments of `attach`.
        causal_layers: something other than attention mixes tokens, and stays causal.
        known_arguments: the keyword arguments that have an effect in a call.
    """

    pairing: Pairing
    stock_implementation: str
    bidirectional: bool
    mirror: bool
    allow_causal_layers: bool
    causal_layers: bool = False
    known_arguments: frozenset[str] = frozenset()
    _handles: list[RemovableHandle] = field(default_factory=list)

    def hook(self, inner: PreTrainedModel, layers: dict[str, nn.Module], unrotated: set[nn.Module]) -> None:
        """Put hooks on the decoder and its attention layers, in place of earlier ones.

        Args:
            inner: the model.
            layers: its attention modules by name.
            unrotated: those that do not rotate q and k.
        """
        self.remove()
        self.known_arguments = known_arguments(inner)
        before = partial(decoder_hook, attachment=self)
        self._handles = [
            inner.base_model.register_forward_pre_hook(before, with_kwargs=True),
            inner.base_model.register_forward_hook(output_hook, with_kwargs=True),
        ]
        for layer in layers.values():
            before = partial(attention_hook, pairing=self.pairing, rotates=layer not in unrotated)
            self._handles.append(layer.register_forward_pre_hook(before, with_kwargs=True))

    def remove(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles = []


def decoder_hook(decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, attachment: "Attachment") -> Any:
    """Forward pre-hook of the decoder: check the call's arguments and prepare them for the attention layers.

    It refuses contradictory arguments and builds the tables of `block_positions`. In a call with `span_ids` it also
    keeps transformers from building a KV cache and an attention mask. If the model is attached as `bidirectional`, a
    call without `span_ids` gets those of context, and `mirror` unless the call has its own.
    """
    check_call_arguments(kwargs, attachment.known_arguments)
    if kwargs.get("block_positions") is not None:
        kwargs = {**kwargs, "block_tables": _block_tables(decoder, kwargs, attachment.pairing)}
    if attachment.bidirectional and kwargs.get("span_ids") is None and kwargs.get("attach_proof") is None:
        span_ids = _context(decoder, args, kwargs)
        kwargs = {"mirror": attachment.mirror, **kwargs, "span_ids": span_ids, "attention_mask": None}
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
            "with span_ids, or attached with bidirectional=True, only input_ids may be positional, got "
            f"{len(args)} positional arguments; name the others"
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
            "output_attentions is not available with span_ids, or attached with bidirectional=True, because the "
            "attention matrix is never built"
        )
    if attachment.causal_layers:
        for name in ("cu_seq_lens_q", "span_cache"):
            if kwargs.get(name) is not None:
                raise ValueError(
                    f"{type(decoder).__name__} has layers that carry information from token to token without attention "
                    f"(allow_causal_layers), so it cannot take {name}; use padded sequences without a cache"
                )
    # transformers passes a 4-D mask through unchanged. Without one it would build a [B, 1, S, S] mask for packed
    # position ids, and under torch.compile for any position ids.
    unused_mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=kwargs["span_ids"].device)
    return args, {**kwargs, "attention_mask": unused_mask, "use_cache": False}


def _context(decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Return the span ids of a call that gives none: 0, and -1 where the attention mask hides padding."""
    if any(kwargs.get(name) is not None for name in ("past_key_values", "cache")):
        raise ValueError(
            f"{type(decoder).__name__} is attached with bidirectional=True, so it reads whole texts and has no KV "
            "cache; to generate, attach it without bidirectional"
        )
    tokens = next(x for x in (*args[:1], kwargs.get("input_ids"), kwargs.get("inputs_embeds")) if x is not None)
    mask = kwargs.get("attention_mask")
    if mask is None:
        return torch.zeros(tokens.shape[:2], dtype=torch.int32, device=tokens.device)
    if mask.shape != tokens.shape[:2]:
        raise ValueError(
            f"attention_mask must be [B, S] = {list(tokens.shape[:2])}, got {list(mask.shape)}; mark padding with 0, "
            "or give span_ids for other masks"
        )
    return (mask == 0).int().neg_()


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


def attention_hook(
    layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, pairing: Pairing, rotates: bool
) -> Any:
    """Forward pre-hook of an attention layer: pass (cos, sin) on and give the layer itself an identity rotation.

    A layer that does not rotate q and k ignores the tables that it gets; its rotation has no elements. The hook must
    stay pure, because gradient checkpointing runs it again.
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
    if not rotates:
        rotation = rotation.without_elements()
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
        for argument, what in _UNSUPPORTED.items():
            if kwargs.get(argument) is not None:
                raise TypeError(f"{name} uses {what}, which split-triangle attention does not support")
        if query.shape[-1] != value.shape[-1]:
            raise TypeError(
                f"{name} has queries of width {query.shape[-1]} but values of width {value.shape[-1]}, as in "
                "multi-head latent attention, which split-triangle attention does not support"
            )
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
        query, key, rotation = attach_proof.undo_factor(module, query, key, rotation)
    out: Any = split_triangle_attention(
        query,
        key,
        value,
        rotation.cos,
        rotation.sin,
        span_ids=span_ids,
        cu_seqlens=kwargs.get("cu_seq_lens_q"),
        window=_window(module, kwargs),
        scale=scaling,
        mirror=mirror and rotation.cos.shape[-1] > 0,  # without rotation both frames are the same
        interleaved=rotation.pairing.interleaved,
    )
    out = out.transpose(1, 2)  # [B, S, Hq, D]
    return (out if attach_proof is None else attach_proof.judge(module, query, key, out, rotation)), None


def _window(module: Any, kwargs: dict[str, Any]) -> int | None:
    """Return the sliding window of an attention layer; some families (Phi-3.5-MoE) have it in their masks only."""
    return kwargs["sliding_window"] if "sliding_window" in kwargs else sliding_window(module.config, module)


# Here, and not in `attach`: the process that reads a pickled model imports this module, but may never call `attach`.
AttentionInterface.register(IMPLEMENTATION, attention)
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)  # transformers drops padding for an unknown name
