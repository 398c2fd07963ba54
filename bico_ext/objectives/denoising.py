"""Denoising of hidden tokens: BICO's objective, and the controls that change one thing in it.

objective      placeholder        predicted by   later keys
bico           ignored as a key   output i - 1   mirrored
naive          ignored            output i - 1   as they are
attended_pad   a key              output i - 1   mirrored
new_token      a key, a fresh     output i - 1   mirrored
               embedding
bert           ignored            output i       mirrored
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

    Each eligible token is masked on its own with probability `mask_rate`. Where that draws nothing, one eligible token
    is taken uniformly, so that every sequence with an eligible token has a loss; in a sequence of n eligible tokens
    the expected number of masked ones is therefore n * mask_rate + (1 - mask_rate) ** n.

    Args:
        input_ids: int64 [S].
        generator: the source of the draws.
        placeholder_id: an existing token id that replaces the masked ones. It is never a key, so its embedding
            reaches no other position.
        special_ids: ids that are never masked, such as BOS and EOS. Position 0 is not eligible either.
        mask_rate: in (0, 1]; default 0.15, the paper's. "uniform": a rate uniform in (0, 1) for each sequence
            (MLM-U, arXiv 2406.05183).

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
    """The paper's out-of-distribution control: `bico` without the sine flip, so that later keys are at distances > 0.

    Arguments and result as of `bico`, but for `mirror`, which is False.
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
    """A control: `bico` whose placeholder, an existing token, is visible as a key.

    Arguments and result as of `bico`, but for the span ids, which are 0 everywhere.
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
    """A control: `attended_pad` with a [MASK] token that the model has not seen before, as BERT has one.

    Arguments and result as of `attended_pad`; `mask_id` is the token's id (`bico_ext.models.special_tokens` adds it).
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
    """A control: masked language modelling as BERT does it: output i, not i - 1, predicts the token hidden at i.

    Arguments as of `bico`; the last position is not eligible either, as a causal LM's loss leaves its output out.

    Returns:
        As `bico`, with the labels one position later, where the label shift of a causal LM looks for them.
    """
    hidden = _hidden(input_ids, generator, special_ids, mask_rate, last_eligible=False)
    labels = torch.full_like(input_ids, NO_LOSS)
    labels[1:] = input_ids[:-1].masked_fill(~hidden[:-1], NO_LOSS)
    return TrainingSequence(input_ids.masked_fill(hidden, placeholder_id), labels, hidden.to(torch.int32).neg_())


def check_mask_rate(mask_rate: object) -> MaskRate:
    """The rate as a float or "uniform", from a number or a text of either.

    Raises:
        ValueError: neither "uniform" nor a usable probability: in (0, 1].
    """
    if mask_rate == "uniform":
        return "uniform"
    try:
        rate = float(mask_rate)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        rate = -1.0
    if not 0 < rate <= 1:
        raise ValueError(
            f"mask_rate must be in (0, 1] or 'uniform', got {mask_rate}; for no masking use objective='ntp'"
        )
    return rate


def _hidden(
    input_ids: Tensor,
    generator: Generator,
    special_ids: Collection[int],
    mask_rate: MaskRate,
    last_eligible: bool = True,
) -> Tensor:
    """Which tokens are masked, bool [S]; see `bico`."""
    mask_rate = check_mask_rate(mask_rate)
    rate = float(torch.rand((), generator=generator)) if mask_rate == "uniform" else mask_rate
    eligible = may_be_hidden(input_ids, special_ids, last_eligible)
    hidden = (torch.rand(len(input_ids), generator=generator) < rate) & eligible
    if not hidden.any():
        candidates = eligible.nonzero()[:, 0]
        if len(candidates):
            hidden[candidates[torch.randint(len(candidates), (), generator=generator)]] = True
    return hidden
