"""Gives a Hugging Face RoPE model split-triangle attention, in place: no copied modelling code, nothing in checkpoints.

transformers rotates q and k inside each attention module and hands them to a function looked up by name. `attach` puts
such a function under the name "bico" and a forward pre-hook on each attention module. When a call carries `span_ids`,
the hook keeps the module's (cos, sin) aside and gives it (ones, zeros), a rotation that changes nothing, so that the
function receives the un-rotated q and k and the real tables. Without `span_ids` the function is transformers' own SDPA.
`block_positions` replace (cos, sin) by those of two-dimensional positions, with `span_ids` and without.
"""

import inspect
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from bico_ext.models.rotary import Pairing, block_tables, probe
from bico_ext.ops.attention import split_triangle_attention
from bico_ext.ops.reference import rotate

IMPLEMENTATION = "bico"
PROOF_LENGTH = 32  # tokens; enough for the faster pairs of a head to turn by a radian, so a wrong pairing shows

Model = TypeVar("Model", bound=nn.Module)


def attach(model: Model) -> Model:
    """Let `model(..., span_ids=...)` run split-triangle attention; without `span_ids` the model stays stock.

    Works in place, before or after PEFT wraps the model, and before `torch.compile`. A call with `span_ids` (int32
    [B, S]; -1 never a key: padding or placeholder, 0 context, s > 0 a span written autoregressively) returns the stock
    output class, with `past_key_values=None`: no KV cache is built, whatever `use_cache` says. Padding is -1 in
    `span_ids` and takes no `attention_mask`. Packed sequences (B = 1) need `cu_seq_lens_q`, int32 [N + 1] as from
    `DataCollatorWithFlattening(return_flash_attn_kwargs=True)`: restarting `position_ids` alone do not separate them.
    Calls without `span_ids` (generation, left padding, KV cache) go through transformers' SDPA attention, also when
    the model was loaded with another one.

    Two more arguments of the call: `mirror=False` (beside `span_ids`; default True) keeps the sines for later keys,
    that is plain bidirectional rotary attention. `block_positions`, int64 [B, 2, S], are ChatGLM-6B's positions and
    take the place of `position_ids`: the first half of a head's pairs turn with the first (the place in the text), the
    second half with the second (the place in a block); without `span_ids` they work with a KV cache, too.

    `state_dict` and `config.json` do not change, so a saved model is a stock model: attach again after loading. An
    attached model is returned as it is. Two forwards of 32 made-up tokens prove the result; they leave the random
    state, the training mode and the gradients alone.

    Args:
        model: a transformers causal LM or decoder, or a PEFT model around one, whose attention modules all take
            `position_embeddings=(cos, sin)` and rotate the first elements of a head in pairs (i, i + R/2), as Llama,
            Qwen2 and Mistral do, or (2i, 2i + 1), as GLM and Cohere do.

    Returns:
        The same object.

    Raises:
        TypeError: not such a model (other positions or pairing, a layer that `span_ids` do not reach, a mask of its
            own, a sliding window, soft-capping, sinks, weights on the meta device). The model is left as it was.

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
    AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)  # an unregistered name would silently drop padding
    pairing = probe(type(next(iter(layers.values()))))  # one for all: the proof finds a layer that differs
    hooks = [(inner.base_model, _decoder_hook), *((layer, _attention_hook) for layer in layers.values())]
    handles = [
        module.register_forward_pre_hook(partial(hook, pairing=pairing), with_kwargs=True) for module, hook in hooks
    ]
    attachment: Any = _Attachment(inner.config._attn_implementation, handles)
    inner._bico_attachment = attachment
    inner.set_attn_implementation(IMPLEMENTATION)
    try:
        _prove(model, inner, layers)
    except BaseException as error:
        detach(model)
        if isinstance(error, (RuntimeError, ValueError)):
            raise TypeError(f"{type(inner).__name__} cannot have split-triangle attention: {error}") from error
        raise
    return model


def detach(model: Model) -> Model:
    """Undo `attach`, in place: remove the hooks and restore the attention implementation the model had.

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
    """Prove again, by two forwards of 32 tokens, that every attention layer of `model` follows `span_ids`.

    A stock model ignores `span_ids` without a word, so call this before training.

    Args:
        model: an attached model, or a PEFT model around one.

    Raises:
        RuntimeError: the model is not attached, or its attention implementation was changed afterwards.
        TypeError: a layer does not compute split-triangle attention; as in `attach`.

    Example:
        >>> check_attached(attach(model))  # doctest: +SKIP
    """
    inner = _attached(model)
    _prove(model, inner, _rotary_layers(inner))


