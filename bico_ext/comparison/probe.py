"""The probe: what the sine flip (`mirror`) changes for a frozen model, which is not trained here.

It compares three conditions on the same texts:

* "causal": each token sees its past, as in pre-training.
* "bico": split-triangle attention. Each token sees both sides, and every key is at a negative rotary distance.
* "naive": both sides without the flip. Later keys are at positive rotary distances, which a causal model never met.

`bico_ext.comparison.probe_attention` shows where the model attends, and `denoising` measures how well it restores
hidden tokens.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from bico_ext.bounds import check_bounds
from bico_ext.comparison.probe_attention import attention_by_distance, attention_for_json
from bico_ext.facts.types import Example
from bico_ext.models.attach import attach
from bico_ext.models.tokenization import check_context, encode_text
from bico_ext.objectives.denoising import bico
from bico_ext.objectives.training_sequence import NO_LOSS, TrainingSequence, may_be_hidden, pad
from bico_ext.seeding import stream_seed

CONDITIONS = ("causal", "bico", "naive")
# Where the rate hides no token, bico hides one, drawn uniformly. A rate of almost 0 therefore means a single token.
MASK_RATES = {"0.15": 0.15, "0.3": 0.3, "single": 1e-12}
LENGTHS = (32, 64, 128, 256)


def probe(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[Example],
    *,
    samples: int = 256,
    seed: int = 0,
    batch_size: int = 16,
    progress: bool = True,
) -> dict[str, Any]:
    """Make both measurements; the result is what `probe.json` holds beside the settings.

    Args:
        model: a causal LM that `attach` accepts. It is attached and put into evaluation mode; its weights stay the
            same.
        tokenizer: the model's tokenizer.
        texts: the texts to read, for example `load_facts("synthetic").train`.
        samples: the largest number of texts, and of packed sequences of each length; default 256.
        seed: the seed of the choice of texts and of the hidden tokens; default 0.
        batch_size: sequences per forward pass of the denoising; default 16.
        progress: whether to show progress bars; default True.

    Returns:
        A dict ready for JSON: {"attention": {condition: {"rotary_distances", "mass_on_later_keys", "distances",
        "pairs", "mass", "logits"}}, "denoising": the records of `denoising`}. Undefined numbers are None.

    Raises:
        TypeError: the model cannot be attached.
        ValueError: there are no texts; a text exceeds the model's context or has no token that can be hidden; or
            samples or batch_size is below 1.

    Example:
        >>> probe(model, tokenizer, load_facts("synthetic").train, samples=64)["denoising"][0]  # doctest: +SKIP
    """
    check_bounds(samples=samples, batch_size=batch_size)
    sequences = encode(model, tokenizer, texts)
    order = torch.randperm(len(sequences), generator=Generator().manual_seed(stream_seed("probe", seed)))
    sequences = [sequences[i] for i in order]
    attach(model).eval()
    attention = {}
    for condition in CONDITIONS:
        profile = attention_by_distance(model, sequences[:samples], condition, progress)
        attention[condition] = attention_for_json(profile, condition)
    # Nothing attends to the placeholder. 0 is the id in the official code.
    placeholder_id = 0 if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)
    sequences_by_length = {None: sequences} | {
        length: pack(sequences, length)
        for length in LENGTHS
        if length <= model.config.get_text_config().max_position_embeddings
    }
    records = denoising(
        model,
        {length: members[:samples] for length, members in sequences_by_length.items() if members},
        placeholder_id=placeholder_id,
        special_ids=tokenizer.all_special_ids,
        seed=seed,
        batch_size=batch_size,
        progress=progress,
    )
    return {"attention": attention, "denoising": records}


def encode(model: Any, tokenizer: PreTrainedTokenizerBase, texts: Sequence[Example]) -> list[Tensor]:
    """Return the token ids of each text as in training (BOS, text, EOS), int64 [S] each.

    Raises:
        ValueError: there are no texts, or a text exceeds the model's context or has no token that can be hidden.
    """
    if not texts:
        raise ValueError("texts must hold at least one text, got none; name data with training texts")
    special = set(tokenizer.all_special_ids)
    sequences = []
    for number, text in enumerate(texts, start=1):
        ids = encode_text(tokenizer, text.text)
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


def denoising(
    model: Any,
    sequences_by_length: dict[int | None, list[Tensor]],
    *,
    placeholder_id: int,
    special_ids: Sequence[int],
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
        seed: the seed of the hidden tokens; default 0.
        batch_size: sequences per forward pass; default 16.
        progress: whether to show a progress bar; default False.

    Returns:
        One record for each length and each of `MASK_RATES`: {"length", "mask"}, the fields of `summary` over all hidden
        tokens, and "by_right_context": the same fields over the tokens that have "from" to "to" tokens on their right.
    """
    cases = [(length, mask) for length in sequences_by_length for mask in MASK_RATES]
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
            records.append({"length": length, "mask": mask} | by_right_context(hidden, losses))
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
        batch = {name: x.to(model.device) for name, x in padded.items()}
        labels = batch["labels"][:, 1:]
        with torch.inference_mode():
            logits = _logits(model, batch["input_ids"], batch["span_ids"], condition)[:, :-1]
            loss = cross_entropy(logits.double().mT, labels, ignore_index=NO_LOSS, reduction="none")
        for index, row_loss, row_labels in zip(indices, loss, labels, strict=True):
            losses[index] = row_loss[row_labels != NO_LOSS].cpu()
        if bar is not None:
            bar.update(len(indices))
    return [losses[index] for index in range(len(sequences))]


