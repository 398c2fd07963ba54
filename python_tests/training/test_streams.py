"""Streams: rows of unknown number are trained like a list of them, in their order."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import BOS, EOS, config, logged, some_rows, tiny_llama
from torch.utils.data import IterableDataset

from bico_ext.training.trainer import BicoTrainer

GOOD = {"input_ids": [BOS, 7, 8, EOS]}


class Stream(IterableDataset):
    """Rows without a length."""

    def __init__(self, *rows: Any) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[Any]:
        yield from self.rows


def trained(folder: Path, rows: Any, resume: str | None = None, **changes: Any) -> BicoTrainer:
    trainer = BicoTrainer(tiny_llama(), config(folder, save_strategy="steps", save_steps=3, **changes), rows)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def test_a_stream_trains_like_its_rows_in_order(tmp_path):
    """Over more than one pass: 6 steps of 8 are 48 of 40 rows. A run resumed at step 3 is bit-equal."""
    rows = some_rows()
    listed = trained(tmp_path / "list", rows, train_sampling_strategy="sequential")
    streamed = trained(tmp_path / "stream", Stream(*rows))
    assert logged(streamed) == logged(listed)
    resumed = trained(tmp_path / "resumed", Stream(*rows), resume=str(tmp_path / "stream" / "checkpoint-3"))
    assert logged(resumed)[-3:] == logged(streamed)[-3:]
    weights, expected = resumed.model.state_dict(), streamed.model.state_dict()
    assert all(torch.equal(weight, expected[name]) for name, weight in weights.items())


def test_a_stream_is_encoded_while_it_is_read(tmp_path):
    encoder = BicoTrainer(tiny_llama(), config(tmp_path, max_length=4, long_rows="windows"), [GOOD])._encode
    long = {"input_ids": [BOS, *range(5, 14)]}
    rows = list(encoder.stream(Stream(long, GOOD), "train_dataset", max_steps=1))
    assert [row["input_ids"].tolist() for row in rows] == [[BOS, 5, 6, 7], [8, 9, 10, 11], [12, 13], [BOS, 7, 8, EOS]]
    assert [row["index"] for row in rows] == [0, 1, 2, 3]
    with pytest.raises(ValueError, match=r"^train_dataset\[1\] must be a dict"):
        list(encoder.stream(Stream(GOOD, 7), "train_dataset", max_steps=1))
    with pytest.raises(ValueError, match=r"^train_dataset is empty"):
        list(encoder.stream(Stream(), "train_dataset", max_steps=1))


def test_streams_that_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"train_dataset has no length, so max_steps must say .*, got -1"):
        BicoTrainer(tiny_llama(), config(tmp_path, max_steps=-1), Stream(GOOD))
    with pytest.raises(TypeError, match="train_dataset can be read only once, got list_iterator; give an"):
        BicoTrainer(tiny_llama(), config(tmp_path), iter([GOOD]))
    with pytest.raises(TypeError, match=r"eval_dataset must be .* got Stream; only train_dataset may be a stream"):
        BicoTrainer(tiny_llama(), config(tmp_path), [GOOD], Stream(GOOD))
    with pytest.raises(ValueError, match="'group_by_length' needs a train_dataset with a length"):
        BicoTrainer(tiny_llama(), config(tmp_path, train_sampling_strategy="group_by_length"), Stream(GOOD))