@dataclass
class _Attachment:
    """What `detach` needs. Kept on the model, so that a deep copy of an attached model is attached."""

    stock_implementation: str
    handles: list[RemovableHandle]


@dataclass(frozen=True)
class _Rotation:
    """What the attention hook keeps aside for the attention function: cos, sin [1 or B, S, R] by element."""

    cos: Tensor
    sin: Tensor
    pairing: Pairing


@dataclass(eq=False)
class _Proof:
    """Travels with the proof's two forwards as a keyword argument, as `span_ids` do, and collects what layers did."""

    stock: dict[nn.Module, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)  # rotated q, k; output
    agreed: set[nn.Module] = field(default_factory=set)
    faults: dict[nn.Module, str] = field(default_factory=dict)

    def judge(self, layer: nn.Module, q: Tensor, k: Tensor, out: Tensor, rotation: _Rotation) -> Tensor:
        """Compare a causal split-triangle layer (un-rotated q, k) with the stock one; return the stock output.

        With the stock output the next layer gets its stock input, so a wrong layer does not blame those after it.
        """
        stock_q, stock_k, stock_out = self.stock[layer]
        # Half precision rounds the two rotations differently (seen: 3e-3) and fp32 may run in TF32; a wrong one is off
        # by about 1.
        tolerance = 5e-2 if out.element_size() == 2 else 5e-3
        q, k = (
            rotate(x.float(), rotation.cos.float(), rotation.sin.float(), rotation.pairing.interleaved) for x in (q, k)
        )
        for fault, ours, theirs in (
            (f"it does not just rotate q's elements {rotation.pairing.elements}", q, stock_q.float()),
            (f"it does not just rotate k's elements {rotation.pairing.elements}", k, stock_k.float()),
            ("its output is not that of plain softmax attention", out.float(), stock_out.float()),
        ):
            if not (ours - theirs).norm() <= tolerance * theirs.norm():  # this way round, NaN is a fault too
                self.faults.setdefault(layer, fault)
                break
        else:
            self.agreed.add(layer)
        return stock_out


def _decoder_hook(decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, pairing: Pairing) -> Any:
    """Refuse contradictions, make the tables of block positions, and, with `span_ids`, prevent cache and mask."""
    if kwargs.get("block_positions") is not None:
        kwargs = {**kwargs, "block_tables": _block_tables(decoder, kwargs, pairing)}
    if kwargs.get("span_ids") is None:
        if "mirror" in kwargs:
            raise ValueError("mirror says how span_ids look ahead, and the call has none; give span_ids or drop mirror")
        return args, kwargs
    config: Any = decoder.config
    if config._attn_implementation != IMPLEMENTATION:
        raise RuntimeError(
            f"span_ids need the attention implementation {IMPLEMENTATION!r} that attach had set, but it is now "
            f"{config._attn_implementation!r}; detach and attach the model again"
        )
    if len(args) > 1:
        raise TypeError(f"beside span_ids only input_ids may be positional, got {len(args)} arguments; name the others")
    if kwargs.get("attention_mask") is not None:
        raise ValueError("attention_mask cannot be given together with span_ids; mark padding with -1 in span_ids")
    for name in ("past_key_values", "cache"):  # transformers 5.24 calls it by the second
        if kwargs.get(name) is not None:
            raise ValueError(
                f"{name} cannot be given together with span_ids, which cover the whole sequence; "
                "leave out one of the two (generation needs no span_ids)"
            )
    output_attentions = kwargs.get("output_attentions")
    if config.output_attentions if output_attentions is None else output_attentions:
        raise ValueError("output_attentions is not available with span_ids: the attention matrix is never built")
    # transformers hands a 4-D mask through as it is. Without one, packed position ids (and any, under torch.compile)
    # make it build a [B, 1, S, S] mask.
    unread = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=kwargs["span_ids"].device)
    return args, {**kwargs, "attention_mask": unread, "use_cache": False}


def _block_tables(decoder: nn.Module, kwargs: dict[str, Any], pairing: Pairing) -> tuple[Tensor, Tensor]:
    """cos and sin, as the decoder lists them, for the call's `block_positions`."""
    name = type(decoder).__name__
    if kwargs.get("position_ids") is not None:
        raise ValueError("position_ids cannot be given together with block_positions; leave out one of the two")
    inner: Any = decoder
    if not hasattr(inner, "rotary_emb"):
        raise TypeError(f"{name} has no rotary_emb module, which block_positions need; use position_ids")
    return block_tables(inner.rotary_emb, kwargs["block_positions"], pairing, inner.get_input_embeddings().weight.dtype)


