"""Causal objectives: next-token prediction of the text as it is, or of its pieces in another order."""

from collections.abc import Collection, Sequence

import torch
from torch import Generator, Tensor

from bico_ext.bounds import check_bounds
from bico_ext.objectives.training_sequence import NO_LOSS, TrainingSequence


def ntp(input_ids: Tensor, generator: Generator) -> TrainingSequence:
    """Next-token prediction: every token sees its past, every token but the first is predicted.

    Args:
        input_ids: int64 [S].
        generator: not used; objectives share one signature.

    Returns:
        Span ids 1, labels equal to the input except at position 0, which no output predicts.

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
    """Segment permutation: the text is cut at random places, its pieces are put in another order and predicted.

    The text between the special tokens at its ends is cut into k pieces, k uniform in [2, `segments`] and the k - 1
    cuts uniform among the places between tokens; the pieces are put together in a uniformly drawn order, or from last
    to first where that is the order they had. The loss is on all pieces but the first of the new order, which is what
    next-token prediction trains anyway. With two pieces "A B" is read as "B A": B is given, A predicted.
    Whatever a sentence says first is then also asked for last, left to right, as generation does.

    No label, parser or entity list is used; the cuts fall within names and descriptions, too. Special tokens at the
    start stay there; those at the end are left out, as the last piece need not end the text.

    Args:
        input_ids: int64 [S].
        generator: the source of the draws.
        special_ids: ids that are not part of the text, such as BOS and EOS, at its ends.
        segments: most pieces, at least 2; default 4.

    Returns:
        Span ids 1; labels in the pieces but the first. A text of less than two tokens: `ntp` of the sequence.

    Raises:
        ValueError: segments below 2.

    Example:
        >>> masked = permute(torch.tensor([2, 7, 8, 3]), torch.Generator(), special_ids=(2, 3))
        >>> masked.input_ids, masked.labels
        (tensor([2, 8, 7]), tensor([-100, -100,    7]))
    """
    check_bounds(permute_segments=segments)
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
    moved = ntp(torch.cat([input_ids[:start], *(parts[i] for i in order)]), generator)
    moved.labels[: start + len(parts[order[0]])] = NO_LOSS
    return moved


def reverse(
    input_ids: Tensor,
    generator: Generator,
    *,
    special_ids: Collection[int],
    word_starts: Tensor,
    word_parts: Tensor,
    entities: Sequence[Sequence[int]] = (),
) -> TrainingSequence:
    """Reverse training (arXiv 2403.13799): next-token prediction of the text with its words in the opposite order.

    The tokens of a word keep their order, and so do the words of an entity, where entities are given.

    Args:
        input_ids: int64 [S].
        generator: not used; objectives share one signature.
        special_ids: ids that keep their place at the ends, such as BOS and EOS.
        word_starts: bool [V], whether a token begins a word. The text's first token always does.
        word_parts: bool [V], whether a token goes on with the word before it, as "ing" does and a comma does not.
        entities: token sequences that count as one word wherever they occur, unless a part of a word follows; the
            longest that fits is taken.

    Returns:
        Span ids 1; labels everywhere but at position 0.

    Example:
        >>> starts = torch.ones(16, dtype=torch.bool)
        >>> reverse(torch.tensor([2, 7, 8, 9, 3]), torch.Generator(), special_ids=(2, 3), word_starts=starts,
        ...         word_parts=~starts, entities=[[7, 8]]).input_ids
        tensor([2, 9, 7, 8, 3])
    """
    start, end = _text(input_ids, special_ids)
    ids = input_ids[start:end].tolist()
    begins = word_starts[input_ids[start:end]].tolist()
    goes_on = word_parts[input_ids[start:end]].tolist()
    wholes = sorted(map(list, entities), key=len, reverse=True)
    words: list[list[int]] = []
    place = 0
    while place < len(ids):
        ends = [place + len(one) for one in wholes if one and ids[place : place + len(one)] == one]
        length = next((end - place for end in ends if end == len(ids) or not goes_on[end]), 0)
        if not length:
            length = 1
            while place + length < len(ids) and not begins[place + length]:
                length += 1
        words.append(ids[place : place + length])
        place += length
    turned = input_ids.clone()
    turned[start:end] = torch.tensor([token for word in reversed(words) for token in word], dtype=torch.int64)
    return ntp(turned, generator)


def _text(input_ids: Tensor, special_ids: Collection[int]) -> tuple[int, int]:
    """Where the text between the special tokens at both ends starts and ends."""
    places = [place for place, token in enumerate(input_ids.tolist()) if token not in special_ids]
    return (places[0], places[-1] + 1) if places else (0, 0)
