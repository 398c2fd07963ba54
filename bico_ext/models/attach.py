"""`attach`: gives a Hugging Face RoPE model split-triangle attention in place.

It copies no modelling code and adds nothing to checkpoints. transformers rotates q and k inside each attention module
and passes them to an attention function that it looks up by name. `attach` registers such a function under the name
"bico" and puts a forward pre-hook on each attention module. When a call carries `span_ids`, the hook passes the
module's (cos, sin) to the function as a keyword argument and gives the module itself (ones, zeros), a rotation that
changes nothing. The function therefore receives the un-rotated q and k together with the real tables. Without
`span_ids` the function is transformers' own SDPA attention. `block_positions` replace (cos, sin) by those of
two-dimensional positions, with or without `span_ids`. `output_positions` are handled by a forward hook on the decoder,
so that whatever the model does with its hidden states, it does with the selected ones only.
"""

import inspect
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from bico_ext.models.proof import Proof, prove
from bico_ext.models.rotary import Pairing, Rotation, block_tables, probe_pairing
from bico_ext.ops.attention import split_triangle_attention

IMPLEMENTATION = "bico"

Model = TypeVar("Model", bound=nn.Module)


def attach(model: Model) -> Model:
    """Make `model(..., span_ids=...)` run split-triangle attention; calls without `span_ids` stay stock.

    The model is changed in place. Attach it before or after PEFT wraps it, and before `torch.compile`.

    A call with `span_ids` returns the stock output class with `past_key_values=None`: no KV cache is built, whatever
    `use_cache` says. `span_ids` are int32 [B, S]: -1 for a token that is never a key (padding or placeholder), 0 for
    context, s > 0 for a span that is written autoregressively, and 2**31 - 1 (`bico_ext.ops.reference.CAUSAL_CONTEXT`)
    for context that is read causally. Mark padding with -1 and leave `attention_mask` out.
    Packed sequences (B = 1) need `cu_seq_lens_q`, int32 [N + 1], as `DataCollatorWithFlattening` makes them with
    `return_flash_attn_kwargs=True`. Restarting `position_ids` alone does not separate the sequences.

    Calls without `span_ids` (generation, left padding, KV cache) use transformers' SDPA attention, even if the model
    was loaded with another implementation.

    A call takes three more arguments. `mirror=False` (only with `span_ids`; default True) keeps later keys in the plus
    frame R(m), which is plain bidirectional RoPE attention. `block_positions`, int64 [B, 2, S], are the
    two-dimensional positions of ChatGLM-6B and replace `position_ids`: the first half of a head's pairs is rotated by
    the first position (in the text), the second half by the second position (in a block). Without `span_ids` they also
    work with a KV cache. `output_positions`, int64 [N], select tokens by their index in the flattened batch (row * S +
    column): the decoder returns their last hidden states as [1, N, E], so that the logits are [1, N, V], and labels are
    [1, N]. `bico_ext.objectives.training_sequence.labelled_only` makes both.

    `state_dict` and `config.json` do not change. A saved model is therefore a stock model; attach it again after
    loading. A model that is already attached is returned as it is. Two forwards of 32 random embeddings prove that
    every layer follows `span_ids`; they do not change the random state, the training mode or the gradients.

    Args:
        model: a transformers causal LM or decoder, or a PEFT model around one. All its attention modules must take
            `position_embeddings=(cos, sin)` and rotate the first elements of a head in pairs: (i, i + R/2), as in
            Llama, Qwen2 and Mistral, or (2i, 2i + 1), as in GLM and Cohere.

    Returns:
        The same object.

    Raises:
        TypeError: the model cannot be attached: it has other positions or another pairing, a layer that `span_ids` do
            not reach, an attention mask of its own, a sliding window, soft-capping, attention sinks, or weights on the
            meta device. The model is left as it was.

    Example:
        >>> import torch
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> from bico_ext.models.attach import attach
        >>> config = LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        ...                      vocab_size=16)
        >>> model = attach(LlamaForCausalLM(config))
        >>> span_ids = torch.zeros(1, 6, dtype=torch.int32)
        >>> model(input_ids=torch.arange(6)[None], span_ids=span_ids).logits.shape
        torch.Size([1, 6, 16])
    """
    inner = _pretrained(model)
    if hasattr(inner, "_bico_attachment"):
        return model
    layers = _rotary_layers(inner)
    AttentionInterface.register(IMPLEMENTATION, _attention)
    AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)  # transformers drops padding for an unknown name
    pairing = probe_pairing(type(next(iter(layers.values()))))  # one for all layers: the proof finds one that differs
    hooks = [(inner.base_model, _decoder_hook), *((layer, _attention_hook) for layer in layers.values())]
    handles = [
        module.register_forward_pre_hook(partial(hook, pairing=pairing), with_kwargs=True) for module, hook in hooks
    ]
    handles.append(inner.base_model.register_forward_hook(_output_hook, with_kwargs=True))
    attachment: Any = _Attachment(inner.config._attn_implementation, handles)
    inner._bico_attachment = attachment
    inner.set_attn_implementation(IMPLEMENTATION)
    try:
        prove(model, inner, layers)
    except BaseException as error:
        detach(model)
        if isinstance(error, (RuntimeError, ValueError)):
            raise TypeError(f"{type(inner).__name__} cannot have split-triangle attention: {error}") from error
        raise
    return model


