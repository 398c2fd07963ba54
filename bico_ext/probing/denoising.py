"""How well a frozen model restores hidden tokens, in each condition of the probe."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from bico_ext.objectives.denoising import bico
from bico_ext.objectives.training_sequence import NO_LOSS, TrainingSequence, pad
from bico_ext.seeding import stream_seed

CONDITIONS = ("causal", "bico", "naive")
# Where the rate hides no token, bico hides one, drawn uniformly. A rate of almost 0 therefore means a single token.
MASK_RATES = {"0.15": 0.15, "0.3": 0.3, "single": 1e-12}


def denoising(
    model: Any,
    sequences_by_length: Mapping[int | None, Sequence[Tensor]],
    *,
    placeholder_id: int,
    special_ids: Sequence[int],
    masks: Sequence[str] = tuple(MASK_RATES),
    seed: int = 0,
    batch_size: int = 16,
    progress: bool = False,
) -> list[dict[str, Any]]:
    """Measure the cross-entropy of hidden tokens, which are the same in every condition.

    Output i predicts token i + 1. "causal" sees the tokens to the left that are not hidden, "bico" and "naive" those on
    both sides.

    Args:
        model: an attached model in evaluation mode.
        sequences_by_length: sequences, int64 [S] each, by their length; the key None is for texts as they are.
        placeholder_id: the token id that replaces hidden tokens; nothing attends to it.
        special_ids: the ids of tokens that are never hidden.
        masks: keys of `MASK_RATES`; default all.
        seed: the seed of the hidden tokens; default 0.
        batch_size: sequences per forward pass; default 16.
        progress: whether to show a progress bar; default False.

    Returns:
        One record for each length and mask: {"length", "mask"}, the fields of `summary` over all hidden tokens,
        "by_right_context": the same fields over the tokens that have "from" to "to" tokens on their right, and
        "by_nearest_later": the same by the distance to the nearest token on the right that is visible, or 0 if none is.
    """
    cases = [(length, mask) for length in sequences_by_length for mask in masks]
    records: list[dict[str, Any]] = []
    total = sum(len(sequences_by_length[length]) for length, _ in cases) * len(CONDITIONS)
    with tqdm(total=total, desc="denoising", unit="sequence", disable=not progress) as bar:
        for length, mask in cases:
            hide = partial(bico, placeholder_id=placeholder_id, special_ids=special_ids, mask_rate=MASK_RATES[mask])
            hidden = [
                hide(ids, Generator().manual_seed(stream_seed("probe", seed, str(length), mask, index)))
                for index, ids in enumerate(sequences_by_length[length])
            ]
            losses = {c: token_losses(model, hidden, c, placeholder_id, batch_size, bar) for c in CONDITIONS}
            records.append({"length": length, "mask": mask} | by_context(hidden, losses))
    return records


def token_losses(
    model: Any,
    sequences: Sequence[TrainingSequence],
    condition: str,
    pad_id: int,
    batch_size: int = 16,
    bar: Any = None,
) -> list[Tensor]:
    """Return the cross-entropy of each hidden token in nats, float64 [hidden tokens] for each sequence."""
    order = sorted(range(len(sequences)), key=lambda index: len(sequences[index].input_ids))  # little padding
    losses: dict[int, Tensor] = {}
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        padded = pad([sequences[index] for index in indices], pad_id)
        labels = padded["labels"][:, 1:]
        rows, columns = (labels != NO_LOSS).nonzero(as_tuple=True)
        batch = {name: padded[name].to(model.device) for name in ("input_ids", "span_ids")}
        outputs = (rows * padded["labels"].shape[1] + columns).to(model.device)
        with torch.inference_mode():
            (logits,) = _logits(model, **batch, condition=condition, output_positions=outputs)  # [hidden tokens, V]
            loss = cross_entropy(logits.float(), labels[rows, columns].to(model.device), reduction="none")
        counts = rows.bincount(minlength=len(indices)).tolist()
        losses |= zip(indices, loss.double().cpu().split(counts), strict=True)
        if bar is not None:
            bar.update(len(indices))
    return [losses[index] for index in range(len(sequences))]


def _logits(model: Any, input_ids: Tensor, span_ids: Tensor, condition: str, output_positions: Tensor) -> Tensor:
    """Return the logits of an attached model at the outputs alone: a vocabulary of 49,152 takes memory."""
    outputs = {"output_positions": output_positions}
    if condition != "causal":
        return model(input_ids=input_ids, span_ids=span_ids, mirror=condition == "bico", **outputs).logits
    # Span ids cannot express this mask: a placeholder, whose output may have to predict the next token, would not see
    # its past.
    length = input_ids.shape[1]
    past = torch.ones(length, length, dtype=torch.bool, device=input_ids.device).tril()
    # [B, 1, m, n]. Token 0 is never hidden, so every query sees a key.
    mask = past & (span_ids == 0)[:, None, None, :]
    return model(input_ids=input_ids, attention_mask=mask, use_cache=False, **outputs).logits


def by_context(sequences: Sequence[TrainingSequence], losses: Mapping[str, list[Tensor]]) -> dict[str, Any]:
    """Return the `summary` of all hidden tokens, and of those with 0, 1, 2-3, 4-7, 8-15, ... tokens on their right.

    The same groups are made of the distance to the nearest visible token on the right; 0 stands for none.
    """
    hidden = [(sequence.labels != NO_LOSS).nonzero()[:, 0] for sequence in sequences]
    text = torch.cat([torch.full_like(positions, number) for number, positions in enumerate(hidden)])
    flat = {condition: torch.cat(values) for condition, values in losses.items()}
    measures = {
        "by_right_context": [len(s.labels) - 1 - places for s, places in zip(sequences, hidden, strict=True)],
        "by_nearest_later": [nearest_later(s.span_ids)[places] for s, places in zip(sequences, hidden, strict=True)],
    }
    return summary(flat, text) | {name: _octaves(torch.cat(values), flat, text) for name, values in measures.items()}


def nearest_later(span_ids: Tensor) -> Tensor:
    """Return the distance from each token to the nearest later token that is context, or 0 if there is none.

    Example:
        >>> nearest_later(torch.tensor([0, -1, -1, 0, -1]))
        tensor([3, 2, 1, 0, 0])
    """
    length = len(span_ids)
    position = torch.arange(length)
    context = position.masked_fill(span_ids != 0, length)
    following = context.flip(0).cummin(0).values.flip(0).roll(-1)  # of n > m; the last entry wraps around
    following[-1] = length
    return (following - position).masked_fill(following == length, 0)


def _octaves(numbers: Tensor, losses: Mapping[str, Tensor], text: Tensor) -> list[dict[str, Any]]:
    octaves = torch.tensor([number.bit_length() for number in numbers.tolist()])
    groups = []
    for octave in octaves.unique().tolist():
        chosen = octaves == octave
        group = summary({condition: values[chosen] for condition, values in losses.items()}, text[chosen])
        groups.append({"from": 2**octave // 2, "to": 2**octave - 1} | group)
    return groups


def summary(losses: Mapping[str, Tensor], text: Tensor) -> dict[str, Any]:
    """Average the losses of each text, then the texts; standard errors are over texts, and differences are paired.

    Args:
        losses: the loss of each hidden token by condition, float64 [N].
        text: int64 [N], the number of the text that each token belongs to.

    Returns:
        {"texts", "tokens", "loss": {condition: {"mean", "se"}}, "difference": {"bico - naive": {"mean", "se"},
        "bico - causal": ...}}; "se" is None for a single text.
    """
    means = {condition: mean_by_text(values, text) for condition, values in losses.items()}
    return {
        "texts": len(text.unique()),
        "tokens": len(text),
        "loss": {condition: estimate(values) for condition, values in means.items()},
        "difference": {f"bico - {other}": estimate(means["bico"] - means[other]) for other in ("naive", "causal")},
    }


def mean_by_text(losses: Tensor, text: Tensor) -> Tensor:
    """Average losses, float64 [N], over the tokens of each text, int64 [N]; the texts are in ascending order."""
    present, index, count = text.unique(return_inverse=True, return_counts=True)
    return torch.zeros(len(present), dtype=torch.float64).index_add_(0, index, losses) / count


def estimate(values: Tensor) -> dict[str, float | None]:
    """Return the mean and its standard error, which is None for a single value."""
    se = values.std().item() / len(values) ** 0.5 if len(values) > 1 else None
    return {"mean": values.mean().item(), "se": se}
