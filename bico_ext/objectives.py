"""What a training step asks of the model: each objective turns one token sequence into inputs, labels and span ids.

Labels are not shifted: a causal LM of transformers shifts them itself, so that output i predicts labels[i + 1].
Span ids say who sees whom: -1 is no key for anyone, 0 is context, s > 0 sees the context and its own span's past
(`bico_ext.reference.visible` is the rule).

An objective draws from the generator that it is given and from nothing else. `stream_seed` derives that generator's
seed from what the draw belongs to (run seed, step, row), so that no generator state ever has to be saved.
"""

import hashlib
import inspect
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn.utils.rnn import pad_sequence

NO_LOSS = -100  # the label that torch's cross entropy and transformers leave out


@dataclass(frozen=True)
class Masked:
    """One sequence as an objective presents it to the model.

    Attributes:
        input_ids: int64 [S].
        labels: int64 [S], unshifted; -100 where there is no loss.
        span_ids: int32 [S].
        block_positions: int64 [2, S], ChatGLM-6B's two positions of each token (place in the text, place in its
            block); None: one position a token.
        position_ids: int64 [S], the place of each token in the text; None: the ordinary 0 to S - 1.
        mirror: False keeps the sines for later keys: plain bidirectional rotary attention.
    """

    input_ids: Tensor
    labels: Tensor
    span_ids: Tensor
    block_positions: Tensor | None = None
    position_ids: Tensor | None = None
    mirror: bool = True


Objective = Callable[[Tensor, Generator], Masked]


def ntp(input_ids: Tensor, generator: Generator) -> Masked:
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
    return Masked(input_ids, labels, torch.ones_like(input_ids, dtype=torch.int32))


def bico(
    input_ids: Tensor,
    generator: Generator,
    *,
    placeholder_id: int,
    special_ids: Collection[int],
    mask_rate: float = 0.15,
) -> Masked:
    """Autoregressive mask denoising (arXiv 2311.07468): output i predicts the token that was hidden at i + 1.

    Each eligible token is masked on its own with probability `mask_rate`. Where that draws nothing, one eligible token
    is taken uniformly, so that every sequence with an eligible token has a loss; in a sequence of n eligible tokens
    the expected number of masked ones is therefore n * mask_rate + (1 - mask_rate) ** n.

    Args:
        input_ids: int64 [S].
        generator: the source of the draws.
        placeholder_id: an existing token id that replaces the masked ones. It is never a key, so its embedding
            reaches no other position.
        special_ids: ids that are never masked, such as BOS and EOS. Position 0 is not eligible either.
        mask_rate: in (0, 1]; default 0.15, the paper's.

    Returns:
        Span ids 0, and -1 at the placeholders; labels only there. Without an eligible token: the sequence as it came,
        and no loss.

    Raises:
        ValueError: mask_rate outside (0, 1].

    Example:
        >>> masked = bico(torch.tensor([2, 7, 3]), torch.Generator(), placeholder_id=0, special_ids=(2, 3))
        >>> masked.input_ids, masked.labels, masked.span_ids
        (tensor([2, 0, 3]), tensor([-100,    7, -100]), tensor([ 0, -1,  0], dtype=torch.int32))
    """
    check_mask_rate(mask_rate)
    eligible = torch.ones_like(input_ids, dtype=torch.bool)
    eligible[:1] = False
    for special_id in special_ids:  # a handful of ids: cheaper than torch.isin, which sorts
        eligible &= input_ids != special_id
    hidden = (torch.rand(len(input_ids), generator=generator) < mask_rate) & eligible
    if not hidden.any():
        candidates = eligible.nonzero()[:, 0]
        if len(candidates):
            hidden[candidates[torch.randint(len(candidates), (), generator=generator)]] = True
    return Masked(
        input_ids.masked_fill(hidden, placeholder_id),
        input_ids.masked_fill(~hidden, NO_LOSS),
        hidden.to(torch.int32).neg_(),
    )


def infill(input_ids: Tensor, generator: Generator) -> Masked:
    """In-place span infilling: one span is written left to right while everything else, on both sides, is read.

    The span has a length uniform in [1, n] and a start uniform among those that fit, n = S - 1: positions 1 to S - 1,
    the end-of-sequence token among them. Inputs keep their tokens: the context does not see the span at all.

    Args:
        input_ids: int64 [S].
        generator: the source of the draws.

    Returns:
        Span ids 1 inside the span and 0 elsewhere; labels only inside the span. A single token: no span and no loss.

    Example:
        >>> infill(torch.tensor([2, 7]), torch.Generator()).span_ids
        tensor([0, 1], dtype=torch.int32)
    """
    span_ids = torch.zeros_like(input_ids, dtype=torch.int32)
    labels = torch.full_like(input_ids, NO_LOSS)
    predictable = len(input_ids) - 1
    if predictable > 0:
        length = int(torch.randint(1, predictable + 1, (), generator=generator))
        start = int(torch.randint(1, predictable - length + 2, (), generator=generator))
        span_ids[start : start + length] = 1
        labels[start : start + length] = input_ids[start : start + length]
    return Masked(input_ids, labels, span_ids)


