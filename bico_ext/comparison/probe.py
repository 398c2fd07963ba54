"""What the sine flip (`mirror`) changes for a model that is not trained for it: nothing here trains.

Three conditions run on the same texts: "causal" (each token sees its past, as in pre-training), "bico" (split-triangle
attention: both sides, each at a negative rotary distance) and "naive" (both sides without the flip: later keys are at
positive rotary distances, which a causal model has never seen). `attention_by_distance` shows where each condition
attends; `denoising` measures how well the frozen model restores hidden tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from bico_ext.bounds import check_bounds
from bico_ext.facts.types import Example
from bico_ext.models.attach import attach
from bico_ext.models.tokenization import check_context, encode_text
from bico_ext.objectives.denoising import bico
from bico_ext.objectives.training_sequence import NO_LOSS, TrainingSequence, may_be_hidden, pad
from bico_ext.ops import reference
from bico_ext.seeding import stream_seed

CONDITIONS = ("causal", "bico", "naive")
# bico hides exactly one token, uniformly, where the rate draws none: a rate of practically 0 is a single hidden token.
MASK_RATES = {"0.15": 0.15, "0.3": 0.3, "single": 1e-12}
LENGTHS = (32, 64, 128, 256)


@dataclass(frozen=True)
class AttentionByDistance:
    """Where one condition attends, by the signed distance n - m of key n from query m; W = 2 * longest text - 1.

    Attributes:
        distances: int64 [W], ascending and symmetric about 0.
        pairs: int64 [W], visible (query, key) pairs at each distance, over all texts.
        mass: float64 [layers, W], share of the attention; a mean over heads, queries and texts, so each row sums to 1.
        logits: float64 [layers, W], mean scaled score before the softmax; NaN where `pairs` is 0.
    """

    distances: Tensor
    pairs: Tensor
    mass: Tensor
    logits: Tensor


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
    """Both measurements, ready for JSON: what `probe.json` holds beside the settings.

    Args:
        model: a causal LM that `attach` takes; it is attached and put into evaluation mode, and not trained.
        tokenizer: of the model.
        texts: what to read, for example `load_facts("synthetic").train`.
        samples: texts, and packed sequences of each length, that are drawn at most; default 256.
        seed: of the choice of texts and of the hidden tokens; default 0.
        batch_size: sequences at once in the denoising forwards; default 16.
        progress: show progress bars; default True.

    Returns:
        {"attention": {condition: {"rotary_distances", "mass_on_later_keys", "distances", "pairs", "mass", "logits"}},
        "denoising": what `denoising` returns}; None where there is no number.

    Raises:
        TypeError: the model cannot be attached.
        ValueError: no texts, a text longer than the model's context or without a token that can be hidden, samples or
            batch_size below 1.

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
        attention[condition] = _attention_for_json(profile, condition)
    # Nothing attends to the placeholder; 0 is the official code's.
    placeholder_id = 0 if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)
    sets = {None: sequences} | {
        length: pack(sequences, length)
        for length in LENGTHS
        if length <= model.config.get_text_config().max_position_embeddings
    }
    records = denoising(
        model,
        {length: rows[:samples] for length, rows in sets.items() if rows},
        placeholder_id=placeholder_id,
        special_ids=tokenizer.all_special_ids,
        seed=seed,
        batch_size=batch_size,
        progress=progress,
    )
    return {"attention": attention, "denoising": records}


def encode(model: Any, tokenizer: PreTrainedTokenizerBase, texts: Sequence[Example]) -> list[Tensor]:
    """The token ids of each text as in training (BOS, text, EOS), int64 [S] each; all of them checked.

    Raises:
        ValueError: no texts, a text longer than the model's context, or one with nothing to hide.
    """
    if not texts:
        raise ValueError("texts must hold at least one text, got none; name data with training texts")
    special = set(tokenizer.all_special_ids)
    sequences = []
    for number, text in enumerate(texts, start=1):
        ids = encode_text(tokenizer, text.text)
        check_context(model, len(ids), f"text {number}, {text.text!r:.60},", "leave it out or shorten it")
        if not may_be_hidden(torch.tensor(ids), special).any():
            raise ValueError(
                f"text {number} has no token to hide: after the first it needs one that is not special, "
                f"got {ids}; leave it out: {text.text!r:.60}"
            )
        sequences.append(torch.tensor(ids))
    return sequences


