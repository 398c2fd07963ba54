"""The token sequences that the probe reads: texts as they are, packed sequences, and pieces of running prose."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Generator, Tensor
from transformers import PreTrainedTokenizerBase

from bico_ext.facts.types import Example
from bico_ext.models.tokenization import check_context, check_ids, context_length, encode_prompt, encode_text
from bico_ext.objectives.training_sequence import may_be_hidden
from bico_ext.seeding import stream_seed


def sequences_by_length(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[Example],
    lengths: Sequence[int],
    *,
    running: bool = False,
    samples: int = 256,
    tokens: int | None = None,
    seed: int = 0,
) -> dict[int | None, list[Tensor]]:
    """Encode the texts as they are and packed to each length, in random order.

    Args:
        model: the model, for its context; longer lengths are left out.
        tokenizer: the model's tokenizer.
        texts: at least one text.
        lengths: the lengths of packed sequences in tokens.
        running: whether the texts are the paragraphs of running prose. If so, packed sequences are pieces of the
            prose, with empty lines between paragraphs, each with BOS if the tokenizer puts it in front of a text.
            By default, they are texts as in training, joined in random order.
        samples: the largest number of sequences of each length; default 256.
        tokens: the largest number of tokens of each length, unless a single sequence has more; default no limit.
        seed: the seed of the order; default 0.

    Returns:
        Sequences, int64 [S] each, by their length; the key None is for the texts as they are. A length that the texts
        do not fill once is left out.

    Raises:
        ValueError: as for `encode`.
    """
    generator = Generator().manual_seed(stream_seed("probe", seed))
    encoded = encode(model, tokenizer, texts)
    as_they_are = shuffled(encoded, generator)
    result: dict[int | None, list[Tensor]] = {None: as_they_are}
    for length in lengths:
        if length <= context_length(model):
            result[length] = (
                shuffled(cut_prose(tokenizer, texts, length), generator) if running else pack(as_they_are, length)
            )
    return {length: _first(members[:samples], tokens) for length, members in result.items() if members}


def _first(sequences: list[Tensor], tokens: int | None) -> list[Tensor]:
    ends = accumulate(map(len, sequences))
    return sequences[: max(1, sum(tokens is None or end <= tokens for end in ends))]


def shuffled(sequences: Sequence[Tensor], generator: Generator) -> list[Tensor]:
    """Return the sequences in random order."""
    return [sequences[i] for i in torch.randperm(len(sequences), generator=generator).tolist()]


def encode(model: Any, tokenizer: PreTrainedTokenizerBase, texts: Sequence[Example]) -> list[Tensor]:
    """Return the token ids of each text as in training (`encode_text`), int64 [S] each.

    Raises:
        ValueError: there are no texts, or a text has ids that the model lacks, exceeds its context or has no token that
            can be hidden.
    """
    if not texts:
        raise ValueError("texts must hold at least one text, got none; name data with training texts")
    special = set(tokenizer.all_special_ids)
    sequences = []
    for number, text in enumerate(texts, start=1):
        ids = encode_text(tokenizer, text.text)
        check_ids(model, ids, f"text {number}, {text.text!r:.60}")
        check_context(model, len(ids), f"text {number}, {text.text!r:.60},", "leave it out or shorten it")
        sequence = torch.tensor(ids)
        if not may_be_hidden(sequence, special).any():
            raise ValueError(
                f"text {number} has no token to hide: after its first token it needs one that is not special, "
                f"got {ids}; leave out the text {text.text!r:.60}"
            )
        sequences.append(sequence)
    return sequences


def pack(sequences: Sequence[Tensor], length: int) -> list[Tensor]:
    """Join the sequences and cut the result into sequences of exactly `length` tokens; a shorter rest is dropped.

    A packed sequence counts as one long text: its tokens see each other across the borders of the original texts.

    Example:
        >>> pack([torch.tensor([1, 2, 3]), torch.tensor([4, 5])], 2)
        [tensor([1, 2]), tensor([3, 4])]
    """
    tokens = torch.cat(list(sequences))
    return list(tokens[: len(tokens) // length * length].split(length)) if len(tokens) >= length else []


def cut_prose(tokenizer: PreTrainedTokenizerBase, paragraphs: Sequence[Example], length: int) -> list[Tensor]:
    """Join paragraphs by empty lines and cut them into sequences of exactly `length` tokens.

    Each has in front what the tokenizer puts in front of a text, BOS or nothing.
    """
    prose = "\n\n".join(paragraph.text for paragraph in paragraphs)
    ids = torch.tensor(encode_prompt(tokenizer, prose))
    start, body = ids.tensor_split([len(ids) - len(tokenizer(prose, add_special_tokens=False)["input_ids"])])
    return [torch.cat((start, piece)) for piece in pack([body], length - len(start))]
