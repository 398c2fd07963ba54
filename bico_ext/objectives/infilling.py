"""In-place span infilling: MAGNET's visibility with the flipped rotation of BICO.

In MAGNET (arXiv 2501.08648), too, context tokens see each other on both sides, and a span's tokens see the context and
their own past. That output i predicts token i + 1 although later tokens are visible is LLM2Vec's masked next-token
prediction (arXiv 2404.05961).
"""

from collections.abc import Collection
from dataclasses import replace

import torch
from torch import Generator, Tensor
from torch.nn import functional

from bico_ext.bounds import check_bounds
from bico_ext.objectives.training_sequence import NO_LOSS, TrainingSequence, text_between
from bico_ext.ops.reference import CAUSAL_CONTEXT


def infill(input_ids: Tensor, generator: Generator, *, spans: int = 1) -> TrainingSequence:
    """In-place span infilling: predict a span from left to right, given the context on both sides of it.

    The length of a single span is uniform in [1, n], and its start is uniform among those that fit. Here n = S - 1,
    because a span may cover the positions 1 to S - 1, including the end-of-sequence token. For several spans these n
    positions are first divided into as many parts, whose lengths differ by at most one token, and each part gets one
    span. The inputs keep their tokens, because the context does not see the span at all.

    Args:
        input_ids: int64 [S].
        generator: the source of random numbers.
        spans: the number of spans, at least 1; default 1. A text with fewer than `spans` positions gets one span per
            position.

    Returns:
        A training sequence with span ids 1, 2, ... inside the spans and 0 elsewhere, and labels only inside the spans.
        A single token gets no span and no loss.

    Raises:
        ValueError: spans is less than 1.

    Example:
        >>> infill(torch.tensor([2, 7]), torch.Generator()).span_ids
        tensor([0, 1], dtype=torch.int32)
    """
    check_bounds(spans=spans)
    span_ids = torch.zeros_like(input_ids, dtype=torch.int32)
    labels = torch.full_like(input_ids, NO_LOSS)
    predictable = len(input_ids) - 1
    spans = min(spans, predictable)
    for span in range(spans):
        first = 1 + span * predictable // spans
        room = 1 + (span + 1) * predictable // spans - first
        start, length = _draw_span(first, room, generator)
        span_ids[start : start + length] = span + 1
        labels[start : start + length] = input_ids[start : start + length]
    return TrainingSequence(input_ids, labels, span_ids)


def infill_naive(input_ids: Tensor, generator: Generator, *, spans: int = 1) -> TrainingSequence:
    """As `infill`, without the sine flip: plain bidirectional RoPE attention among the visible keys.

    Example:
        >>> infill_naive(torch.tensor([2, 7]), torch.Generator()).mirror
        False
    """
    return replace(infill(input_ids, generator, spans=spans), mirror=False)


def infill_causal(input_ids: Tensor, generator: Generator, *, spans: int = 1) -> TrainingSequence:
    """As `infill`, with a context that is read causally, as in generation, except where an output has a label.

    The context token before a span predicts the span's first token, so it sees the context on both sides, as the span
    does. Every other context token sees the context up to itself only. All context is visible to the span. The context
    after the span sees the token before it, and therefore learns of later tokens from the second layer on.

    Example:
        >>> infill_causal(torch.tensor([2]), torch.Generator()).span_ids
        tensor([2147483647], dtype=torch.int32)
    """
    sequence = infill(input_ids, generator, spans=spans)
    predicts = functional.pad(sequence.labels[1:] != NO_LOSS, (0, 1))  # output i predicts the label at i + 1
    causal = (sequence.span_ids == 0) & ~predicts
    return replace(sequence, span_ids=sequence.span_ids.masked_fill(causal, CAUSAL_CONTEXT))


def infill_end(input_ids: Tensor, generator: Generator, *, special_ids: Collection[int]) -> TrainingSequence:
    """Span infilling with the span moved to the end of the text, so that it follows its context as an answer does.

    The span is drawn as a single span of `infill`, but from the text between the special tokens at its ends; those at
    the end are left out, as in `permute`. The context closes the gap and keeps its order, and its tokens see each other
    on both sides. So the span is predicted from a context on its left, in the order and at the distances of generation;
    in `infill` it sees what follows it mirrored. What remains of the difference to generation is the context, which
    generation reads causally (`infill_end_causal`).

    Args:
        input_ids: int64 [S].
        generator: the source of random numbers.
        special_ids: ids that are not part of the text, such as BOS and EOS at its ends.

    Returns:
        A training sequence with span ids 0 in the context and 1 in the span, and labels in the span only. A text
        without a predictable token is unchanged and has no loss.

    Example:
        >>> infill_end(torch.tensor([2, 7, 3]), torch.Generator(), special_ids=(2, 3)).span_ids
        tensor([0, 1], dtype=torch.int32)
    """
    start, end = text_between(input_ids, special_ids)
    first = max(start, 1)  # no output predicts the token at position 0
    start, length = _draw_span(first, end - first, generator) if end > first else (len(input_ids), 0)
    end = max(end, start)
    span = input_ids[start : start + length]
    context = torch.cat([input_ids[:start], input_ids[start + length : end]])
    labels = torch.cat([torch.full_like(context, NO_LOSS), span])
    span_ids = torch.cat([torch.zeros_like(context), torch.ones_like(span)]).int()
    return TrainingSequence(torch.cat([context, span]), labels, span_ids)


def infill_end_causal(input_ids: Tensor, generator: Generator, *, special_ids: Collection[int]) -> TrainingSequence:
    """As `infill_end`, with a context that is read causally: next-token prediction of a span after its context.

    It is fill-in-the-middle (arXiv 2207.14255) without sentinels, and `permute` with labels in one moved segment.

    Example:
        >>> infill_end_causal(torch.tensor([2, 7, 8]), torch.Generator(), special_ids=(2,)).span_ids
        tensor([1, 1, 1], dtype=torch.int32)
    """
    sequence = infill_end(input_ids, generator, special_ids=special_ids)
    return replace(sequence, span_ids=torch.ones_like(sequence.span_ids))


def _draw_span(first: int, room: int, generator: Generator) -> tuple[int, int]:
    """Return start and length of a span among `room` positions from `first` on: a uniform length, then its start."""
    length = int(torch.randint(1, room + 1, (), generator=generator))
    return first + int(torch.randint(0, room - length + 1, (), generator=generator)), length