def pack(sequences: Sequence[Tensor], length: int) -> list[Tensor]:
    """The sequences one after the other, cut into as many of exactly `length` tokens as they fill.

    A packed sequence is one long text: its tokens see each other across the ends of the texts in it.

    Example:
        >>> pack([torch.tensor([1, 2, 3]), torch.tensor([4, 5])], 2)
        [tensor([1, 2]), tensor([3, 4])]
    """
    tokens = torch.cat(list(sequences))
    return list(tokens[: len(tokens) // length * length].split(length)) if len(tokens) >= length else []


def rotary_distance(distance: int, condition: str) -> int:
    """The signed relative rotary distance at which a query meets a key at the offset `distance` = n - m.

    Example:
        >>> [rotary_distance(3, condition) for condition in ("bico", "naive")]
        [-3, 3]
    """
    return distance if condition == "naive" else -abs(distance)


def attention_by_distance(
    model: Any, sequences: Sequence[Tensor], condition: str, progress: bool = False
) -> AttentionByDistance:
    """Run `model` on each sequence in one condition and sort what its layers attend to by distance.

    The scores are recomputed densely in float64 by `bico_ext.ops.reference` from each layer's q and k, so they do not
    depend on the kernels beyond the layers' inputs.

    Args:
        model: an attached model in evaluation mode.
        sequences: int64 [S] each, at least one.
        condition: one of `CONDITIONS`.
        progress: show a progress bar; default False.

    Returns:
        Means over all of them.

    Example:
        >>> attention_by_distance(model, sequences, "bico").mass.sum(-1)  # doctest: +SKIP
        tensor([1., 1.], dtype=torch.float64)
    """
    longest = max(map(len, sequences))
    layers = model.config.get_text_config().num_hidden_layers
    width = 2 * longest - 1
    mass, logits = torch.zeros(2, layers, width, dtype=torch.float64)
    pairs = torch.zeros(width, dtype=torch.int64)
    queries = sum(map(len, sequences))
    for sequence in tqdm(sequences, desc=f"attention, {condition}", unit="text", disable=not progress):
        span_ids = torch.full((1, len(sequence)), int(condition == "causal"), dtype=torch.int32)
        position = torch.arange(len(sequence))
        bins = (position[None, :] - position[:, None] + longest - 1).flatten()  # [m * n]
        seen = reference.visible(span_ids)[0].flatten()
        pairs += torch.bincount(bins[seen], minlength=width)
        for layer, caught in enumerate(_caught_layers(model, sequence, span_ids, mirror=condition == "bico")):
            weights, scores = attention_matrix(**caught, span_ids=span_ids)
            mass[layer].index_add_(0, bins, weights[0].mean(0).flatten() / queries)
            logits[layer].index_add_(0, bins[seen], scores[0].mean(0).flatten()[seen])
    return AttentionByDistance(torch.arange(width) - (longest - 1), pairs, mass, logits / pairs)


def attention_matrix(
    q: Tensor,
    k: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    span_ids: Tensor,
    scale: float | None,
    mirror: bool,
    interleaved: bool = False,
) -> tuple[Tensor, Tensor]:
    """The attention weights and the scaled scores before the softmax, in float64, by the reference.

    Args:
        q: [B, Hq, S, D], not rotated; k: [B, Hkv, S, D]; cos, sin: [1 or B, S, R].
        span_ids: int32 [B, S].
        scale: of the scores; None: 1 / sqrt(D).
        mirror: whether later keys are met with flipped sines.
        interleaved: whether rotary pairs are (2i, 2i + 1).

    Returns:
        Two tensors [B, Hq, S (query m), S (key n)]; an unseen key has weight 0 and score -inf.
    """
    length = q.shape[2]
    values = torch.eye(length, dtype=torch.float64).expand(*k.shape[:2], -1, -1)  # so that the weights come out
    q, k, cos, sin = (x.double() for x in (q, k, cos, sin))
    weights, lse = reference.split_triangle_attention(
        q,
        k,
        values,
        cos,
        sin,
        span_ids=span_ids,
        scale=scale,
        mirror=mirror,
        interleaved=interleaved,
        return_lse=True,
    )
    return weights, weights.log() + lse[..., None]


def _caught_layers(model: Any, sequence: Tensor, span_ids: Tensor, mirror: bool) -> list[dict[str, Any]]:
    """What each layer hands to the op, in the order in which the layers run: arguments of `attention_matrix`."""
    with _CatchAttention() as caught, torch.no_grad():
        model(input_ids=sequence[None].to(model.device), span_ids=span_ids.to(model.device), mirror=mirror)
    return caught.layers


class _CatchAttention(TorchDispatchMode):
    """Keeps the arguments of the op's calls, its tensors on the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.layers: list[dict[str, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.bico.attention_forward.default:
            q, k, _, cos, sin, _, _, scale, mirror, interleaved = args
            tensors = {name: x.cpu() for name, x in (("q", q), ("k", k), ("cos", cos), ("sin", sin))}
            self.layers.append({**tensors, "scale": scale, "mirror": mirror, "interleaved": interleaved})
        return func(*args, **(kwargs or {}))


def _attention_for_json(profile: AttentionByDistance, condition: str) -> dict[str, Any]:
    seen = profile.pairs > 0
    distances = profile.distances.tolist()
    return {
        "distances": distances,
        "pairs": profile.pairs.tolist(),
        "rotary_distances": [
            rotary_distance(distance, condition) if there else None
            for distance, there in zip(distances, seen.tolist(), strict=True)
        ],
        "mass_on_later_keys": profile.mass[:, profile.distances > 0].sum(-1).mean().item(),
        "mass": profile.mass.tolist(),
        "logits": [
            [score if there else None for score, there in zip(layer, seen.tolist(), strict=True)]
            for layer in profile.logits.tolist()
        ],
    }


def denoising(
    model: Any,
    sets: dict[int | None, list[Tensor]],
    *,
    placeholder_id: int,
    special_ids: Sequence[int],
    seed: int = 0,
    batch_size: int = 16,
    progress: bool = False,
) -> list[dict[str, Any]]:
    """Cross-entropy of restoring hidden tokens, the same ones in every condition: output i restores token i + 1.

    "causal" sees the unhidden tokens to the left, "bico" and "naive" those of both sides.

    Args:
        model: an attached model in evaluation mode.
        sets: sequences, int64 [S] each, by their length; None for texts as they are.
        placeholder_id: replaces hidden tokens; nothing attends to it.
        special_ids: never hidden.
        seed: of the hidden tokens; default 0.
        batch_size: sequences at once; default 16.
        progress: show a progress bar; default False.

    Returns:
        One record for each set and each of `MASK_RATES`: {"length", "mask"} and the fields of `summary` over all hidden
        tokens, and "by_right_context": the same over those with "from" to "to" tokens on their right.
    """
    jobs = [(length, mask) for length in sets for mask in MASK_RATES]
    records: list[dict[str, Any]] = []
    total = sum(len(sets[length]) for length, _ in jobs) * len(CONDITIONS)
    with tqdm(total=total, desc="denoising", unit="sequence", disable=not progress) as bar:
        for length, mask in jobs:
            hide = partial(bico, placeholder_id=placeholder_id, special_ids=special_ids, mask_rate=MASK_RATES[mask])
            rows = [
                hide(ids, Generator().manual_seed(stream_seed("probe", seed, str(length), mask, place)))
                for place, ids in enumerate(sets[length])
            ]
            losses = {c: token_losses(model, rows, c, placeholder_id, batch_size, bar) for c in CONDITIONS}
            records.append({"length": length, "mask": mask} | by_right_context(rows, losses))
    return records


def token_losses(
    model: Any, rows: Sequence[TrainingSequence], condition: str, pad_id: int, batch_size: int = 16, bar: Any = None
) -> list[Tensor]:
    """The cross-entropy of each hidden token (nats), float64 [hidden tokens] for each row."""
    order = sorted(range(len(rows)), key=lambda place: len(rows[place].input_ids))  # little padding
    losses: dict[int, Tensor] = {}
    for start in range(0, len(order), batch_size):
        places = order[start : start + batch_size]
        batch = {name: x.to(model.device) for name, x in pad([rows[place] for place in places], pad_id).items()}
        labels = batch["labels"][:, 1:]
        with torch.inference_mode():
            logits = _logits(model, batch["input_ids"], batch["span_ids"], condition)[:, :-1]
            loss = cross_entropy(logits.double().mT, labels, ignore_index=NO_LOSS, reduction="none")
        for place, row_loss, row_labels in zip(places, loss, labels, strict=True):
            losses[place] = row_loss[row_labels != NO_LOSS].cpu()
        if bar is not None:
            bar.update(len(places))
    return [losses[place] for place in range(len(rows))]


def _logits(model: Any, input_ids: Tensor, span_ids: Tensor, condition: str) -> Tensor:
    if condition != "causal":
        return model(input_ids=input_ids, span_ids=span_ids, mirror=condition == "bico").logits
    # Span ids cannot say it: a placeholder, which may have to restore the token after it, would see no past at all.
    length = input_ids.shape[1]
    past = torch.ones(length, length, dtype=torch.bool, device=input_ids.device).tril()
    mask = past & (span_ids == 0)[:, None, None, :]  # [B, 1, m, n]; token 0 is never hidden, so no query is blind
    return model(input_ids=input_ids, attention_mask=mask, use_cache=False).logits


def by_right_context(rows: Sequence[TrainingSequence], losses: dict[str, list[Tensor]]) -> dict[str, Any]:
    """`summary` of all hidden tokens, and by the number of tokens on their right: 0, 1, 2-3, 4-7, 8-15, ..."""
    hidden = [(row.labels != NO_LOSS).nonzero()[:, 0] for row in rows]
    right = torch.cat([len(row.labels) - 1 - places for row, places in zip(rows, hidden, strict=True)])
    text = torch.cat([torch.full_like(places, number) for number, places in enumerate(hidden)])
    flat = {condition: torch.cat(values) for condition, values in losses.items()}
    octaves = torch.tensor([count.bit_length() for count in right.tolist()])
    groups = []
    for octave in octaves.unique().tolist():
        chosen = octaves == octave
        group = summary({condition: values[chosen] for condition, values in flat.items()}, text[chosen])
        groups.append({"from": 2**octave // 2, "to": 2**octave - 1} | group)
    return summary(flat, text) | {"by_right_context": groups}


def summary(losses: dict[str, Tensor], text: Tensor) -> dict[str, Any]:
    """Means over texts of each text's mean loss, and their paired differences, with standard errors over texts.

    Args:
        losses: by condition, float64 [N], one for each hidden token.
        text: int64 [N], the text that the token is of.

    Returns:
        {"texts", "tokens", "loss": {condition: {"mean", "se"}}, "difference": {"bico - naive": {"mean", "se"},
        "bico - causal": ...}}; "se" is None for a single text.
    """
    present, place, count = text.unique(return_inverse=True, return_counts=True)
    means = {
        condition: torch.zeros(len(present), dtype=torch.float64).index_add_(0, place, values) / count
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