OBJECTIVES: dict[str, Callable[..., Masked]] = {"ntp": ntp, "bico": bico, "infill": infill}


def check_objective(name: str) -> None:
    """Raise a ValueError that lists the known objectives when `name` is not one of them."""
    if name not in OBJECTIVES:
        raise ValueError(f"objective must be one of {', '.join(map(repr, OBJECTIVES))}, got {name!r}")


def check_mask_rate(mask_rate: float) -> None:
    """Raise a ValueError unless `mask_rate` is a usable probability: in (0, 1]."""
    if not 0 < mask_rate <= 1:
        raise ValueError(f"mask_rate must be in (0, 1], got {mask_rate}; for no masking use objective='ntp'")


def options(name: str) -> tuple[str, ...]:
    """The keyword-only options of the objective `name`, in the order of its signature.

    Example:
        >>> options("bico")
        ('placeholder_id', 'special_ids', 'mask_rate')
    """
    check_objective(name)
    parameters = inspect.signature(OBJECTIVES[name]).parameters.values()
    return tuple(parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY)


def bind(name: str, **available: object) -> Objective:
    """The objective `name` with its options filled in from `available`; those that it does not take are left out.

    Args:
        name: a key of `OBJECTIVES`.
        available: values of every option that the caller knows, such as `placeholder_id` and `mask_rate`.

    Raises:
        ValueError: an unknown name.

    Example:
        >>> bind("infill", mask_rate=0.3)(torch.tensor([2, 7]), torch.Generator()).labels
        tensor([-100,    7])
    """
    taken = {option: available[option] for option in options(name) if option in available}
    return partial(OBJECTIVES[name], **taken)


def pad(rows: Sequence[Masked], pad_id: int) -> dict[str, Any]:
    """One batch for the model from rows of different lengths, padded on the right.

    Args:
        rows: B sequences of one objective, at least one; S is the longest length.
        pad_id: any id with an embedding: padding is never a key and has no loss.

    Returns:
        What an attached model takes: input_ids int64 [B, S], labels int64 [B, S] (-100 in the padding), span_ids int32
        [B, S] (-1 in the padding); where the rows have them, block_positions int64 [B, 2, S] or position_ids int64
        [B, S]; where they ask for it, mirror False.

    Raises:
        ValueError: no rows.

    Example:
        >>> rows = [ntp(torch.tensor(row), torch.Generator()) for row in ([2, 7], [2])]
        >>> pad(rows, pad_id=0)["span_ids"]
        tensor([[ 1,  1],
                [ 1, -1]], dtype=torch.int32)
    """
    if not rows:
        raise ValueError("pad needs at least one row, got none")
    batch: dict[str, Any] = {
        "input_ids": pad_sequence([row.input_ids for row in rows], batch_first=True, padding_value=pad_id),
        "labels": pad_sequence([row.labels for row in rows], batch_first=True, padding_value=NO_LOSS),
        "span_ids": pad_sequence([row.span_ids for row in rows], batch_first=True, padding_value=-1),
    }
    positions = [row.block_positions.mT for row in rows if row.block_positions is not None]  # [S, 2] each
    if positions:
        batch["block_positions"] = pad_sequence(positions, batch_first=True).mT
    places = [row.position_ids for row in rows if row.position_ids is not None]
    if places:
        batch["position_ids"] = pad_sequence(places, batch_first=True)
    if not rows[0].mirror:
        batch["mirror"] = False
    return batch


def stream_seed(*key: int | str) -> int:
    """A seed for `torch.Generator.manual_seed` that depends on nothing but `key`.

    It is the blake2b hash of the key's repr: the same on every machine, in every process and Python version (unlike
    `hash`), and unrelated between neighbouring keys (unlike seed + step). torch's CPU generator keeps its low 32 bits.

    Args:
        key: what the draws belong to, for example ("masks", run seed, step, row).

    Returns:
        An integer in [0, 2 ** 64).

    Example:
        >>> stream_seed("masks", 42, 0, 7) == stream_seed("masks", 42, 0, 7) != stream_seed("masks", 42, 1, 7)
        True
    """
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "little")


def happens(probability: float, *key: int | str) -> bool:
    """A coin with the given probability of True, thrown by `stream_seed(*key)`: the same key, the same side.

    Args:
        probability: in [0, 1]; 0 is never and 1 is always.
        key: what the draw belongs to, for example ("objective", run seed, step).
    """
    return stream_seed(*key) < probability * 2.0**64
