"""Causal objectives: next-token prediction of the text, or of its segments or words in another order."""

from collections.abc import Collection, Sequence

import torch
from torch import Generator, Tensor

from bico_ext.bounds import check_bounds
from bico_ext.objectives.training_sequence import NO_LOSS, TrainingSequence


def ntp(input_ids: Tensor, generator: Generator) -> TrainingSequence:
    """Next-token prediction: every token sees its past, and every token but the first is predicted.

    Args:
        input_ids: int64 [S].
        generator: not used; all objectives share one signature.

    Returns:
        A training sequence with span ids 1 and labels equal to the input, except at position 0, which no output
        predicts.

    Example:
        >>> ntp(torch.tensor([2, 7, 8]), torch.Generator()).labels
        tensor([-100,    7,    8])
    """
    labels = input_ids.clone()
    labels[:1] = NO_LOSS
    return TrainingSequence(input_ids, labels, torch.ones_like(input_ids, dtype=torch.int32))


def permute(
    input_ids: Tensor, generator: Generator, *, special_ids: Collection[int], segments: int = 4
) -> TrainingSequence:
    """Segment permutation: cut the text at random positions, reorder the segments and predict them.

    The text between the special tokens at its ends is cut into k segments. k is uniform in [2, `segments`], and the
    k - 1 cuts are uniform among the positions between tokens. The order of the segments is drawn uniformly; if it is
    the original order, the segments are reversed instead. The loss covers all segments but the first of the new order,
    because next-token prediction trains that one anyway. With two segments, "A B" is read as "B A": B is given and A is
    predicted. The model therefore also learns to predict what a sentence says first from what it says later, from left
    to right, as in generation.

    The objective uses no label, parser or entity list, so cuts also fall within names and descriptions. Special tokens
    at the start stay there. Those at the end are left out, because the new last segment need not end the text.

    Args:
        input_ids: int64 [S].
        generator: the source of random numbers.
        special_ids: ids that are not part of the text, such as BOS and EOS at its ends.
        segments: the largest number of segments, at least 2; default 4.

    Returns:
        A training sequence with span ids 1, and labels in all segments but the first. For a text of fewer than two
        tokens it is that of `ntp`.

    Raises:
        ValueError: segments is less than 2.

    Example:
        >>> sequence = permute(torch.tensor([2, 7, 8, 3]), torch.Generator(), special_ids=(2, 3))
        >>> sequence.input_ids, sequence.labels
        (tensor([2, 8, 7]), tensor([-100, -100,    7]))
    """
    check_bounds(segments=segments)
    start, end = _text(input_ids, special_ids)
    text = input_ids[start:end]
    if len(text) < 2:
        return ntp(input_ids, generator)
    pieces = min(int(torch.randint(2, segments + 1, (), generator=generator)), len(text))
    cuts = (torch.randperm(len(text) - 1, generator=generator)[: pieces - 1] + 1).sort().values
    order = torch.randperm(pieces, generator=generator).tolist()
    if order == sorted(order):
        order.reverse()
    parts = text.tensor_split(cuts)
    permuted = ntp(torch.cat([input_ids[:start], *(parts[i] for i in order)]), generator)
    permuted.labels[: start + len(parts[order[0]])] = NO_LOSS
    return permuted


def reverse(
    input_ids: Tensor,
    generator: Generator,
    *,
    special_ids: Collection[int],
    word_starts: Tensor,
    word_parts: Tensor,
    entities: Sequence[Sequence[int]] = (),
) -> TrainingSequence:
    """Reverse training (arXiv 2403.13799): next-token prediction of the text with its words in reverse order.

    The tokens within a word keep their order. If entities are given, so do the words within an entity.

    Args:
        input_ids: int64 [S].
        generator: not used; all objectives share one signature.
        special_ids: ids that keep their position at the ends, such as BOS and EOS.
        word_starts: bool [V], whether a token begins a word. The first token of the text always does.
        word_parts: bool [V], whether a token continues the word before it: "ing" does, a comma does not.
        entities: token sequences that count as one word wherever they occur, unless a token that continues a word
            follows. The longest one that matches is taken.

    Returns:
        A training sequence with span ids 1 and labels everywhere but at position 0.

    Example:
        >>> starts = torch.ones(16, dtype=torch.bool)
        >>> reverse(torch.tensor([2, 7, 8, 9, 3]), torch.Generator(), special_ids=(2, 3), word_starts=starts,
        ...         word_parts=~starts, entities=[[7, 8]]).input_ids
        tensor([2, 9, 7, 8, 3])
    """
    start, end = _text(input_ids, special_ids)
    ids = input_ids[start:end].tolist()
    starts_word = word_starts[input_ids[start:end]].tolist()
    continues_word = word_parts[input_ids[start:end]].tolist()
    longest_first = sorted(map(list, entities), key=len, reverse=True)
    words: list[list[int]] = []
    position = 0
    while position < len(ids):
        ends = [
            position + len(entity)
            for entity in longest_first
            if entity and ids[position : position + len(entity)] == entity
        ]
        length = next((end - position for end in ends if end == len(ids) or not continues_word[end]), 0)
        if not length:
            length = 1
            while position + length < len(ids) and not starts_word[position + length]:
                length += 1
        words.append(ids[position : position + length])
        position += length
    reordered = input_ids.clone()
    reordered[start:end] = torch.tensor([token for word in reversed(words) for token in word], dtype=torch.int64)
    return ntp(reordered, generator)


def reverse_segments(
    input_ids: Tensor,
    generator: Generator,
    *,
    special_ids: Collection[int],
    separator_id: int,
    segment_length: int = 25,
) -> TrainingSequence:
    """Reverse training by random segments (arXiv 2403.13799): next-token prediction of the segments in reverse order.

    The text between the special tokens at its ends is cut into segments, from left to right. The length of each is
    uniform in [1, `segment_length`], and the last one is cut at the end of the text. The segments are put in reverse
    order with a separator between them; the tokens of a segment keep their order. A text that becomes a single segment
    stays as it is.

    Args:
        input_ids: int64 [S].
        generator: the source of random numbers.
        special_ids: ids that keep their position at the ends, such as BOS and EOS.
        separator_id: the token between two segments, the paper's [REV]. It is predicted like any other token.
        segment_length: the largest number of tokens of a segment, at least 1; default 25, as in the paper.

    Returns:
        A training sequence of S tokens and the separators, with span ids 1 and labels everywhere but at position 0.

    Raises:
        ValueError: segment_length is less than 1.

    Example:
        >>> reverse_segments(torch.tensor([2, 7, 8, 3]), torch.Generator(), special_ids=(2, 3), separator_id=5,
        ...                  segment_length=1).input_ids
        tensor([2, 8, 5, 7, 3])
    """
    check_bounds(segment_length=segment_length)
    start, end = _text(input_ids, special_ids)
    text = input_ids[start:end]
    ends = torch.randint(1, segment_length + 1, (len(text),), generator=generator).cumsum(0)
    separator = torch.tensor([separator_id])
    segments = text.tensor_split(ends[ends < len(text)])
    reordered = [part for segment in reversed(segments) for part in (separator, segment)][1:]
    return ntp(torch.cat([input_ids[:start], *reordered, input_ids[end:]]), generator)


def _text(input_ids: Tensor, special_ids: Collection[int]) -> tuple[int, int]:
    """Return the start and the end of the text between the special tokens at both ends."""
    positions = [position for position, token in enumerate(input_ids.tolist()) if token not in special_ids]
    return (positions[0], positions[-1] + 1) if positions else (0, 0)