def detach(model: Model) -> Model:
    """Undo `attach` in place: remove the hooks and restore the attention implementation that the model had before.

    Args:
        model: an attached model, or a PEFT model around one.

    Returns:
        The same object.

    Raises:
        RuntimeError: the model is not attached.

    Example:
        >>> model = detach(attach(model))  # doctest: +SKIP
    """
    inner = _attached(model)
    attachment: Any = inner._bico_attachment
    for handle in attachment.handles:
        handle.remove()
    del inner._bico_attachment
    inner.set_attn_implementation(attachment.stock_implementation)
    return model


def check_attached(model: nn.Module) -> None:
    """Prove again, by two forwards of 32 random embeddings, that every attention layer of `model` follows `span_ids`.

    A stock model silently ignores `span_ids`, so call this before training.

    Args:
        model: an attached model, or a PEFT model around one.

    Raises:
        RuntimeError: the model is not attached, or its attention implementation was changed afterwards.
        TypeError: a layer does not compute split-triangle attention, as in `attach`.

    Example:
        >>> check_attached(attach(model))  # doctest: +SKIP
    """
    inner = _attached(model)
    prove(model, inner, _rotary_layers(inner))


@dataclass
class _Attachment:
    """What `detach` needs.

    It is stored on the model, so that a deep copy of an attached model is attached, too.
    """

    stock_implementation: str
    handles: list[RemovableHandle]


def _decoder_hook(decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, pairing: Pairing) -> Any:
    """Forward pre-hook of the decoder: check the call's arguments and prepare them for the attention layers.

    It refuses contradictory arguments and builds the tables of `block_positions`. In a call with `span_ids` it also
    keeps transformers from building a KV cache and an attention mask.
    """
    if kwargs.get("block_positions") is not None:
        kwargs = {**kwargs, "block_tables": _block_tables(decoder, kwargs, pairing)}
    if kwargs.get("span_ids") is None:
        if "mirror" in kwargs:
            raise ValueError(
                "mirror has an effect only together with span_ids, which the call lacks; give span_ids or drop mirror"
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


def _output_hook(decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    """Forward hook of the decoder: keep the last hidden states at the call's `output_positions`."""
    if kwargs.get("output_positions") is not None:
        hidden = output.last_hidden_state.flatten(0, 1)  # [B * S, E]
        output.last_hidden_state = hidden.index_select(0, kwargs["output_positions"])[None]  # [1, N, E]
    return output


def _attention_hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, pairing: Pairing) -> Any:
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


def _attention(
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


def _pretrained(model: nn.Module) -> PreTrainedModel:
    """Return the transformers model itself, without PEFT's wrapper."""
    inner: Any = model
    if hasattr(inner, "get_base_model"):
        inner = inner.get_base_model()
    if not isinstance(inner, PreTrainedModel):
        raise TypeError(
            f"model must be a transformers PreTrainedModel or a PEFT model around one, got {type(inner).__name__}; "
            "take it out of its wrapper (torch.compile, DDP) first"
        )
    return inner


def _attached(model: nn.Module) -> PreTrainedModel:
    """Return the transformers model itself, or raise RuntimeError if it is not attached."""
    inner = _pretrained(model)
    if not hasattr(inner, "_bico_attachment"):
        raise RuntimeError(f"{type(inner).__name__} is not attached; call attach(model) first")
    return inner


def _rotary_layers(inner: PreTrainedModel) -> dict[str, nn.Module]:
    """Return the attention modules by name; every layer must have one that takes `position_embeddings`."""
    layers = {
        name: module
        for name, module in inner.named_modules()
        if "Attention" in type(module).__name__
        and "position_embeddings" in inspect.signature(type(module).forward).parameters
    }
    expected = inner.config.get_text_config().num_hidden_layers
    if len(layers) != expected:
        raise TypeError(
            f"{type(inner).__name__} has {expected} layers but {len(layers)} attention modules that take "
            "position_embeddings; split-triangle attention needs rotary positions in every layer"
        )
    return layers
