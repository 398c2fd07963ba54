"""GLM's objective against hand-written examples, the distributions of its spans and the reference's visibility rule."""

from collections import Counter
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from tiny_models import tiny_llama
from torch import Generator, Tensor, tensor

from bico_ext.models.attach import attach
from bico_ext.objectives import blank_infilling
from bico_ext.objectives.blank_infilling import Positions, abi
from bico_ext.objectives.training_sequence import NO_LOSS, TrainingSequence, pad
from bico_ext.ops.reference import visible

PAD, BOS, EOS, MASK, SOP, EOP = 0, 2, 3, 40, 41, 42
SPECIAL = (PAD, BOS, EOS)

sequences = st.lists(st.integers(0, 30), min_size=1, max_size=40).map(tensor)
seeds = st.integers(0, 2**32 - 1)
objective: Any = partial(abi, mask_id=MASK, sop_id=SOP, eop_id=EOP, special_ids=SPECIAL)


def drawn(input_ids: Tensor, seed: int, positions: Positions = "2d") -> TrainingSequence:
    return objective(input_ids, Generator().manual_seed(seed), positions=positions)


def blocks(sequence: TrainingSequence) -> list[list[int]]:
    """Return the spans in the order of part B: the input tokens between each [sop] and the end of its block."""
    count = int(sequence.span_ids.max())
    rows = [sequence.input_ids[sequence.span_ids == number].tolist() for number in range(1, count + 1)]
    assert all(row[0] == SOP for row in rows)
    assert not rows or rows[-1].pop() == EOP
    return [row[1:] for row in rows]


@pytest.mark.parametrize("positions", ["2d", "in-place"])
def test_by_hand(positions: Positions, monkeypatch: pytest.MonkeyPatch) -> None:
    """BOS 10 11 12 13 14 15 16 EOS with the spans 15 16 (positions 6-7) and then 11 12 13 (positions 2-4)."""
    monkeypatch.setattr(blank_infilling, "_spans", lambda *_: [(6, 8), (2, 5)])
    sequence = drawn(tensor([BOS, 10, 11, 12, 13, 14, 15, 16, EOS]), 0, positions)
    #                       part A: 0    1     2   3     4    5 | the blocks
    assert sequence.input_ids.tolist() == [BOS, 10, MASK, 14, MASK, EOS, SOP, 15, 16, SOP, 11, 12, 13, EOP]
    none = [NO_LOSS] * 7
    assert sequence.labels.tolist() == [*none, 15, 16, EOP, 11, 12, 13, EOP]  # output i predicts labels[i + 1]
    assert sequence.span_ids.tolist() == [0, 0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 2]
    assert sequence.mirror is False
    if positions == "2d":
        assert sequence.position_ids is None
        assert sequence.block_positions is not None
        assert sequence.block_positions.tolist() == [
            [0, 1, 2, 3, 4, 5, 4, 4, 4, 2, 2, 2, 2, 2],
            [0, 0, 0, 0, 0, 0, 1, 2, 3, 1, 2, 3, 4, 5],
        ]
    else:
        assert sequence.block_positions is None
        assert sequence.position_ids is not None
        assert sequence.position_ids.tolist() == [0, 1, 2, 5, 6, 8, 5, 6, 7, 1, 2, 3, 4, 5]


def test_pad_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blank_infilling, "_spans", lambda ids, *_: [(1, 2)] if len(ids) > 1 else [])
    for positions in ("2d", "in-place"):
        batch = pad([drawn(tensor([BOS, 10, EOS]), 0, positions), drawn(tensor([BOS]), 0, positions)], PAD)
        assert batch["input_ids"].tolist() == [[BOS, MASK, EOS, SOP, 10, EOP], [BOS, 0, 0, 0, 0, 0]]
        assert batch["span_ids"].tolist() == [[0, 0, 0, 1, 1, 1], [0, -1, -1, -1, -1, -1]]
        assert batch["mirror"] is False
        if positions == "2d":
            assert "position_ids" not in batch
            assert batch["block_positions"].tolist() == [
                [[0, 1, 2, 1, 1, 1], [0, 0, 0, 1, 2, 3]],
                [[0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]],
            ]
        else:
            assert "block_positions" not in batch
            assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1, 2], [0, 0, 0, 0, 0, 0]]


@given(sequences, seeds)
@settings(deadline=None, max_examples=200)
def test_the_text_can_be_restored(input_ids: Tensor, seed: int) -> None:
    """In-place positions restore the text; the spans are eligible, do not touch each other and cover enough tokens."""
    before = input_ids.clone()
    sequence = drawn(input_ids, seed, "in-place")
    assert sequence.position_ids is not None
    text: dict[int, int] = {}
    covered: list[int] = []
    for token, span, position in zip(
        sequence.input_ids.tolist(), sequence.span_ids.tolist(), sequence.position_ids, strict=True
    ):
        if token not in (MASK, SOP, EOP):
            assert int(position) not in text
            text[int(position)] = token
            covered += [int(position)] * (span > 0)
    assert [text[position] for position in range(len(text))] == before.tolist()
    assert input_ids.equal(before), "the tensor of the dataset was changed"
    eligible = {i for i, token in enumerate(before.tolist()) if i > 0 and token not in SPECIAL}
    assert set(covered) <= eligible
    assert bool(covered) == bool(eligible)
    runs = sum(position - 1 not in covered for position in covered)
    # Spans that touch would count as one run.
    assert runs == len(blocks(sequence)) == sequence.input_ids.tolist().count(MASK)
    if len(eligible) >= 20 and len(eligible) == len(before) - 1:  # room for every span
        assert len(covered) >= 0.15 * len(eligible)


