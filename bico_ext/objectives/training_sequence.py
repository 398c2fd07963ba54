"""Training sequences: the inputs, labels and span ids that an objective makes from a token sequence, and their batches.

Labels are not shifted: a transformers causal LM shifts them itself, so that output i predicts labels[i + 1]. Span ids
determine which keys a query sees. A token with span id -1 is never a key, 0 is context that every token sees, and a
token with s > 0 sees the context and the past of its own span. `CAUSAL_CONTEXT` is context that itself sees no later
token. `bico_ext.ops.reference.visible` states this rule.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

NO_LOSS = -100  # the label that torch's cross entropy and transformers ignore


@dataclass(frozen=True)
class TrainingSequence:
    """One sequence as an objective gives it to the model.

    Attributes:
        input_ids: int64 [S].
        labels: int64 [S], not shifted; -100 where there is no loss.
        span_ids: int32 [S].
        block_positions: int64 [2, S], ChatGLM-6B's two positions of each token (in the text and in its block). None:
            each token has one position.
        position_ids: int64 [S], the position of each token in the text. None: 0 to S - 1.
        mirror: False keeps later keys in the plus frame R(m), which is plain bidirectional RoPE attention.
    """

    input_ids: Tensor
    labels: Tensor
    span_ids: Tensor
    block_positions: Tensor | None = None
    position_ids: Tensor | None = None
    mirror: bool = True


def may_be_hidden(input_ids: Tensor, special_ids: Collection[int], last: bool = True) -> Tensor:
    """Return which tokens an objective may hide and predict.

    The token at position 0 is never hidden, because no output predicts it. Special tokens are never hidden either.

    Args:
        input_ids: int64 [S].
        special_ids: ids that are never hidden, such as BOS and EOS.
        last: whether the last token may be hidden; default True. Pass False if output i predicts the token at i itself,
            because a causal LM's loss ignores the last output.

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
    for special_id in special_ids:  # cheaper for a few ids than torch.isin, which sorts
        allowed &= input_ids != special_id
    return allowed


def text_between(input_ids: Tensor, special_ids: Collection[int]) -> tuple[int, int]:
    """Return the start and the end of the text between the special tokens at both ends; (0, 0) if there is no text.

    Example:
        >>> import torch
        >>> text_between(torch.tensor([2, 7, 8, 3]), special_ids=(2, 3)), text_between(torch.tensor([2, 3]), (2, 3))
        ((1, 3), (0, 0))
    """
    positions = [position for position, token in enumerate(input_ids.tolist()) if token not in special_ids]
    return (positions[0], positions[-1] + 1) if positions else (0, 0)


def predict_only(
    objective: Callable[[Tensor, Generator], TrainingSequence],
    input_ids: Tensor,
    predicted: Tensor,
    generator: Generator,
) -> TrainingSequence:
    """Apply an objective so that it predicts some of the tokens only, such as those of an assistant.

    Other tokens have no label, and where the objective hides them they are shown again. The objective is drawn again
    until a token has a label.

    Args:
        objective: a function of the input ids and a generator, whose labels stand at the places of their tokens
            (`bico_ext.objectives.registry.IN_PLACE`).
        input_ids: int64 [S].
        predicted: bool [S], the tokens that may be predicted. The objective must be able to predict one of them.
        generator: the source of random numbers.

    Example:
        >>> import torch
        >>> from bico_ext.objectives.causal import ntp
        >>> predicted = torch.tensor([False, False, True])
        >>> predict_only(ntp, torch.tensor([2, 7, 8]), predicted, torch.Generator()).labels
        tensor([-100, -100,    8])
    """
    while True:
        sequence = objective(input_ids, generator)
        labels = sequence.labels.masked_fill(~predicted, NO_LOSS)
        if (labels[1:] != NO_LOSS).any():
            break
    shown = (sequence.labels != labels) & ((sequence.input_ids != input_ids) | (sequence.span_ids == -1))
    return replace(
        sequence,
        input_ids=torch.where(shown, input_ids, sequence.input_ids),
        labels=labels,
        span_ids=sequence.span_ids.masked_fill(shown, 0),
    )


