"""The dataset of `BicoTrainer`: rows are encoded and checked, optionally grouped by length, and collated unmasked."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Generator, Tensor
from torch.utils.data import IterableDataset, Sampler
from transformers import PreTrainedTokenizerBase
from transformers.trainer_pt_utils import get_length_grouped_indices
from transformers.utils import logging

from bico_ext.models.tokenization import check_completion, check_context, check_ids, check_text, encode_text
from bico_ext.objectives.training_sequence import may_be_hidden
from bico_ext.seeding import stream_seed

logger = logging.get_logger(__name__)

# Columns that a user may expect to have an effect, and the way out. Other columns, such as an id, are ignored.
_REFUSED_COLUMNS = {
    "labels": "the objective makes the labels, and the loss covers the whole row; remove the column",
    "position_ids": "positions count from the start of the row; remove the column",
    "span_ids": "the objective makes the span ids; remove the column",
    "completion_mask": "the loss covers the whole row; remove the column",
    "assistant_masks": "the loss covers the whole row; remove the column",
    "tools": "a row is what the chat template makes of its messages alone; render it yourself and give 'text'",
}
# What a row may consist of: exactly one of these.
_SOURCES = ({"input_ids"}, {"messages"}, {"text"}, {"prompt", "completion"})


@dataclass(frozen=True)
class Rows:
    """A batch of rows before its objective is known.

    It is neither a list nor a dict, so that accelerate does not move it to the device.

    Attributes:
        input_ids: int64 [S] for each row.
        indices: the index of each row in the dataset.
        predicted: for each row bool [S], the tokens that may be predicted, or None for all.
    """

    input_ids: list[Tensor]
    indices: list[int]
    predicted: list[Tensor | None]

    @staticmethod
    def collate(rows: list[dict[str, Any]]) -> Any:  # Any, because Trainer declares that a collator returns a dict
        """Make a batch from encoded rows."""
        return Rows(*([row[name] for row in rows] for name in ("input_ids", "index", "predicted")))


class LengthGroupedSampler(Sampler[int]):
    """Groups rows of similar length into batches, with one seed per epoch and the batches in random order.

    The Trainer's own sampler differs in two ways. It draws from the global random state, which is lost when a run is
    resumed within an epoch, and it orders up to 50 batches from long to short.
    """

    def __init__(self, lengths: list[int], batch_size: int, seed: int) -> None:
        self.lengths, self.batch_size, self.seed = lengths, batch_size, seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.lengths)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; accelerate calls this at the start of each epoch, including the one in which a run resumes."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = Generator().manual_seed(stream_seed("order", self.seed, self.epoch))
        indices = get_length_grouped_indices(self.lengths, self.batch_size, generator=generator)
        batches = [indices[i : i + self.batch_size] for i in range(0, len(indices), self.batch_size)]
        full = len(indices) // self.batch_size
        for i in [*torch.randperm(full, generator=generator).tolist(), *range(full, len(batches))]:
            yield from batches[i]


class EncodedStream(IterableDataset):
    """A stream of rows in the form of `RowEncoder`, which are encoded and checked when they are read.

    The index counts the encoded rows from the start of the stream.
    """

    def __init__(self, encoder: "RowEncoder", rows: Iterable[Any], name: str) -> None:
        self.encoder, self.rows, self.name = encoder, rows, name

    def __iter__(self) -> Iterator[dict[str, Any]]:
        index = 0
        for number, row in enumerate(self.rows):
            name = f"{self.name}[{number}]"
            for part in self.encoder.parts(*self.encoder.row(row, name), name):
                yield {**part, "index": index}
                index += 1
        if not index:
            raise ValueError(f"{self.name} is empty: it must have at least one row")


class EncodedRows(list):
    """Rows that `RowEncoder` has encoded."""


class RowEncoder:
    """Encodes and checks a dataset: its rows become {"input_ids": int64 [S], "predicted", "index": int} in memory.

    "predicted" is bool [S], the tokens that may be predicted, or None for all. An index counts the encoded rows, of
    which a long row may become several.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase | None,
        max_length: int | None,
        never_predicted: frozenset[int],
        last_predicted: bool = True,
        windows: bool = False,
        assistant_only: bool = False,
    ) -> None:
        self.model, self.tokenizer, self.max_length, self.windows = model, tokenizer, max_length, windows
        self.never_predicted, self.last_predicted = never_predicted, last_predicted
        self.assistant_only = assistant_only

    def __call__(self, dataset: Any, name: str) -> EncodedRows:
        if isinstance(dataset, EncodedRows):  # Trainer.evaluate passes the dataset of the construction again
            return dataset
        if remedy := refused(dataset, name):
            raise TypeError(
                f"{name} must be a list, torch Dataset or datasets.Dataset of rows with a known length, got "
                f"{type(dataset).__name__}; {remedy}"
            )
        if not len(dataset):
            raise ValueError(f"{name} is empty: it must have at least one row")
        sequences: list[dict[str, Any]] = []
        cut = 0
        for index in range(len(dataset)):
            input_ids, predicted = self.row(dataset[index], f"{name}[{index}]")
            parts = self.parts(input_ids, predicted, f"{name}[{index}]")
            cut += not self.windows and len(parts[0]["input_ids"]) < len(input_ids)
            sequences += parts
        if cut:
            logger.warning(f"{name}: {cut} of {len(sequences)} rows were cut to max_length={self.max_length}")
        return EncodedRows({**part, "index": index} for index, part in enumerate(sequences))

    def stream(self, dataset: Any, name: str, max_steps: int) -> EncodedStream:
        """Encode a dataset of unknown length while it is read."""
        if iter(dataset) is dataset:
            raise TypeError(
                f"{name} can be read only once, got {type(dataset).__name__}; give an IterableDataset of torch or "
                "datasets, or an object whose __iter__ starts anew"
            )
        if max_steps < 1:
            raise ValueError(f"{name} has no length, so max_steps must say how long to train, got {max_steps}")
        return EncodedStream(self, dataset, name)

    def parts(self, input_ids: Tensor, predicted: Tensor | None, name: str) -> list[dict[str, Any]]:
        """Return the checked sequences that a row becomes: itself, its first `max_length` tokens, or its windows.

        The last of several windows is left out if it has nothing to predict, such as an end-of-sequence token alone. So
        is any window in which the assistant says nothing, if only its words are predicted.
        """
        size = self.max_length or max(1, len(input_ids))
        pieces = input_ids.split(size)
        masks = [None] * len(pieces) if predicted is None else predicted.split(size)
        parts = [{"input_ids": ids, "predicted": mask} for ids, mask in zip(pieces, masks, strict=True)]
        if not self.windows:
            parts = parts[:1]
        kept = [part for part in parts if self.predicts(**part) or (predicted is None and part is not parts[-1])]
        if kept and len(kept) < len(parts):
            lost = len(input_ids) - sum(len(part["input_ids"]) for part in kept)
            logger.warning(f"{name}: {lost} tokens, in windows that have nothing to predict, are left out")
            parts = kept
        for part in parts:
            self.check(**part, name=name)
        return parts

    def predicts(self, input_ids: Tensor, predicted: Tensor | None) -> bool:
        """Tell whether a sequence has a token that every objective of the run can predict."""
        can_be = may_be_hidden(input_ids, self.never_predicted, self.last_predicted)
        return bool((can_be if predicted is None else can_be & predicted).any())

    def row(self, row: Any, name: str) -> tuple[Tensor, Tensor | None]:
        """Return the token ids of a row of any accepted kind, int64 [S], and which of them may be predicted."""
        if not isinstance(row, Mapping) and hasattr(row, "prompt") and hasattr(row, "completion"):
            row = {"prompt": row.prompt, "completion": row.completion}
        columns = set(row) if isinstance(row, Mapping) else set()
        sources = [source for source in _SOURCES if columns >= source]
        if not sources:
            raise ValueError(
                f"{name} must be a dict with 'input_ids', 'messages', 'text', or 'prompt' and 'completion' (or an "
                "object with the attributes prompt and completion), got "
                + (str(sorted(columns)) if isinstance(row, Mapping) else type(row).__name__)
                + ("; name its parts: {'prompt': ..., 'completion': ...}" if isinstance(row, tuple | list) else "")
            )
        if len(sources) > 1:
            found = " and ".join(" with ".join(sorted(source)) for source in sources)
            raise ValueError(f"{name} must hold its text once, got {found}; remove all but one")
        check_columns(row, name)
        if "messages" in row:
            return self.chat(row["messages"], name)
        if self.assistant_only:
            raise ValueError(f"{name} has no messages, which assistant_only_loss needs to tell who speaks")
        if "input_ids" in row:
            return token_ids(row["input_ids"], name), None
        if "text" in row:
            check_text(row["text"], "text", name)
        else:
            check_completion(row["prompt"], row["completion"], name)
        if self.tokenizer is None:
            raise ValueError(
                f"{name} is text, which needs a tokenizer: pass processing_class, or give rows with 'input_ids'"
            )
        text = row["text"] if "text" in row else row["prompt"] + row["completion"]
        return torch.tensor(encode_text(self.tokenizer, text), dtype=torch.int64), None

    def chat(self, messages: Any, name: str) -> tuple[Tensor, Tensor | None]:
        """Return the token ids of messages, exactly as the tokenizer's chat template writes them, as `row` does."""
        if not isinstance(messages, Sequence) or not all(isinstance(message, Mapping) for message in messages):
            raise ValueError(
                f"{name}: messages must be a list of {{'role': ..., 'content': ...}}, got {messages!r:.60}"
            )
        if getattr(self.tokenizer, "chat_template", None) is None:
            raise ValueError(
                f"{name} has messages, which need a tokenizer with a chat template: pass that of a chat model as "
                "processing_class, set its chat_template, or give rows with 'text'"
            )
        try:
            encoded: Any = cast(Any, self.tokenizer).apply_chat_template(
                messages,
                tokenize=True,
                add_generation_prompt=False,
                return_dict=True,
                return_assistant_tokens_mask=self.assistant_only,
            )
        except Exception as error:  # a template raises what it likes
            raise ValueError(f"{name}: the chat template fails on these messages: {error}") from error
        input_ids = torch.tensor(encoded["input_ids"], dtype=torch.int64)
        if not self.assistant_only:
            return input_ids, None
        predicted = torch.tensor(encoded["assistant_masks"], dtype=torch.bool)
        if not predicted.any():
            raise ValueError(
                f"{name}: the chat template marks no words of an assistant, which assistant_only_loss needs; it must "
                "put {% generation %} and {% endgeneration %} around them, and the messages must have some"
            )
        return input_ids, predicted

    def check(self, input_ids: Tensor, predicted: Tensor | None, name: str) -> None:
        """Raise an error for a row that would fail during training, or on which nothing could be trained."""
        remedy = "set max_length={context} to cut long rows, or to split them with long_rows='windows'"
        check_context(self.model, len(input_ids), name, remedy)
        if not self.predicts(input_ids, predicted):
            raise ValueError(
                f"{name} has nothing to predict: it needs a token after the first that is not special, got "
                f"{input_ids.tolist()}; leave the row out"
            )
        check_ids(self.model, input_ids.tolist(), name)


