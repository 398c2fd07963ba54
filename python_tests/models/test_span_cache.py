"""Logits of the span cache, token by token, against those of whole texts: dense fp64 decoders and uncached calls."""

from typing import Any

import pytest
import torch
from test_attach_glm import dense, tiny
from tiny_models import relative, tiny_family, tiny_llama
from torch import Tensor

from bico_ext.models.attach import attach, detach
from bico_ext.models.rotary import Pairing, Rotation
from bico_ext.models.span_cache import SpanCache
from bico_ext.ops import reference
from bico_ext.ops.attention import split_triangle_attention
from bico_ext.ops.reference import CAUSAL_CONTEXT

# Tokens before the gap, in it and after it. Batched, the rows have padding on the left, on the right and on both sides.
SIZES = [(7, 4, 5), (3, 4, 5), (7, 1, 2), (1, 3, 3), (6, 4, 0)]
GAP, STEPS, AFTER = (max(column) for column in zip(*SIZES, strict=True))


def some_texts() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(2, 50, (sum(sizes),), generator=generator) for sizes in SIZES]


def cached(model: Any, texts: list[Tensor], context: int = 0, **options: Any) -> list[Tensor]:
    """Return for each text the logits at the tokens of the context, and from the one before the gap to the gap's end.

    The context is computed in one call, and the gap one token at a time.
    """
    input_ids, position_ids = torch.zeros(2, len(texts), GAP + AFTER, dtype=torch.int64)
    span_ids = torch.full((len(texts), GAP + AFTER), -1, dtype=torch.int32)
    for row, (text, (before, length, after)) in enumerate(zip(texts, SIZES, strict=True)):
        position = torch.cat([torch.arange(before), torch.arange(before + length, len(text))])
        columns = slice(GAP - before, GAP + after)
        input_ids[row, columns], position_ids[row, columns], span_ids[row, columns] = text[position], position, context
        span_ids[row, GAP - 1] = 0
    cache = SpanCache(GAP)
    inputs = {"input_ids": input_ids, "position_ids": position_ids, "span_ids": span_ids}
    logits = model(**inputs, span_cache=cache, **options).logits
    steps = [logits[:, GAP - 1]]
    for step in range(STEPS):
        places = torch.tensor([[before + min(step, length - 1)] for before, length, _ in SIZES])
        token = torch.stack([text[place] for text, place in zip(texts, places, strict=True)])
        one = torch.ones_like(token, dtype=torch.int32)
        steps.append(model(input_ids=token, position_ids=places, span_ids=one, span_cache=cache).logits[:, 0])
    span = torch.stack(steps, dim=1)
    return [
        torch.cat([logits[row, GAP - before : GAP + after], span[row, : length + 1]])
        for row, (before, length, after) in enumerate(SIZES)
    ]


def of_whole_text(whole: Any, texts: list[Tensor], context: int = 0) -> list[Tensor]:
    """Return the same logits, computed by `whole(input_ids, span_ids, positions)` from each whole text."""
    found = []
    for text, (before, length, after) in zip(texts, SIZES, strict=True):
        span_ids = torch.tensor([[context] * (before - 1) + [0] + [1] * length + [context] * after], dtype=torch.int32)
        logits = whole(text[None], span_ids, torch.arange(len(text))[None])[0]
        rows = [*range(before), *range(before + length, len(text)), *range(before - 1, before + length)]
        found.append(logits[rows])
    return found


@pytest.mark.parametrize("mirror", [True, False], ids=["mirror", "plain"])
@pytest.mark.parametrize("family", ["llama", "glm"])
def test_logits_match_the_dense_decoder(family: str, mirror: bool) -> None:
    model, texts = attach(tiny(family)), some_texts()
    with torch.no_grad():
        ours = torch.cat(cached(model, texts, mirror=mirror))
        exact, other = (
            torch.cat(of_whole_text(lambda *inputs, m=m: dense(model, *inputs, mirror=m), texts))
            for m in (mirror, not mirror)
        )
    assert relative(ours, exact) < 2e-6
    assert relative(ours, other) > 1e-3


@pytest.mark.parametrize("context", [0, CAUSAL_CONTEXT], ids=["both-sides", "causal"])
@pytest.mark.parametrize("family", ["llama-4-heads", "llama3", "glm4", "cohere", "granite"])
def test_logits_match_uncached_calls(family: str, context: int) -> None:
    """Without grouped-query attention, with scaled positions, other pairings and layouts, and a scale of its own."""
    if family.startswith("llama"):
        model = tiny_llama("llama3") if family == "llama3" else tiny_llama(num_key_value_heads=4)
    else:
        torch.manual_seed(0)
        model = tiny_family(family)
    attach(model)

    def whole(input_ids: Tensor, span_ids: Tensor, positions: Tensor) -> Tensor:
        return model(input_ids=input_ids, span_ids=span_ids, position_ids=positions).logits

    with torch.no_grad():
        ours = torch.cat(cached(model, some_texts(), context))
        assert relative(ours, torch.cat(of_whole_text(whole, some_texts(), context))) < 5e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_16_bits_are_as_exact_as_the_op(dtype: torch.dtype) -> None:
    """The last token of a span, between 9 tokens before it and 6 after it, against the definition in fp64."""
    generator, gap, place, length = torch.Generator().manual_seed(0), 7, 9, 16
    q, k, v = (torch.randn(2, heads, length, 64, generator=generator).to(dtype) for heads in (4, 2, 2))
    angle = torch.outer(torch.arange(length), 10000.0 ** -(torch.arange(32) / 32)).repeat(1, 2)[None]
    span_ids = torch.tensor([[0] * gap + [1] * (place + 1 - gap) + [0] * (length - place - 1)] * 2, dtype=torch.int32)
    whole = {"cos": angle.cos(), "sin": angle.sin(), "span_ids": span_ids}
    exact = reference.split_triangle_attention(q.double(), k.double(), v.double(), **whole)[:, :, place]
    of_op: Any = split_triangle_attention(q, k, v, **whole)

    def rotation(at: list[int]) -> Rotation:
        return Rotation(angle[:, at].cos(), angle[:, at].sin(), Pairing())

    cache, layer = SpanCache(gap), torch.nn.Identity()
    context = [*range(gap), *range(place + 1, length)]
    cache.store(layer, k[:, :, context], v[:, :, context], span_ids[:, context], rotation(context), mirror=True)
    for at in ([step] for step in range(gap, place + 1)):
        out = cache.attend(layer, q[:, :, at], k[:, :, at], v[:, :, at], rotation(at), None)
    assert out.dtype == dtype
    assert relative(out[:, :, 0], exact) <= 1.05 * relative(of_op[:, :, place], exact)


def test_errors() -> None:
    model, cache = attach(tiny_llama()), SpanCache(2)
    context = torch.tensor([[5, 6, 7, 8]])
    zeros = torch.zeros_like(context, dtype=torch.int32)
    with pytest.raises(ValueError, match="span_cache has an effect only together with span_ids, which the call lacks"):
        model(input_ids=context, span_cache=cache)
    model(input_ids=context, span_ids=zeros, span_cache=cache)
    with pytest.raises(ValueError, match="takes one token of the span per row, got 4; use a new SpanCache"):
        model(input_ids=context, span_ids=zeros, span_cache=cache)
    stock = detach(model)(input_ids=context).logits
    assert torch.equal(stock, tiny_llama()(input_ids=context).logits)
