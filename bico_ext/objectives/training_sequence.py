"""What an objective makes of a token sequence: inputs, labels and span ids; and the batch of several of them.

Labels are not shifted: a causal LM of transformers shifts them itself, so that output i predicts labels[i + 1].
Span ids say who sees whom: -1 is no key for anyone, 0 is context, s > 0 sees the context and its own span's past
(`bico_ext.ops.reference.visible` is the rule).
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

NO_LOSS = -100  # the label that torch's cross entropy and transformers leave out


@dataclass(frozen=True)
class TrainingSequence:
    """One sequence as an objective presents it to the model.

    Attributes:
        input_ids: int64 [S].
        labels: int64 [S], unshifted; -100 where there is no loss.
        span_ids: int32 [S].
        block_positions: int64 [2, S], ChatGLM-6B's two positions of each token (place in the text, place in its
            block); None: one position a token.
        position_ids: int64 [S], the place of each token in the text; None: the ordinary 0 to S - 1.
        mirror: False keeps the sines for later keys: plain bidirectional rotary attention.
    """

    input_ids: Tensor
    labels: Tensor
    span_ids: Tensor
    block_positions: Tensor | None = None
    position_ids: Tensor | None = None
    mirror: bool = True


def may_be_hidden(input_ids: Tensor, special_ids: Collection[int], last: bool = True) -> Tensor:
    """Which tokens an objective may hide and predict: none at position 0, which no output predicts, none special.

    Args:
        input_ids: int64 [S].
        special_ids: ids that are never hidden, such as BOS and EOS.
        last: whether the last token may be hidden (default). False where output i predicts the token at i itself: a
            causal LM's loss leaves the last output out.

    Returns:
        bool [S].

    Example:
        >>> import torch
        >>> may_be_hidden(torch.tensor([2, 7, 8, 3]), special_ids=(2, 3))
        tensor([False,  True,  True, False])
    """
    allowed = torch.ones_like(input_ids, dtype=torch.bool)
    allowed[:1] = False
    if not last:
        allowed[-1:] = False
    for special_id in special_ids:  # a handful of ids: cheaper than torch.isin, which sorts
        allowed &= input_ids != special_id
    return allowed


def pad(rows: Sequence[TrainingSequence], pad_id: int) -> dict[str, Any]:
    """One batch for the model from rows of different lengths, padded on the right.

    Args:
        rows: B sequences of one objective, at least one; S is the longest length.
        pad_id: any id with an embedding: padding is never a key and has no loss.

    Returns:
        What an attached model takes: input_ids int64 [B, S], labels int64 [B, S] (-100 in the padding), span_ids int32
        [B, S] (-1 in the padding); where the rows have them, block_positions int64 [B, 2, S] or position_ids int64
        [B, S]; where they ask for it, mirror False.

    Raises:
        ValueError: no rows.

    Example:
        >>> import torch
        >>> from bico_ext.objectives.causal import ntp
        >>> rows = [ntp(torch.tensor(row), torch.Generator()) for row in ([2, 7], [2])]
        >>> pad(rows, pad_id=0)["span_ids"]
        tensor([[ 1,  1],
                [ 1, -1]], dtype=torch.int32)
    """
    if not rows:
        raise ValueError("pad needs at least one row, got none")
    batch: dict[str, Any] = {
        "input_ids": pad_sequence([row.input_ids for row in rows], batch_first=True, padding_value=pad_id),
        "labels": pad_sequence([row.labels for row in rows], batch_first=True, padding_value=NO_LOSS),
        "span_ids": pad_sequence([row.span_ids for row in rows], batch_first=True, padding_value=-1),
    }
    positions = [row.block_positions.mT for row in rows if row.block_positions is not None]  # [S, 2] each
    if positions:
        batch["block_positions"] = pad_sequence(positions, batch_first=True).mT
    places = [row.position_ids for row in rows if row.position_ids is not None]
    if places:
        batch["position_ids"] = pad_sequence(places, batch_first=True)
    if not rows[0].mirror:
        batch["mirror"] = False
    return batch
