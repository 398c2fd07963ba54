"""Where a model attends, by the distance of the key from the query, in each condition of the probe."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from bico_ext.ops import reference
from bico_ext.ops.backends import Attention, Interception


@dataclass(frozen=True)
class AttentionByDistance:
    """Where the model attends in one condition, by the signed distance n - m of key n from query m.

    W = 2 * length of the longest text - 1.

    Attributes:
        distances: int64 [W], ascending and symmetric about 0.
        pairs: int64 [W], the number of visible (query, key) pairs at each distance, over all texts.
        mass: float64 [layers, W], the share of the attention, averaged over heads, queries and texts. Rows sum to 1.
        logits: float64 [layers, W], the mean scaled score before the softmax; NaN where `pairs` is 0.
    """

    distances: Tensor
    pairs: Tensor
    mass: Tensor
    logits: Tensor


def rotary_distance(distance: int, condition: str) -> int:
    """Return the signed rotary distance at which query m meets key n, for `distance` = n - m.

    Example:
        >>> [rotary_distance(3, condition) for condition in ("bico", "naive")]
        [-3, 3]
    """
    return distance if condition == "naive" else -abs(distance)


def attention_by_distance(
    model: Any, sequences: Sequence[Tensor], condition: str, progress: bool = False
) -> AttentionByDistance:
    """Run the model on each sequence in one condition, and average the attention of its layers by distance.

    `bico_ext.ops.reference` recomputes the scores densely in float64 from each layer's q and k. The kernels therefore
    influence the result only through the inputs of the layers.

    Args:
        model: an attached model in evaluation mode.
        sequences: at least one sequence, int64 [S] each.
        condition: one of `bico_ext.probing.denoising.CONDITIONS`.
        progress: whether to show a progress bar; default False.

    Returns:
        The averages over all sequences.

    Raises:
        ValueError: a sequence is longer than the sliding window of a layer.

    Example:
        >>> attention_by_distance(model, sequences, "bico").mass.sum(-1)  # doctest: +SKIP
        tensor([1., 1.], dtype=torch.float64)
    """
    longest = max(map(len, sequences))
    layers = model.config.get_text_config().num_hidden_layers
    width = 2 * longest - 1
    mass, logits = torch.zeros(2, layers, width, dtype=torch.float64, device=model.device)
    pairs = torch.zeros(width, dtype=torch.int64)
    queries = sum(map(len, sequences))
    for sequence in tqdm(sequences, desc=f"attention, {condition}", unit="text", disable=not progress):
        span_ids = torch.full((1, len(sequence)), int(condition == "causal"), dtype=torch.int32)
        position = torch.arange(len(sequence))
        bins = (position[None, :] - position[:, None] + longest - 1).flatten()  # [m * n]
        seen = reference.visible(span_ids)[0].flatten()
        pairs += torch.bincount(bins[seen], minlength=width)
        bins, seen, span_ids = (x.to(model.device) for x in (bins, seen, span_ids))
        for layer, call in enumerate(attention_calls(model, sequence, span_ids, mirror=condition == "bico")):
            weights, scores = attention_matrix(**call, span_ids=span_ids)
            mass[layer].index_add_(0, bins, weights[0].mean(0).flatten() / queries)
            logits[layer].index_add_(0, bins, scores[0].mean(0).flatten().where(seen, 0))
    mass, logits = mass.cpu(), logits.cpu()
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
    """Compute the attention weights and the scaled scores before the softmax with the reference, in float64.

    Args:
        q: [B, Hq, S, D], not rotated.
        k: [B, Hkv, S, D], not rotated.
        cos: [1 or B, S, R].
        sin: [1 or B, S, R].
        span_ids: int32 [B, S].
        scale: the factor of the scores; None means 1 / sqrt(D).
        mirror: whether later keys are met in the minus frame R(-m), that is with flipped sines.
        interleaved: whether rotary pairs are (2i, 2i + 1).

    Returns:
        Two tensors [B, Hq, S (query m), S (key n)]: weights and scores. An invisible key has weight 0 and score -inf.
    """
    length = q.shape[2]
    values = torch.eye(length, dtype=torch.float64, device=q.device).expand(
        *k.shape[:2], -1, -1
    )  # then the output is the weights
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


def attention_calls(model: Any, sequence: Tensor, span_ids: Tensor, mirror: bool) -> list[dict[str, Any]]:
    """Return the arguments with which each layer calls the op, first layer first, as `attention_matrix` takes them."""
    with _RecordAttention() as recorder, torch.no_grad():
        model(input_ids=sequence[None].to(model.device), span_ids=span_ids, mirror=mirror)
    return recorder.calls


class _RecordAttention(Interception):
    """Records the arguments of all calls of the op."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def attention(self, compute: Attention, *arguments: Any) -> tuple[Tensor, Tensor]:
        q, k, _, cos, sin, _, _, window, scale, mirror, interleaved = arguments
        if window is not None and q.shape[2] > window:
            raise ValueError(
                f"a layer has a sliding window of {window} tokens, so a text of {q.shape[2]} has distances at which "
                "only some layers attend; probe shorter texts"
            )
        names = ("q", "k", "cos", "sin", "scale", "mirror", "interleaved")
        self.calls.append(dict(zip(names, (q, k, cos, sin, scale, mirror, interleaved), strict=True)))
        return compute(*arguments)


def attention_for_json(profile: AttentionByDistance, condition: str) -> dict[str, Any]:
    """Return the record of one condition in `probe.json`; None where no pair is visible."""
    seen = (profile.pairs > 0).tolist()
    distances = profile.distances.tolist()
    return {
        "distances": distances,
        "pairs": profile.pairs.tolist(),
        "rotary_distances": [
            rotary_distance(distance, condition) if visible else None
            for distance, visible in zip(distances, seen, strict=True)
        ],
        "mass_on_later_keys": profile.mass[:, profile.distances > 0].sum(-1).mean().item(),
        "mass": profile.mass.tolist(),
        "logits": [
            [score if visible else None for score, visible in zip(layer, seen, strict=True)]
            for layer in profile.logits.tolist()
        ],
    }
