"""What each pre-trained head does with nearby tokens: the past in its own frame, and what comes later in either frame.

The queries and keys are those of a causal forward pass, as in pre-training, and only the rotation of later keys varies.
The numbers therefore say what the flip does to a head itself, without what earlier layers have made of it.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from bico_ext.probing.attention import attention_calls, attention_matrix

REACH = 8  # tokens to either side of the query
# The name of each measurement: what the query sees, and the side on which the key stands.
SIDES = ("causal: past", "flip: past", "flip: later", "naive: past", "naive: later")


def heads_by_distance(
    model: Any, sequences: Sequence[Tensor], reach: int = REACH, progress: bool = False
) -> dict[str, Any]:
    """Measure each head's mean logit and share of the attention at the distances 1 to `reach` on both sides.

    Only queries with `reach` tokens on both sides, not counting the first token of a sequence, are averaged, so that
    all distances have the same queries. Differences of logits of one query mean something, their height does not.

    Args:
        model: an attached model in evaluation mode.
        sequences: sequences, int64 [S] each; at least one has 2 * `reach` + 2 tokens or more.
        reach: the farthest distance; default 8.
        progress: whether to show a progress bar; default False.

    Returns:
        {"queries": the number of queries, "logit" and "mass": {side: [layers][heads][reach]}}, where a side is one of
        `SIDES`. "mass" is the share of the attention, and "logit" the scaled score before the softmax.

    Raises:
        ValueError: no sequence is long enough.

    Example:
        >>> heads_by_distance(model, sequences)["mass"]["flip: later"][0][0]  # doctest: +SKIP
    """
    long_enough = [sequence for sequence in sequences if len(sequence) >= 2 * reach + 2]
    if not long_enough:
        raise ValueError(
            f"sequences must hold one of at least {2 * reach + 2} tokens for a reach of {reach}, got at most "
            f"{max(map(len, sequences), default=0)}; name longer texts or leave out the heads"
        )
    config = model.config.get_text_config()
    shape = (config.num_hidden_layers, config.num_attention_heads, reach)
    sums = {
        name: {side: torch.zeros(shape, dtype=torch.float64, device=model.device) for side in SIDES}
        for name in ("logit", "mass")
    }
    for sequence in tqdm(long_enough, desc="heads", unit="text", disable=not progress):
        causal = torch.ones(1, len(sequence), dtype=torch.int32, device=model.device)
        call = _stack(attention_calls(model, sequence, causal, mirror=True))
        for frame, span_ids in (("causal", causal), ("flip", causal - 1), ("naive", causal - 1)):
            call["mirror"] = frame != "naive"
            weights, scores = attention_matrix(**call, span_ids=span_ids.expand(shape[0], -1))
            for side in (side for side in SIDES if side.startswith(frame)):
                sign = -1 if side.endswith("past") else 1
                sums["mass"][side] += _sum_by_distance(weights, sign, reach)
                sums["logit"][side] += _sum_by_distance(scores, sign, reach)
    queries = sum(len(sequence) - 2 * reach - 1 for sequence in long_enough)
    means = {name: {side: (x / queries).tolist() for side, x in by_side.items()} for name, by_side in sums.items()}
    return {"queries": queries} | means


def _stack(calls: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the calls of all layers as one call, in which the layers are the batch; they share the scale."""
    return calls[0] | {name: torch.cat([call[name] for call in calls]) for name in ("q", "k", "cos", "sin")}


def _sum_by_distance(matrix: Tensor, sign: int, reach: int) -> Tensor:
    """Sum [layers, H, m, n] over queries, at n = m + sign * distance, distance <= reach: [layers, H, reach]."""
    length = matrix.shape[-1]
    queries = torch.arange(1 + reach, length - reach, device=matrix.device)[:, None]
    distances = torch.arange(1, reach + 1, device=matrix.device)
    return matrix[:, :, queries, queries + sign * distances].sum(2)