def refused(dataset: Any, name: str) -> str | None:
    """Return what to do about an object that is no dataset of rows; None for one that is."""
    if hasattr(dataset, "iloc"):  # a table of pandas, whose items are columns
        return f"use {name}.to_dict('records')"
    if isinstance(dataset, Mapping):
        return f"give one of its splits, such as {name}['train'], or a list with one dict per row"
    if isinstance(dataset, str):
        return "read the file first, for example with load_facts(path).train"
    if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        return "only train_dataset may be a stream, so read it into a list first"
    return None


def check_columns(row: Mapping[str, Any], name: str) -> None:
    """Raise a ValueError if a row has a column that looks as if it had an effect and has none.

    An attention mask of ones, which every tokenizer returns, says nothing and is accepted.
    """
    for column, reason in _REFUSED_COLUMNS.items():
        if column in row:
            raise ValueError(f"{name} has the column {column!r}, which would have no effect: {reason}")
    mask = row.get("attention_mask")
    if mask is not None and not torch.as_tensor(mask).all():
        raise ValueError(
            f"{name}: attention_mask contains zeros, which would have no effect: remove the padding from input_ids and "
            "the column attention_mask; batches are padded or packed later"
        )


def token_ids(ids: Any, name: str) -> Tensor:
    """Return a row's `input_ids`, a list, tensor or NumPy array of integers, as int64 [S], or raise a ValueError."""
    if not isinstance(ids, Tensor | Sequence | np.ndarray) or isinstance(ids, str):
        raise ValueError(f"{name}: input_ids must be a sequence of token ids, got {type(ids).__name__}")
    if isinstance(ids, np.ndarray):
        if ids.dtype.kind not in "iu":
            raise ValueError(f"{name}: input_ids must be integers, got an array of {ids.dtype}")
        ids = ids.astype(np.int64)  # a copy: torch warns of read-only arrays, such as memory maps
    ids = torch.as_tensor(ids)
    if ids.ndim != 1:
        raise ValueError(f"{name}: input_ids must be one sequence, got the shape {list(ids.shape)}")
    if ids.is_floating_point() and len(ids):
        raise ValueError(f"{name}: input_ids must be integers, got {ids.dtype}")
    return ids.to(torch.int64)
