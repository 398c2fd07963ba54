"""`attach`: gives a Hugging Face RoPE model split-triangle attention in place.

It copies no modelling code and adds nothing to checkpoints. transformers rotates q and k inside each attention module
and passes them to an attention function that it looks up by name. Ours is registered under the name "bico". `attach`
selects it and puts a forward pre-hook on each attention module. When a call carries `span_ids`, the hook passes the
module's (cos, sin) to the function as a keyword argument and gives the module itself (ones, zeros), a rotation that
changes nothing. The function therefore receives the un-rotated q and k together with the real tables. Without
`span_ids` the function is transformers' own SDPA attention. `block_positions` replace (cos, sin) by those of
two-dimensional positions, with or without `span_ids`. `output_positions` are handled by a forward hook on the decoder,
so that whatever the model does with its hidden states, it does with the selected ones only.
"""

import inspect
from typing import Any, TypeVar

from torch import nn
from transformers import PreTrainedModel

from bico_ext.models.checkpoints import check_adapters
from bico_ext.models.hooks import IMPLEMENTATION, Attachment
from bico_ext.models.proof import prove_attention, prove_separation
from bico_ext.models.rotary import probe_pairing

Model = TypeVar("Model", bound=nn.Module)


def attach(
    model: Model, *, bidirectional: bool = False, mirror: bool = True, allow_causal_layers: bool = False
) -> Model:
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

    In layers with a sliding window (Mistral, Gemma 3) it reaches to both sides: a query sees keys fewer than `window`
    places away in its row, whatever their positions. Layers that do not rotate q and k (SmolLM3, Cohere2) have no
    frames: they follow `span_ids` alone.

    `state_dict` and `config.json` do not change. A saved model is therefore a stock model; attach it again after
    loading. A copy of an attached model is attached, be it a deep copy or one that another process reads from a pickle.
    A model that is already attached is returned as it is, so `bidirectional` then needs `detach` first. Three
    forwards of 32 random embeddings prove that every layer follows `span_ids`; they do not change the random state, the
    training mode or the gradients.

    Args:
        model: a transformers causal LM or decoder, or a PEFT model around one. Its attention modules must take
            `position_embeddings=(cos, sin)` and rotate the first elements of a head in pairs: (i, i + R/2), as in
            Llama, Qwen2 and Mistral, or (2i, 2i + 1), as in GLM and Cohere. docs/families.md lists families.
        bidirectional: calls without `span_ids` read the whole text as context, for encoders (embeddings): tokens see
            each other in both directions, and padding is where `attention_mask` [B, S] is 0. Such a model has no KV
            cache, so `generate` refuses it; with `use_cache=False` it would read the prompt in both directions.
            Default: False.
        mirror: what calls without `span_ids` use for `mirror` if `bidirectional`; default True.
        allow_causal_layers: accept a model in which something else mixes tokens too (a convolution, a recurrence) and
            stays causal. Such a model takes no packed sequences. Default: False, which refuses it.

    Returns:
        The same object.

    Raises:
        TypeError: the model cannot be attached: it has other positions or another pairing, a layer that `span_ids` do
            not reach, an attention mask of its own, soft-capping, attention sinks, values and keys of different widths,
            layers that mix tokens without attention, or weights on the meta device. The model is left as it was.
        ValueError: mirror is False without bidirectional, or the model is attached with other values of the two.

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
    if not (mirror or bidirectional):
        raise ValueError(
            "mirror=False needs bidirectional=True, because it is about calls without span_ids; other calls take "
            "mirror=False themselves"
        )
    inner = _pretrained(model)
    present: Any = getattr(inner, "_bico_attachment", None)
    if present is not None:
        if bidirectional and (present.bidirectional, present.mirror) != (True, mirror):
            raise ValueError(
                f"{type(inner).__name__} is already attached with bidirectional={present.bidirectional}, mirror="
                f"{present.mirror}; detach(model) first"
            )
        return model
    layers = _rotary_layers(inner, allow_causal_layers)
    attachment: Any = Attachment(
        pairing=probe_pairing(
            type(next(iter(layers.values())))
        ),  # one for all layers: the proof finds one that differs
        stock_implementation=inner.config._attn_implementation,
        bidirectional=bidirectional,
        mirror=mirror,
        allow_causal_layers=allow_causal_layers,
    )
    inner._bico_attachment = attachment
    inner.set_attn_implementation(IMPLEMENTATION)
    try:
        attachment.hook(inner, layers, unrotated=set())
        unrotated = prove_attention(model, inner, layers)
        if unrotated:
            attachment.hook(inner, layers, unrotated)
            prove_attention(model, inner, layers)
        mixes = prove_separation(model, inner, allow_causal_layers)
        attachment.causal_layers = mixes or len(layers) < _layer_count(inner)
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
    attachment.remove()
    del inner._bico_attachment
    inner.set_attn_implementation(attachment.stock_implementation)
    return model


def check_attached(model: nn.Module) -> None:
    """Prove again, by three forwards of 32 random embeddings, that all attention layers of `model` follow `span_ids`.

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
    attachment: Any = inner._bico_attachment
    allow_causal_layers = attachment.allow_causal_layers
    prove_attention(model, inner, _rotary_layers(inner, allow_causal_layers))
    prove_separation(model, inner, allow_causal_layers)


def _pretrained(model: nn.Module) -> PreTrainedModel:
    """Return the transformers model itself, without PEFT's wrapper."""
    inner: Any = model
    check_adapters(model)
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


def _rotary_layers(inner: PreTrainedModel, allow_causal_layers: bool) -> dict[str, nn.Module]:
    """Return the attention modules that take `position_embeddings` by name; by default, every layer must have one."""
    layers = {
        name: module
        for name, module in inner.named_modules()
        if "Attention" in type(module).__name__
        and "position_embeddings" in inspect.signature(type(module).forward).parameters
    }
    expected = _layer_count(inner)
    if not layers or len(layers) > expected or (len(layers) < expected and not allow_causal_layers):
        accept = "; allow_causal_layers=True accepts other layers, which stay causal" if layers else ""
        raise TypeError(
            f"{type(inner).__name__} has {expected} layers but {len(layers)} attention modules that take "
            f"position_embeddings; split-triangle attention needs rotary positions in every layer{accept}"
        )
    return layers


def _layer_count(inner: PreTrainedModel) -> int:
    return inner.config.get_text_config().num_hidden_layers
