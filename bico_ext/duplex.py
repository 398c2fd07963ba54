"""The objective that goes furthest in both directions: segment permutation of most texts, denoising of the others."""

from collections.abc import Collection

import torch
from torch import Generator, Tensor

from bico_ext.causal import permute
from bico_ext.denoising import MaskRate, bico
from bico_ext.masked import Masked

PERMUTED = 0.75  # of the texts; with 0.5 the facts of Berglund et al. reversed less (docs/experiments.md)


def duplex(
    input_ids: Tensor,
    generator: Generator,
    *,
    placeholder_id: int,
    special_ids: Collection[int],
    mask_rate: MaskRate = 0.15,
    segments: int = 4,
) -> Masked:
    """A coin for each text: `permute` with probability 3/4, or `bico`.

    Denoising asks for every single token from both sides; permutation asks for whole pieces, left to right, in the
    causal mode in which the model will answer. Neither alone is good at both reverse tasks on both of our data sets
    (docs/experiments.md).

    Args:
        input_ids: int64 [S].
        generator: the source of the draws.
        placeholder_id, special_ids, mask_rate: as of `bico`.
        segments: as of `permute`.

    Returns:
        What the chosen one returns.

    Raises:
        ValueError: as of the two.

    Example:
        >>> masked = duplex(torch.tensor([2, 7, 8, 3]), torch.Generator().manual_seed(0), placeholder_id=0,
        ...                 special_ids=(2, 3))
        >>> masked.labels
        tensor([-100, -100,    7])
    """
    if torch.rand((), generator=generator) < PERMUTED:
        return permute(input_ids, generator, special_ids=special_ids, segments=segments)
    return bico(input_ids, generator, placeholder_id=placeholder_id, special_ids=special_ids, mask_rate=mask_rate)
