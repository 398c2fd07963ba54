"""Autoregressive blank infilling, GLM's objective (arXiv 2103.10360): spans are cut out and predicted after the text.

Part A is the text in which each span is replaced by one [MASK]; its tokens see each other in both directions. Part B
contains the spans in random order, each between a [sop] and an [eop]. It is predicted from left to right: a span sees
part A and its own past.
"""

from collections.abc import Collection
from fractions import Fraction
from typing import Literal, TypeVar, get_args

import torch
from torch import Generator, Tensor

from bico_ext.objectives.training_sequence import NO_LOSS, TrainingSequence, may_be_hidden

Positions = Literal["2d", "in-place"]
Position = TypeVar("Position", int, Tensor)

COVERAGE = Fraction(15, 100)  # of the eligible tokens, at least, as in GLM
MEAN_LENGTH = 3.0  # of the Poisson distribution of span lengths, including its zeros, as in GLM


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

    Spans are drawn until they cover at least 15 % of the eligible tokens, so every sequence with an eligible token has
    at least one span. The length of a span is Poisson(3), where zeros are drawn again as in GLM's code, and cut to the
    longest stretch that is still free. Its start is uniform among the positions where the span fits with at least one
    token between it and every other span.

    Args:
        input_ids: int64 [S].
        generator: the source of random numbers.
        mask_id: id of the token that replaces a span of any length in part A.
        sop_id: id of the token that opens a span in part B.
        eop_id: id of the token that closes a span in part B.
        special_ids: ids that no span covers, such as BOS and EOS. Position 0 is not eligible either.
        positions: "2d" (the default) gives each token the two positions of ChatGLM-6B. The first is the token's
            position in part A, or, in part B, the position of its [MASK]. The second is 0 in part A and 1, 2, ... in a
            block of part B, starting at its [sop]. "in-place" gives each token its position in the original text, and a
            [sop] that of the token before its span. Distances are then those of next-token prediction.

    Returns:
        A training sequence of part A (span ids 0) and the blocks of part B (span ids 1, 2, ... in their order). A block
        is [sop] and the span. An [eop] follows the last block only: output i predicts labels[i + 1], so the last label
        needs a position of its own. Labels are the tokens of the spans and their [eop]s. mirror is False, because GLM
        uses plain attention. Without an eligible token the sequence is unchanged and has no loss.

    Raises:
        ValueError: positions is neither "2d" nor "in-place".

    Example:
        >>> text = torch.tensor([2, 7, 3])
        >>> sequence = abi(text, torch.Generator(), mask_id=10, sop_id=11, eop_id=12, special_ids=(2, 3))
        >>> sequence.input_ids
        tensor([ 2, 10,  3, 11,  7, 12])
        >>> sequence.labels
        tensor([-100, -100, -100, -100,    7,   12])
    """
    check_positions(positions)
    spans = _spans(input_ids, generator, special_ids)
    text = input_ids.tolist()
    removed = {index for start, end in spans for index in range(start + 1, end)}  # one [MASK] replaces the whole span
    starts = {start for start, _ in spans}
    kept = [index for index in range(len(text)) if index not in removed]  # the original positions of part A
    part_a = list(range(len(kept))) if positions == "2d" else kept
    mask_position = dict(zip(kept, part_a, strict=True))

    inputs = [mask_id if index in starts else text[index] for index in kept]
    labels = [NO_LOSS] * (len(inputs) + bool(spans))
    span_ids = [0] * len(inputs)
    pairs = [(position, 0) for position in part_a]
    for number, (start, end) in enumerate(spans, 1):
        block = [sop_id, *text[start:end]] + [eop_id] * (number == len(spans))
        inputs += block
        labels += [*text[start:end], eop_id]
        span_ids += [number] * len(block)
        pairs += [block_position(mask_position[start], step, positions) for step in range(len(block))]
    both = torch.tensor(pairs).view(-1, 2).T  # [2, S]
    return TrainingSequence(
        torch.tensor(inputs),
        torch.tensor(labels),
        torch.tensor(span_ids, dtype=torch.int32),
        block_positions=both if positions == "2d" else None,
        position_ids=both[0] if positions == "in-place" else None,
        mirror=False,
    )


def block_position(mask: Position, step: int, positions: Positions) -> tuple[Position, int]:
    """Return the two positions of a token of part B.

    Args:
        mask: the position of its [MASK] in part A.
        step: 0 for [sop], 1 for the first token of the span, and so on.
        positions: as in `abi`. "in-place" uses the first position only; the second is 0.

    Example:
        >>> block_position(5, 0, "2d"), block_position(5, 0, "in-place")[0]
        ((5, 1), 4)
    """
    return (mask, step + 1) if positions == "2d" else (mask - 1 + step, 0)


def check_positions(positions: str) -> None:
    """Raise a ValueError unless `positions` is one of the two schemes of `abi`."""
    if positions not in get_args(Positions):
        raise ValueError(f"the positions of 'abi' must be '2d' or 'in-place', got {positions!r}")


def _spans(input_ids: Tensor, generator: Generator, special_ids: Collection[int]) -> list[tuple[int, int]]:
    """Draw the spans [start, end) and return them in random order."""
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