def test_nothing_to_predict() -> None:
    sequence = drawn(tensor([BOS, EOS]), 0)
    assert sequence.input_ids.tolist() == [BOS, EOS]
    assert sequence.labels.tolist() == [NO_LOSS, NO_LOSS]
    assert sequence.span_ids.tolist() == [0, 0]
    assert sequence.block_positions is not None
    assert sequence.block_positions.tolist() == [[0, 1], [0, 0]]


def test_span_lengths_are_poisson_and_starts_are_uniform() -> None:
    """Six eligible tokens need one span. Its length is Poisson(3) without zeros; lengths above 6 are cut to 6."""
    counts: Counter[tuple[int, int]] = Counter()
    for seed in range(4000):
        sequence = drawn(tensor([BOS, *range(10, 16), EOS]), seed)
        (span,) = blocks(sequence)
        counts[len(span), span[0]] += 1
    length = {k: stats.poisson.pmf(k, 3) / stats.poisson.sf(0, 3) for k in range(1, 6)}
    length[6] = stats.poisson.sf(5, 3) / stats.poisson.sf(0, 3)
    starts = {k: [counts[k, first] for first in range(10, 17 - k)] for k in length}
    assert sum(map(sum, starts.values())) == 4000  # so no other combination was drawn
    assert stats.chisquare([sum(row) for row in starts.values()], [4000 * p for p in length.values()]).pvalue > 1e-3
    assert all(stats.chisquare(row).pvalue > 1e-3 for row in starts.values() if len(row) > 1)


def test_spans_cover_just_enough_and_do_not_touch() -> None:
    """15 of 100 tokens must be covered. Without the longest span, too few are, whichever span was drawn last."""
    for seed in range(300):
        sequence = drawn(tensor([BOS, *[7] * 100, EOS]), seed)
        lengths = [len(span) for span in blocks(sequence)]
        assert sum(lengths) >= 15 > sum(lengths) - max(lengths)
        hidden = sequence.input_ids == MASK
        assert not (hidden[1:] & hidden[:-1]).any()


def test_spans_are_in_random_order() -> None:
    """In the order of drawing, the last span would more often be the longer one, because it ends the drawing."""
    longer: Counter[bool] = Counter()
    for seed in range(1500):
        lengths = [len(span) for span in blocks(drawn(tensor([BOS, *[7] * 60, EOS]), seed))]
        if lengths[0] != lengths[-1]:
            longer[lengths[-1] > lengths[0]] += 1
    assert stats.binomtest(longer[True], longer.total()).pvalue > 1e-3


@pytest.mark.parametrize("name", ["2d", "in-place"])
@given(input_ids=sequences, seed=seeds)
@settings(deadline=None, max_examples=100)
def test_no_label_reaches_the_output_that_predicts_it(name: Positions, input_ids: Tensor, seed: int) -> None:
    """An output in a span cannot see the token (or [eop]) that it predicts, through any number of layers."""
    sequence = drawn(input_ids, seed, name)
    length = len(sequence.input_ids)
    reaches = visible(sequence.span_ids[None])[0] | torch.eye(length, dtype=torch.bool)
    for _ in range(4):
        reaches = (reaches.float() @ reaches.float()) > 0
    for i in range(1, length):
        if sequence.labels[i] == NO_LOSS:
            assert sequence.span_ids[i - 1] == 0  # every output of part B has a loss
            continue
        seen = [j for j in range(length) if reaches[i - 1, j]]
        own = [j for j in seen if sequence.span_ids[j] > 0]
        assert i not in seen
        assert all(sequence.span_ids[j] in (0, sequence.span_ids[i - 1]) for j in seen)
        assert own == list(range(own[0], i))
        assert sequence.input_ids[own[0]] == SOP
    assert sequence.labels[0] == NO_LOSS


def test_each_span_has_the_logits_that_it_has_alone() -> None:
    """Spans do not see each other, so a model gives each span the logits that it has with part A alone."""
    model = attach(tiny_llama())
    sequence = drawn(tensor([BOS, *range(4, 34), EOS]), 3)
    assert sequence.block_positions is not None
    assert sequence.span_ids.max() > 1

    def logits(chosen: Tensor) -> Tensor:
        assert sequence.block_positions is not None
        with torch.no_grad():
            return model(
                input_ids=sequence.input_ids[None, chosen],
                span_ids=sequence.span_ids[None, chosen],
                block_positions=sequence.block_positions[None, :, chosen],
                mirror=False,
            ).logits[0]

    together = logits(torch.arange(len(sequence.input_ids)))
    for number in range(1, int(sequence.span_ids.max()) + 1):
        chosen = ((sequence.span_ids == 0) | (sequence.span_ids == number)).nonzero()[:, 0]
        torch.testing.assert_close(logits(chosen), together[chosen], rtol=1e-4, atol=1e-5)


def test_random_numbers_come_only_from_the_generator() -> None:
    text = tensor([BOS, *range(4, 34), EOS])
    state = torch.get_rng_state()
    first, again = drawn(text, 5), drawn(text, 5)
    assert first.input_ids.equal(again.input_ids)
    assert torch.get_rng_state().equal(state)
    assert any(not drawn(text, seed).input_ids.equal(first.input_ids) for seed in range(4))


def test_unknown_positions() -> None:
    with pytest.raises(ValueError, match="the positions of 'abi' must be '2d' or 'in-place', got '1d'"):
        objective(tensor([BOS, 7]), Generator(), positions="1d")
