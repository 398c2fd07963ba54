"""A KV cache for writing a span into a gap: the context is computed once, then the span token by token."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bico_ext.models.rotary import Rotation
from bico_ext.ops.reference import rotate


@dataclass
class _Layer:
    """What one attention layer keeps: rotated keys [B, Hkv, .., D] and values, in float32 (float64 if they were).

    Attributes:
        before, before_v: the context before the gap, in the plus frame, and the span so far, which grows.
        after, after_v: the context after the gap, in the minus frame (with `mirror=False`, in the plus frame).
        visible: bool [B, 1, 1, S], whether a column of the context is a key, for the columns before and after the gap.
        mirror: whether `after` is in the minus frame.
    """

    before: Tensor
    before_v: Tensor
    after: Tensor
    after_v: Tensor
    visible: tuple[Tensor, Tensor]
    mirror: bool


class SpanCache:
    """The keys and values of a context with a gap, and of the span that is written into the gap.

    Give the same new cache to all calls `model(..., span_ids=..., position_ids=..., span_cache=cache)` of an attached
    model. The first call computes the context: `span_ids` are 0, or -1 at padding, which may stand on both sides, and
    `position_ids` leave the gap free. Each later call takes the next token of the span, in all rows: [B, 1], with span
    id 1 and its position in the gap. It sees the context, the span so far and itself. This gives the logits of one call
    with the whole sequence, because no token of the context sees the span.

    Keys before the gap are kept in the plus frame R(n), those after it in the minus frame R(-n), or in the plus frame
    if the first call had `mirror=False`. Keys and values are kept in float32, in which 16-bit models compute scores and
    weighted sums, too. The sliding window of a model is not checked here: the whole text must fit in it.

    Args:
        gap: the number of columns before the gap. It is the same in all rows, so shorter texts are padded on the left.

    Example:
        >>> import torch
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> from bico_ext.models.attach import attach
        >>> config = LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        ...                      vocab_size=16)
        >>> model, cache = attach(LlamaForCausalLM(config)), SpanCache(gap=2)
        >>> context = {"input_ids": torch.tensor([[1, 2, 5]]), "position_ids": torch.tensor([[0, 1, 4]])}
        >>> span_ids = torch.zeros(1, 3, dtype=torch.int32)
        >>> token = model(**context, span_ids=span_ids, span_cache=cache).logits[:, 1].argmax(-1, keepdim=True)
        >>> step = {"input_ids": token, "position_ids": torch.tensor([[2]])}
        >>> model(**step, span_ids=torch.ones(1, 1, dtype=torch.int32), span_cache=cache).logits.shape
        torch.Size([1, 1, 16])
    """

    def __init__(self, gap: int) -> None:
        self.gap = gap
        self._layers: dict[nn.Module, _Layer] = {}

    def __contains__(self, layer: nn.Module) -> bool:
        """Return whether the attention module has stored its context."""
        return layer in self._layers

    def store(self, layer: nn.Module, k: Tensor, v: Tensor, span_ids: Tensor, rotation: Rotation, mirror: bool) -> None:
        """Keep the context of an attention module.

        Args:
            layer: the attention module.
            k, v: [B, Hkv, S, D], not rotated.
            span_ids: int32 [B, S].
            rotation: the rotation of the S columns.
            mirror: whether the keys after the gap are scored in the minus frame.
        """
        plus, minus = _rotated(k, rotation), _rotated(k, rotation, -1 if mirror else 1)
        gap, visible, v = self.gap, (span_ids >= 0)[:, None, None], v.to(plus.dtype)
        self._layers[layer] = _Layer(
            before=plus[:, :, :gap],
            before_v=v[:, :, :gap],
            after=minus[:, :, gap:],
            after_v=v[:, :, gap:],
            visible=(visible[..., :gap], visible[..., gap:]),
            mirror=mirror,
        )

    def attend(
        self, layer: nn.Module, q: Tensor, k: Tensor, v: Tensor, rotation: Rotation, scale: float | None
    ) -> Tensor:
        """Append the next token of the span and compute its attention.

        Args:
            layer: the attention module, which has stored its context.
            q: [B, Hq, 1, D], not rotated.
            k, v: [B, Hkv, 1, D], k not rotated.
            rotation: the rotation of the token.
            scale: the factor of the scores; None: 1 / sqrt(D).

        Returns:
            [B, Hq, 1, D], in the dtype of q.

        Raises:
            ValueError: there is more than one token in a row.
        """
        batch, heads, length, width = q.shape
        if length != 1:
            raise ValueError(
                f"with a span_cache that holds a context, a call takes one token of the span per row, got {length}; "
                "use a new SpanCache for a new context"
            )
        kept = self._layers[layer]
        plus, minus = _rotated(q, rotation), _rotated(q, rotation, -1 if kept.mirror else 1)
        kept.before = torch.cat((kept.before, _rotated(k, rotation)), dim=2)
        kept.before_v = torch.cat((kept.before_v, v.to(plus.dtype)), dim=2)
        # The query heads that share a key head are the rows of one product, so k and v are not repeated.
        plus, minus = (x.reshape(batch, k.shape[1], -1, width) for x in (plus, minus))  # [B, Hkv, Hq / Hkv, D]
        before, after = plus @ kept.before.mT, minus @ kept.after.mT  # scores
        context = kept.visible[0].shape[-1]
        before[..., :context].masked_fill_(~kept.visible[0], -math.inf)
        after.masked_fill_(~kept.visible[1], -math.inf)
        scores = torch.cat((before, after), dim=-1) * (1 / math.sqrt(width) if scale is None else scale)
        weights = scores.softmax(dim=-1)
        written = before.shape[-1]
        out = weights[..., :written] @ kept.before_v + weights[..., written:] @ kept.after_v
        return out.reshape(batch, heads, 1, -1).to(q.dtype)


def _rotated(x: Tensor, rotation: Rotation, sign: int = 1) -> Tensor:
    """Return R(n) x, or R(-n) x with sign -1, in float32 (float64 if x is)."""
    accumulate = torch.promote_types(x.dtype, torch.float32)
    cos, sin = rotation.cos.to(accumulate), sign * rotation.sin.to(accumulate)
    return rotate(x.to(accumulate), cos, sin, rotation.pairing.interleaved)
