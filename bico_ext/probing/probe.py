"""The probe: what the sine flip (`mirror`) changes for a frozen model, which is not trained here.

It compares three conditions on the same texts:

* "causal": each token sees its past, as in pre-training.
* "bico": split-triangle attention. Each token sees both sides, and every key is at a negative rotary distance.
* "naive": both sides without the flip. Later keys are at positive rotary distances, which a causal model never met.

`probe` shows where the model attends and how well it restores hidden tokens. `details` shows what each head does with
nearby tokens, and in which layers, heads and distances the flip helps or harms.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor
from transformers import PreTrainedTokenizerBase

from bico_ext.models.attach import attach
from bico_ext.models.tokenization import padding_id
from bico_ext.objectives.denoising import bico
from bico_ext.probing.attention import attention_by_distance, attention_for_json
from bico_ext.probing.denoising import CONDITIONS, MASK_RATES, denoising, estimate
from bico_ext.probing.heads import heads_by_distance
from bico_ext.probing.partial_flip import (
    chosen_layers,
    compare_tables,
    distance_tables,
    head_tables,
    layer_tables,
    partial_flips,
)
from bico_ext.seeding import stream_seed


def probe(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    sequences_by_length: Mapping[int | None, Sequence[Tensor]],
    *,
    masks: Sequence[str] = tuple(MASK_RATES),
    attention_samples: int = 256,
    seed: int = 0,
    batch_size: int = 16,
    progress: bool = True,
) -> dict[str, Any]:
    """Measure the attention by distance and the loss on hidden tokens; the result is what `probe.json` holds.

    Args:
        model: a causal LM that `attach` accepts. It is attached and put into evaluation mode; its weights stay the
            same.
        tokenizer: the model's tokenizer.
        sequences_by_length: what `bico_ext.probing.texts.sequences_by_length` returns.
        masks: keys of `MASK_RATES`; default 0.15, 0.3 and a single token per sequence.
        attention_samples: the largest number of texts whose attention is measured, one at a time; default 256.
        seed: the seed of the hidden tokens; default 0.
        batch_size: sequences per forward pass of the denoising; default 16.
        progress: whether to show progress bars; default True.

    Returns:
        A dict ready for JSON: {"attention": {condition: {"rotary_distances", "mass_on_later_keys", "distances",
        "pairs", "mass", "logits"}}, "denoising": the records of `denoising`}. The attention is that of the texts as
        they are. Undefined numbers are None.

    Raises:
        TypeError: the model cannot be attached.

    Example:
        >>> sequences = sequences_by_length(model, tokenizer, load_facts("synthetic").train, [64])  # doctest: +SKIP
        >>> probe(model, tokenizer, sequences)["denoising"][0]  # doctest: +SKIP
    """
    attach(model).eval()
    attention = {}
    for condition in CONDITIONS:
        profile = attention_by_distance(model, sequences_by_length[None][:attention_samples], condition, progress)
        attention[condition] = attention_for_json(profile, condition)
    records = denoising(
        model,
        sequences_by_length,
        placeholder_id=padding_id(model, tokenizer),
        special_ids=tokenizer.all_special_ids,
        masks=masks,
        seed=seed,
        batch_size=batch_size,
        progress=progress,
    )
    return {"attention": attention, "denoising": records}


def details(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    sequences: Sequence[Tensor],
    *,
    mask: str = "0.15",
    seed: int = 0,
    batch_size: int = 16,
    progress: bool = True,
) -> dict[str, Any]:
    """Measure what each head does with nearby tokens, and the loss with the flip in a part of the model only.

    Args:
        model: a causal LM that `attach` accepts. It is attached and put into evaluation mode.
        tokenizer: the model's tokenizer.
        sequences: at least two sequences, int64 [S] each, for example packed to 256 tokens.
        mask: a key of `MASK_RATES`; default "0.15".
        seed: the seed of the hidden tokens; default 0.
        batch_size: sequences per forward pass with hidden tokens; default 16.
        progress: whether to show progress bars; default True.

    Returns:
        A dict ready for JSON: {"heads": what `heads_by_distance` returns; "partial_flips": {"texts": the number of
        sequences, "length": the longest one, "mask", "bico - naive": the flip everywhere, "tables": the records of
        `compare_tables`}}.

    Raises:
        TypeError: the model cannot be attached.
        ValueError: there are fewer than two sequences, or none is long enough for `heads_by_distance`.

    Example:
        >>> details(model, tokenizer, sequences[256][:64])["partial_flips"]["bico - naive"]  # doctest: +SKIP
    """
    if len(sequences) < 2:
        raise ValueError(
            f"details need at least two sequences, got {len(sequences)}; name more texts or a smaller length"
        )
    attach(model).eval()
    heads = heads_by_distance(model, sequences, progress=progress)
    previous = torch.tensor(heads["mass"]["causal: past"])[..., 0]  # [layers, heads]
    hide = partial(
        bico,
        placeholder_id=padding_id(model, tokenizer),
        special_ids=tokenizer.all_special_ids,
        mask_rate=MASK_RATES[mask],
    )
    hidden = [
        hide(ids, Generator().manual_seed(stream_seed("probe", seed, "details", index)))
        for index, ids in enumerate(sequences)
    ]
    longest = max(map(len, sequences))
    flips = partial(
        partial_flips,
        model,
        hidden,
        placeholder_id=padding_id(model, tokenizer),
        batch_size=batch_size,
        progress=progress,
    )
    everywhere, nowhere = flips(
        {name: torch.full((*previous.shape, 1), flip) for name, flip in (("bico", True), ("naive", False))}
    ).values()
    by_layer = flips(layer_tables(len(previous), previous.shape[1]))
    losses = by_layer | flips(distance_tables(len(previous), previous.shape[1], longest) | head_tables(previous, seed))
    on_even, on_odd = (chosen[:, None, None].expand(*previous.shape, 1) for chosen in chosen_layers(by_layer, nowhere))
    chosen = flips({"on even": on_even, "on odd": on_odd})
    elsewhere = torch.where(torch.arange(len(hidden)) % 2 == 0, chosen["on odd"], chosen["on even"])
    records = compare_tables(losses | {"layers: chosen on the other half": elsewhere}, nowhere, everywhere)
    settings = {"texts": len(hidden), "length": longest, "mask": mask}
    measured = {"bico - naive": estimate(everywhere - nowhere), "tables": records}
    return {"heads": heads, "partial_flips": settings | measured}
