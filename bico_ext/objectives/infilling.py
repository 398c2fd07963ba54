"""In-place span infilling, the extension of BICO that writes whole spans."""

import torch
from torch import Generator, Tensor

from bico_ext.bounds import check_bounds
from bico_ext.objectives.training_sequence import NO_LOSS, TrainingSequence


def infill(input_ids: Tensor, generator: Generator, *, spans: int = 1) -> TrainingSequence:
    """In-place span infilling: a span is written left to right while everything else, on both sides, is read.

    The span has a length uniform in [1, n] and a start uniform among those that fit, n = S - 1: positions 1 to S - 1,
    the end-of-sequence token among them. Inputs keep their tokens: the context does not see the span at all. With
    several spans those positions are first divided into as many parts, equal but for one token, with a span in each.

    Args:
        input_ids: int64 [S].
        generator: the source of the draws.
        spans: how many, at least 1 (the default); a shorter text has one for each of its positions.

    Returns:
        Span ids 1, 2, ... inside the spans and 0 elsewhere; labels only inside spans. A single token: no span and no
        loss.

    Raises:
        ValueError: spans below 1.

    Example:
        >>> infill(torch.tensor([2, 7]), torch.Generator()).span_ids
        tensor([0, 1], dtype=torch.int32)
    """
    check_bounds(infill_spans=spans)
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