def _logits(model: Any, input_ids: Tensor, span_ids: Tensor, condition: str) -> Tensor:
    if condition != "causal":
        return model(input_ids=input_ids, span_ids=span_ids, mirror=condition == "bico").logits
    # Span ids cannot express this mask: a placeholder, whose output may have to predict the next token, would not see
    # its past.
    length = input_ids.shape[1]
    past = torch.ones(length, length, dtype=torch.bool, device=input_ids.device).tril()
    # [B, 1, m, n]. Token 0 is never hidden, so every query sees a key.
    mask = past & (span_ids == 0)[:, None, None, :]
    return model(input_ids=input_ids, attention_mask=mask, use_cache=False).logits


def by_right_context(sequences: Sequence[TrainingSequence], losses: dict[str, list[Tensor]]) -> dict[str, Any]:
    """Return the `summary` of all hidden tokens, and of those with 0, 1, 2-3, 4-7, 8-15, ... tokens on their right."""
    hidden = [(sequence.labels != NO_LOSS).nonzero()[:, 0] for sequence in sequences]
    lengths = [len(sequence.labels) for sequence in sequences]
    right = torch.cat([length - 1 - positions for length, positions in zip(lengths, hidden, strict=True)])
    text = torch.cat([torch.full_like(positions, number) for number, positions in enumerate(hidden)])
    flat = {condition: torch.cat(values) for condition, values in losses.items()}
    octaves = torch.tensor([count.bit_length() for count in right.tolist()])
    groups = []
    for octave in octaves.unique().tolist():
        chosen = octaves == octave
        group = summary({condition: values[chosen] for condition, values in flat.items()}, text[chosen])
        groups.append({"from": 2**octave // 2, "to": 2**octave - 1} | group)
    return summary(flat, text) | {"by_right_context": groups}


def summary(losses: dict[str, Tensor], text: Tensor) -> dict[str, Any]:
    """Average the losses of each text, then the texts; standard errors are over texts, and differences are paired.

    Args:
        losses: the loss of each hidden token by condition, float64 [N].
        text: int64 [N], the number of the text that each token belongs to.

    Returns:
        {"texts", "tokens", "loss": {condition: {"mean", "se"}}, "difference": {"bico - naive": {"mean", "se"},
        "bico - causal": ...}}; "se" is None for a single text.
    """
    present, index, count = text.unique(return_inverse=True, return_counts=True)
    means = {
        condition: torch.zeros(len(present), dtype=torch.float64).index_add_(0, index, values) / count
        for condition, values in losses.items()
    }
    return {
        "texts": len(present),
        "tokens": len(text),
        "loss": {condition: _estimate(values) for condition, values in means.items()},
        "difference": {f"bico - {other}": _estimate(means["bico"] - means[other]) for other in ("naive", "causal")},
    }


def _estimate(values: Tensor) -> dict[str, float | None]:
    se = values.std().item() / len(values) ** 0.5 if len(values) > 1 else None
    return {"mean": values.mean().item(), "se": se}
