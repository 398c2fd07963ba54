"""Autoregressive blank infilling, GLM's objective (arXiv 2103.10360): spans are cut out and written after the text.

Part A is the text with one [MASK] in the place of each span; it is read in both directions. Part B holds the spans in
random order, each after a [sop] and closed by an [eop], written left to right: a span sees part A and its own past.
"""

from collections.abc import Collection
from fractions import Fraction
from typing import Literal, TypeVar, get_args

import torch
from torch import Generator, Tensor

from bico_ext.objectives.training_sequence import NO_LOSS, TrainingSequence, may_be_hidden

Positions = Literal["2d", "in-place"]
Place = TypeVar("Place", int, Tensor)

COVERAGE = Fraction(15, 100)  # of the eligible tokens, at least; GLM's
MEAN_LENGTH = 3.0  # of the Poisson law of span lengths, its zeros included; GLM's


def abi(
    input_ids: Tensor,
    generator: Generator,
    *,
    mask_id: int,
    sop_id: int,
    eop_id: int,
    special_ids: Collection[int],
    positions: Positions = "2d",
) -> TrainingSequence:
    """Autoregressive blank infilling.

    Spans are drawn until they cover at least 15 % of the eligible tokens, so that every sequence with an eligible token
    has one. A length is Poisson(3) with zeros drawn again, as in GLM's code, and cut to the longest stretch that is
    still free; its place is uniform among those where the span fits with a token between it and every other span.

    Args:
        input_ids: int64 [S].
        generator: the source of the draws.
        mask_id: stands in part A for a span, whatever its length.
        sop_id: opens a span in part B.
        eop_id: closes it.
        special_ids: ids that no span covers, such as BOS and EOS. Position 0 is not eligible either.
        positions: "2d" (the default), those of ChatGLM-6B: first a token's place in part A, for part B the place of its
            mask; second 0 in part A and 1, 2, ... in a block of part B, its [sop] included. "in-place": every token has
            its place in the text, as if nothing had been moved, and a [sop] that of the token before its span, so that
            distances are those of next-token prediction.

    Returns:
        Part A (span ids 0) and the blocks of part B (span ids 1, 2, ... in the order they are written): [sop] and the
        span, and after the last one an [eop], because output i predicts labels[i + 1] and the last [eop] needs a place.
        Labels are the spans' tokens and their [eop]s; mirror is False, GLM's attention being plain. Without an eligible
        token: the sequence as it came, and no loss.

    Raises:
        ValueError: unknown positions.

    Example:
        >>> text = torch.tensor([2, 7, 3])
        >>> masked = abi(text, torch.Generator(), mask_id=10, sop_id=11, eop_id=12, special_ids=(2, 3))
        >>> masked.input_ids
        tensor([ 2, 10,  3, 11,  7, 12])
        >>> masked.labels
        tensor([-100, -100, -100, -100,    7,   12])
    """
    check_positions(positions)
    spans = _spans(input_ids, generator, special_ids)
    text = input_ids.tolist()
    inner = {place for start, end in spans for place in range(start + 1, end)}  # what [MASK] has no room for
    opening = {start for start, _ in spans}
    kept = [place for place in range(len(text)) if place not in inner]  # places in the text of part A's tokens
    part_a = list(range(len(kept))) if positions == "2d" else kept
    mask_place = dict(zip(kept, part_a, strict=True))

    inputs = [mask_id if place in opening else text[place] for place in kept]
    labels = [NO_LOSS] * (len(inputs) + bool(spans))
    span_ids = [0] * len(inputs)
    places = [(place, 0) for place in part_a]
    for number, (start, end) in enumerate(spans, 1):
        block = [sop_id, *text[start:end]] + [eop_id] * (number == len(spans))
        inputs += block
        labels += [*text[start:end], eop_id]
        span_ids += [number] * len(block)
        places += [block_place(mask_place[start], step, positions) for step in range(len(block))]
    both = torch.tensor(places).view(-1, 2).T  # [2, S]
    return TrainingSequence(
        torch.tensor(inputs),
        torch.tensor(labels),
        torch.tensor(span_ids, dtype=torch.int32),
        block_positions=both if positions == "2d" else None,
        position_ids=both[0] if positions == "in-place" else None,
        mirror=False,
    )


def block_place(mask: Place, step: int, positions: Positions) -> tuple[Place, int]:
    """Where a token of part B stands: its position, and its second position (of "2d" only).

    Args:
        mask: the position of its [MASK] in part A.
        step: 0 for [sop], 1 for the first token of the span, and so on.
        positions: as in `abi`.

    Example:
        >>> block_place(5, 0, "2d"), block_place(5, 0, "in-place")[0]
        ((5, 1), 4)
    """
    return (mask, step + 1) if positions == "2d" else (mask - 1 + step, 0)


def check_positions(positions: str) -> None:
    """Raise a ValueError unless `positions` is one of the two schemes of `abi`."""
    if positions not in get_args(Positions):
        raise ValueError(f"positions must be '2d' or 'in-place', got {positions!r}")


def _spans(input_ids: Tensor, generator: Generator, special_ids: Collection[int]) -> list[tuple[int, int]]:
    """The spans [start, end), in random order."""
    free = may_be_hidden(input_ids, special_ids)
    wanted = COVERAGE * int(free.sum())
    spans: list[tuple[int, int]] = []
    covered = 0
    while covered < wanted and free.any():
        length = 0
        while length == 0:
            length = int(torch.poisson(torch.tensor(MEAN_LENGTH), generator=generator))
        length = min(length, len(free))
        while not len(starts := free.unfold(0, length, 1).all(-1).nonzero()):
            length -= 1
        start = int(starts[torch.randint(len(starts), (), generator=generator)])
        spans.append((start, start + length))
        covered += length
        free[start - 1 : start + length + 1] = False  # start > 0: position 0 is never free
    return [spans[i] for i in torch.randperm(len(spans), generator=generator).tolist()]
