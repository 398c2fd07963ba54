"""The flip in some layers, heads or distances only, which tells where a frozen model is helped or harmed by it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from bico_ext.objectives.training_sequence import TrainingSequence
from bico_ext.ops import reference
from bico_ext.ops.backends import Attention, Interception
from bico_ext.probing.denoising import estimate, token_losses
from bico_ext.seeding import stream_seed


class PartialFlip(Interception):
    """While entered, forward passes of an attached model with `span_ids` flip the sines where the table says.

    A layer that flips everywhere or nowhere calls the op; another one computes dense attention in float32.

    Args:
        flipped: bool [layers, Hq, distances]. The last entry also stands for all greater distances.

    Example:
        >>> with PartialFlip(torch.ones(30, 9, 1, dtype=torch.bool)):  # doctest: +SKIP
        ...     model(input_ids=input_ids, span_ids=span_ids)
    """

    def __init__(self, flipped: Tensor) -> None:
        self.flipped = flipped
        self.layer = 0

    def attention(self, compute: Attention, *arguments: Any) -> tuple[Tensor, Tensor]:
        flipped = self.flipped[self.layer]
        self.layer = (self.layer + 1) % len(self.flipped)
        q, k, v, cos, sin, span_ids, cu_seqlens, window, scale, _, interleaved = arguments
        if flipped.all() or not flipped.any():
            mirror = bool(flipped.any())
            return compute(q, k, v, cos, sin, span_ids, cu_seqlens, window, scale, mirror, interleaved)
        with torch.autocast(q.device.type, enabled=False):  # it would multiply in 16 bits
            return _dense_attention(q, k, v, cos, sin, span_ids, window, scale, interleaved, flipped.to(q.device))


def _dense_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor,
    sin: Tensor,
    span_ids: Tensor,
    window: int | None,
    scale: float,
    interleaved: bool,
    flipped: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return out [B, Hq, S, D] in the dtype of q and lse [B, Hq, S]; `flipped` is bool [Hq, distances]."""
    group = q.shape[1] // k.shape[1]
    q32, k32, v32, cos, sin = (x.float() for x in (q, k, v, cos, sin))
    k32, v32 = (x.repeat_interleave(group, dim=1) for x in (k32, v32))  # [B, Hq, S, D]
    plus, minus = (
        reference.rotate(q32, cos, sines, interleaved) @ reference.rotate(k32, cos, sines, interleaved).mT
        for sines in (sin, -sin)
    )  # [B, Hq, m, n]
    position = torch.arange(q.shape[2], device=q.device)
    distance = position[None, :] - position[:, None]  # [m, n]
    chosen = flipped[:, distance.clamp(1, flipped.shape[1]) - 1] & (distance > 0)  # [Hq, m, n]
    seen = reference.visible(span_ids, window)[:, None]  # [B, 1, m, n]
    scores = (minus.where(chosen, plus) * scale).masked_fill(~seen, -torch.inf)
    return (scores.softmax(-1).nan_to_num() @ v32).to(q.dtype), scores.logsumexp(-1)


def partial_flips(
    model: Any,
    sequences: Sequence[TrainingSequence],
    tables: dict[str, Tensor],
    *,
    placeholder_id: int,
    batch_size: int = 16,
    progress: bool = False,
) -> dict[str, Tensor]:
    """Return each text's mean loss on hidden tokens, float64 [texts], for each table of `PartialFlip`."""
    losses = {}
    for name, table in tqdm(tables.items(), desc="partial flips", disable=not progress):
        with PartialFlip(table):
            by_token = token_losses(model, sequences, "bico", placeholder_id, batch_size)
        losses[name] = torch.stack([values.mean() for values in by_token])
    return losses


def layer_tables(layers: int, heads: int) -> dict[str, Tensor]:
    """Return tables that flip one layer only, all but one, and all below one.

    Example:
        >>> sorted(layer_tables(2, 1))
        ['layers: all but 0', 'layers: all but 1', 'layers: below 1', 'layers: only 0', 'layers: only 1']
    """
    layer = torch.arange(layers)[:, None, None].expand(layers, heads, 1)
    one = range(layers)
    return (
        {f"layers: only {number}": layer == number for number in one}
        | {f"layers: all but {number}": layer != number for number in one}
        | {f"layers: below {number}": layer < number for number in one if number}
    )


def distance_tables(layers: int, heads: int, longest: int) -> dict[str, Tensor]:
    """Return tables that flip keys up to a distance of 1, 2, 4, ... only, and those that flip keys beyond it only."""
    ends = [2**power for power in range((longest - 1).bit_length())]
    distance = torch.arange(1, longest + 1).expand(layers, heads, longest)
    return {f"distances: up to {end}": distance <= end for end in ends} | {
        f"distances: beyond {end}": distance > end for end in ends
    }


def head_tables(mass: Tensor, seed: int = 0) -> dict[str, Tensor]:
    """Return tables that flip a share of the heads only: those that look most at the token before, the rest, or any.

    Args:
        mass: [layers, heads], the share of the attention that a head gives to the token before in a causal pass.
        seed: of the choice of any heads, which is the control; default 0.
    """
    looking = mass.flatten().argsort(descending=True)
    order = torch.Generator().manual_seed(stream_seed("probe", seed, "heads"))
    anyhow = torch.randperm(len(looking), generator=order)
    tables = {}
    for percent in (10, 25, 50):
        count = round(len(looking) * percent / 100)
        for name, chosen in (("looking back", looking[:count]), ("others", looking[count:]), ("any", anyhow[:count])):
            table = torch.zeros(len(looking), dtype=torch.bool).index_fill(0, chosen, True)
            tables[f"heads: {name}, {percent} %"] = table.view(*mass.shape, 1)
    return tables


def compare_tables(losses: dict[str, Tensor], nowhere: Tensor, everywhere: Tensor) -> list[dict[str, Any]]:
    """Return a record for each table: {"where", "partial - naive", "partial - bico"}, with means and standard errors.

    Args:
        losses: what `partial_flips` returns.
        nowhere: float64 [texts], the losses without the flip ("naive").
        everywhere: float64 [texts], the losses with it ("bico").
    """
    return [
        {"where": name, "partial - naive": estimate(x - nowhere), "partial - bico": estimate(x - everywhere)}
        for name, x in losses.items()
    ]


def chosen_layers(losses: dict[str, Tensor], nowhere: Tensor) -> tuple[Tensor, Tensor]:
    """Choose the layers in which the flip alone lowers the loss, once on each half of the texts.

    Args:
        losses: what `partial_flips` returns for `layer_tables`.
        nowhere: float64 [texts], the losses without the flip.

    Returns:
        Two tensors bool [layers]: chosen on the texts of even and of odd number.
    """
    only = torch.stack([x - nowhere for name, x in losses.items() if name.startswith("layers: only")])
    return only[:, ::2].mean(1) < 0, only[:, 1::2].mean(1) < 0
