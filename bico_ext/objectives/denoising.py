"""Denoising of hidden tokens: BICO's objective, and controls that each change one thing in it.

The token hidden at position i is replaced by a placeholder:

objective      placeholder                      predicted by   frame of later keys
bico           never a key                      output i - 1   minus
naive          never a key                      output i - 1   plus
attended_pad   a key                            output i - 1   minus
new_token      a key, with a new embedding      output i - 1   minus
bert           never a key                      output i       minus

`naive` is close to the masked next-token prediction of LLM2Vec (arXiv 2404.05961), whose placeholder is a key.
"""

from collections.abc import Collection
from dataclasses import replace
from typing import Literal

import torch
from torch import Generator, Tensor

from bico_ext.objectives.training_sequence import NO_LOSS, TrainingSequence, may_be_hidden

MaskRate = float | Literal["uniform"]


def bico(
    input_ids: Tensor,
    generator: Generator,
    *,
    placeholder_id: int,
    special_ids: Collection[int],
    mask_rate: MaskRate = 0.15,
) -> TrainingSequence:
    """Autoregressive mask denoising (arXiv 2311.07468): output i predicts the token that was hidden at i + 1.

    Each eligible token is hidden independently with probability `mask_rate`. If no token is drawn, one eligible token
    is chosen uniformly, so that every sequence with an eligible token has a loss. In a sequence of n eligible tokens
    the expected number of hidden ones is therefore n * mask_rate + (1 - mask_rate) ** n.

    Args:
        input_ids: int64 [S].
        generator: the source of random numbers.
        placeholder_id: an existing token id that replaces hidden tokens. It is never a key, so its embedding reaches no
            other position.
        special_ids: ids that are never hidden, such as BOS and EOS. Position 0 is not eligible either.
        mask_rate: in (0, 1]; default 0.15, as in the paper. "uniform" draws a rate uniformly from (0, 1) for each
            sequence (MLM-U, arXiv 2406.05183).

    Returns:
        A training sequence with span ids -1 at the placeholders and 0 elsewhere, and labels only at the placeholders.
        Without an eligible token the sequence is unchanged and has no loss.

    Raises:
        ValueError: mask_rate is outside (0, 1].

    Example:
        >>> sequence = bico(torch.tensor([2, 7, 3]), torch.Generator(), placeholder_id=0, special_ids=(2, 3))
        >>> sequence.input_ids, sequence.labels, sequence.span_ids
        (tensor([2, 0, 3]), tensor([-100,    7, -100]), tensor([ 0, -1,  0], dtype=torch.int32))
    """
    hidden = _hidden(input_ids, generator, special_ids, mask_rate)
    return TrainingSequence(
        input_ids.masked_fill(hidden, placeholder_id),
        input_ids.masked_fill(~hidden, NO_LOSS),
        hidden.to(torch.int32).neg_(),
    )


def naive(
    input_ids: Tensor,
    generator: Generator,
    *,
    placeholder_id: int,
    special_ids: Collection[int],
    mask_rate: MaskRate = 0.15,
) -> TrainingSequence:
    """The paper's out-of-distribution control: `bico` with later keys in the plus frame, at distances > 0.

    Arguments and result are those of `bico`, except that `mirror` is False.
    """
    denoised = bico(input_ids, generator, placeholder_id=placeholder_id, special_ids=special_ids, mask_rate=mask_rate)
    return replace(denoised, mirror=False)


def attended_pad(
    input_ids: Tensor,
    generator: Generator,
    *,
    placeholder_id: int,
    special_ids: Collection[int],
    mask_rate: MaskRate = 0.15,
) -> TrainingSequence:
    """A control: `bico` with a placeholder (an existing token) that is visible as a key.

    Arguments and result are those of `bico`, except that the span ids are 0 everywhere.
    """
    denoised = bico(input_ids, generator, placeholder_id=placeholder_id, special_ids=special_ids, mask_rate=mask_rate)
    return replace(denoised, span_ids=torch.zeros_like(denoised.span_ids))


def new_token(
    input_ids: Tensor,
    generator: Generator,
    *,
    mask_id: int,
    special_ids: Collection[int],
    mask_rate: MaskRate = 0.15,
) -> TrainingSequence:
    """A control: `attended_pad` with a [MASK] token, as in BERT, that the model has not seen before.

    Arguments and result are those of `attended_pad`. `mask_id` is the id of the [MASK] token, which
    `bico_ext.models.special_tokens` adds.
    """
    return attended_pad(input_ids, generator, placeholder_id=mask_id, special_ids=special_ids, mask_rate=mask_rate)


def bert(
    input_ids: Tensor,
    generator: Generator,
    *,
    placeholder_id: int,
    special_ids: Collection[int],
    mask_rate: MaskRate = 0.15,
) -> TrainingSequence:
    """A control: masked language modelling as in BERT, where output i, not i - 1, predicts the token hidden at i.

    Arguments are those of `bico`. The last position is not eligible either, because a causal LM's loss ignores its
    output.

    Returns:
        As for `bico`, but the labels stand one position later, so that a causal LM's label shift pairs output i with
        the token hidden at i.
    """
    hidden = _hidden(input_ids, generator, special_ids, mask_rate, last_eligible=False)
    labels = torch.full_like(input_ids, NO_LOSS)
    labels[1:] = input_ids[:-1].masked_fill(~hidden[:-1], NO_LOSS)
    return TrainingSequence(input_ids.masked_fill(hidden, placeholder_id), labels, hidden.to(torch.int32).neg_())


def check_mask_rate(mask_rate: object) -> MaskRate:
    """Check a mask rate, given as a number or as text, and return it as a float or as "uniform".

    Raises:
        ValueError: it is neither "uniform" nor a number in (0, 1].
    """
    if mask_rate == "uniform":
        return "uniform"
    try:
        rate = float(mask_rate)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        rate = -1.0
    if not 0 < rate <= 1:
        raise ValueError(
            f"mask_rate must be in (0, 1] or 'uniform', got {mask_rate}; to hide no tokens use objective='ntp'"
        )
    return rate


def _hidden(
    input_ids: Tensor,
    generator: Generator,
    special_ids: Collection[int],
    mask_rate: MaskRate,
    last_eligible: bool = True,
) -> Tensor:
    """Draw which tokens are hidden, bool [S], as described in `bico`."""
    mask_rate = check_mask_rate(mask_rate)
    rate = float(torch.rand((), generator=generator)) if mask_rate == "uniform" else mask_rate
    eligible = may_be_hidden(input_ids, special_ids, last_eligible)
    hidden = (torch.rand(len(input_ids), generator=generator) < rate) & eligible
    if not hidden.any():
        candidates = eligible.nonzero()[:, 0]
        if len(candidates):
            hidden[candidates[torch.randint(len(candidates), (), generator=generator)]] = True
    return hidden
