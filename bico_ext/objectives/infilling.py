"""In-place span infilling: MAGNET's visibility with the flipped rotation of BICO.

In MAGNET (arXiv 2501.08648), too, context tokens see each other on both sides, and a span's tokens see the context and
their own past. That output i predicts token i + 1 although later tokens are visible is LLM2Vec's masked next-token
prediction (arXiv 2404.05961).
"""

import torch
from torch import Generator, Tensor

from bico_ext.bounds import check_bounds
from bico_ext.objectives.training_sequence import NO_LOSS, TrainingSequence


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
        length = int(torch.randint(1, room + 1, (), generator=generator))
        start = first + int(torch.randint(0, room - length + 1, (), generator=generator))
        span_ids[start : start + length] = span + 1
        labels[start : start + length] = input_ids[start : start + length]
    return TrainingSequence(input_ids, labels, span_ids)