def pad(rows: Sequence[TrainingSequence], pad_id: int) -> dict[str, Any]:
    """Pad training sequences of different lengths on the right and stack them into one batch; see also `pack`.

    Args:
        rows: B training sequences of one objective, at least one; S is the longest length.
        pad_id: any id with an embedding, because padding is never a key and has no loss.

    Returns:
        The keyword arguments of an attached model: input_ids int64 [B, S], labels int64 [B, S] (-100 in the padding)
        and span_ids int32 [B, S] (-1 in the padding). If the rows have them, also block_positions int64 [B, 2, S] or
        position_ids int64 [B, S]. If the rows have mirror=False, also mirror=False.

    Raises:
        ValueError: rows is empty.

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
    block_positions = [row.block_positions.mT for row in rows if row.block_positions is not None]  # [S, 2] each
    if block_positions:
        batch["block_positions"] = pad_sequence(block_positions, batch_first=True).mT
    position_ids = [row.position_ids for row in rows if row.position_ids is not None]
    if position_ids:
        batch["position_ids"] = pad_sequence(position_ids, batch_first=True)
    if not rows[0].mirror:
        batch["mirror"] = False
    return batch


def pack(rows: Sequence[TrainingSequence]) -> dict[str, Any]:
    """Put training sequences one after the other into a single row, without padding.

    Losses and gradients are those of `pad`, up to rounding: the attention of an attached model separates the sequences
    by `cu_seq_lens_q`, so span ids may repeat between them, and positions start again at each. No output predicts the
    first token of a sequence, so its label, if it has one, is dropped; otherwise the last output of the sequence before
    it would predict it.

    Args:
        rows: N training sequences of one objective, at least one; T is the sum of their lengths.

    Returns:
        The keyword arguments of an attached model: input_ids int64 [1, T], labels int64 [1, T], span_ids int32 [1, T],
        cu_seq_lens_q int32 [N + 1], which holds 0 and the end of each sequence, and position_ids int64 [1, T]. If the
        rows have block_positions, these take the place of position_ids, int64 [1, 2, T]. If the rows have mirror=False,
        also mirror=False.

    Raises:
        ValueError: rows is empty.

    Example:
        >>> import torch
        >>> from bico_ext.objectives.causal import ntp
        >>> batch = pack([ntp(torch.tensor(row), torch.Generator()) for row in ([2, 7, 8], [2, 9])])
        >>> batch["labels"], batch["position_ids"]
        (tensor([[-100,    7,    8, -100,    9]]), tensor([[0, 1, 2, 0, 1]]))
        >>> batch["cu_seq_lens_q"]
        tensor([0, 3, 5], dtype=torch.int32)
    """
    if not rows:
        raise ValueError("pack needs at least one row, got none")
    predicted = [functional.pad(row.labels[1:], (1, 0), value=NO_LOSS) for row in rows]
    ends = torch.tensor([len(row.input_ids) for row in rows]).cumsum(0)
    batch: dict[str, Any] = {
        "input_ids": torch.cat([row.input_ids for row in rows])[None],
        "labels": torch.cat(predicted)[None],
        "span_ids": torch.cat([row.span_ids for row in rows])[None],
        "cu_seq_lens_q": functional.pad(ends, (1, 0)).to(torch.int32),
    }
    block_positions = [row.block_positions for row in rows if row.block_positions is not None]
    if block_positions:
        batch["block_positions"] = torch.cat(block_positions, dim=-1)[None]
    else:
        positions = [torch.arange(len(row.input_ids)) if row.position_ids is None else row.position_ids for row in rows]
        batch["position_ids"] = torch.cat(positions)[None]
    if not rows[0].mirror:
        batch["mirror"] = False
    return batch


def labelled_only(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Reduce a batch to the outputs that have a label, so that an attached model computes logits for no others.

    The loss and its gradients stay the same. The labels become one row, in which output i still predicts labels[i + 1],
    so every loss that shifts labels works on it. Call this before the batch goes to a GPU, where it would synchronise,
    because the size of the result depends on the labels.

    Args:
        batch: what `pad` or `pack` returns. N of its labels are at positions from 1 on; no output predicts those at
            position 0.

    Returns:
        The batch with labels int64 [1, N + 1], of which the first is -100, and output_positions int64 [N + 1], the
        indices in the flattened batch of the outputs that predict them. The last of these predicts nothing.

    Example:
        >>> import torch
        >>> labelled_only({"labels": torch.tensor([[-100, 7, -100], [-100, -100, 8]])})
        {'labels': tensor([[-100,    7,    8]]), 'output_positions': tensor([0, 4, 0])}
    """
    labels = functional.pad(batch["labels"][:, 1:], (1, 0), value=NO_LOSS).flatten()
    places = labels.ne(NO_LOSS).nonzero()[:, 0]
    return {
        **batch,
        "labels": functional.pad(labels[places], (1, 0), value=NO_LOSS)[None],
        "output_positions": functional.pad(places - 1, (0, 1)),
    }