def _attention_hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, pairing: Pairing) -> Any:
    """Put (cos, sin) aside and give the layer a rotation by nothing. Pure: gradient checkpointing runs it again."""
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
    # The proof doubles q and k: a layer that normalises after its rotation undoes that, and is found out.
    one = cos.new_full((), 2.0 if kwargs.get("attach_proof") is not None else 1.0)
    still = (one.expand_as(cos), sin.new_zeros(()).expand_as(sin))
    rotation = _Rotation(pairing.by_element(cos), pairing.by_element(sin), pairing)
    return args, {**kwargs, "position_embeddings": still, "rotation": rotation}


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    span_ids: Tensor | None = None,
    mirror: bool = True,
    rotation: _Rotation | None = None,
    attach_proof: _Proof | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function: query [B, Hq, S, D]; key, value [B, Hkv, S, D] -> [B, S, Hq, D]."""
    name = type(module).__name__
    if span_ids is not None or attach_proof is not None:
        for unsupported in ("sliding_window", "softcap", "s_aux", "position_bias"):
            if kwargs.get(unsupported) is not None:
                raise TypeError(f"{name} uses {unsupported}, which split-triangle attention does not have")
    if span_ids is None:
        stock_out, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        if attach_proof is not None:
            attach_proof.stock[module] = (query, key, stock_out)
        return stock_out, None

    if rotation is None:
        raise RuntimeError(f"{name} got span_ids but has no hook of ours; call attach(model), not attn_implementation")
    expected = [query.shape[0], query.shape[2]]
    if span_ids.dtype != torch.int32 or list(span_ids.shape) != expected:
        got = f"{str(span_ids.dtype).removeprefix('torch.')} {list(span_ids.shape)}"
        remedy = "; use span_ids.int()" if span_ids.dtype != torch.int32 else ""
        raise ValueError(f"span_ids must be int32 [B, S] = {expected}, got {got}{remedy}")
    if dropout > 0:
        raise ValueError(
            f"{name} asks for attention dropout {dropout}, which split-triangle attention does not have; "
            "set config.attention_dropout = 0 before the model is built"
        )
    if attention_mask is not None and attention_mask.numel() > 1:
        raise TypeError(f"{name} makes an attention mask of its own, which split-triangle attention would not read")
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


def _prove(model: nn.Module, inner: PreTrainedModel, layers: dict[str, nn.Module]) -> None:
    """Run the stock model and then the same causal attention through span ids of 1; every layer must agree."""
    weight: Any = inner.get_input_embeddings().weight
    if weight.is_meta:
        raise TypeError(f"{type(inner).__name__} is on the meta device, where nothing can be proved; load it first")
    noise = torch.randn(1, PROOF_LENGTH, weight.shape[-1], generator=torch.Generator().manual_seed(0))
    span_ids = torch.ones(1, PROOF_LENGTH, dtype=torch.int32, device=weight.device)
    proof = _Proof()
    inputs: Any = {"inputs_embeds": noise.to(weight.device, weight.dtype), "use_cache": False, "attach_proof": proof}
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            model(**inputs)
            model(**inputs, span_ids=span_ids)
    finally:
        for module, mode in training.items():
            module.training = mode
    wrong: dict[str, list[str]] = {}
    for name, layer in layers.items():
        if layer not in proof.agreed or layer in proof.faults:
            fault = proof.faults.get(layer, "it never received span_ids and would stay causal")
            wrong.setdefault(f"{type(layer).__name__}: {fault}", []).append(name)
    if wrong:
        reasons = "; ".join(f"{fault} ({', '.join(names)})" for fault, names in wrong.items())
        raise TypeError(f"{type(inner).__name__} cannot have split-triangle attention. {reasons}")


def _pretrained(model: nn.Module) -> PreTrainedModel:
    """The transformers model itself, out of PEFT's wrapping."""
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
    inner = _pretrained(model)
    if not hasattr(inner, "_bico_attachment"):
        raise RuntimeError(f"{type(inner).__name__} is not attached; call attach(model) first")
    return inner


def _rotary_layers(inner: PreTrainedModel) -> dict[str, nn.Module]:
    """Attention modules by name; every layer of the model must have one that takes its rotation from outside."""
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
