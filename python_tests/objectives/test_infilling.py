"""Span infilling and its controls, against hand-written examples and their documented probabilities."""

from collections import Counter

import torch
from objective_cases import BOS, EOS, SEQUENCE, VOCABULARY, apply, chi_square
from torch import tensor

from bico_ext.objectives.training_sequence import NO_LOSS


def test_infill_of_two_tokens_by_hand():
    sequence = apply("infill", tensor([BOS, EOS]), seed=0)
    assert sequence.input_ids.tolist() == [BOS, EOS]
    assert sequence.labels.tolist() == [NO_LOSS, EOS]
    assert sequence.span_ids.tolist() == [0, 1]
    assert sequence.span_ids.dtype == torch.int32


def test_infill_divides_the_text_among_several_spans():
    seen = set()
    for seed in range(200):
        sequence = apply("infill", tensor([BOS, 7, 8, 9, EOS]), seed, spans=2)
        for span, part in ((1, {1, 2}), (2, {3, 4})):
            positions = set((sequence.span_ids == span).nonzero()[:, 0].tolist())
            assert positions
            assert positions <= part
        assert sequence.labels.equal(tensor(SEQUENCE).masked_fill(sequence.span_ids == 0, NO_LOSS))
        seen.add(tuple(sequence.span_ids.tolist()))
    assert len(seen) == 9  # three possible spans in each part
    assert (apply("infill", tensor([BOS, 7, EOS]), 0, spans=5).span_ids.tolist()) == [0, 1, 2]


def test_infill_end_moves_a_uniform_span_behind_its_context():
    """Of three tokens between BOS and EOS: the length is uniform in 1 to 3, then the start among those that fit."""
    expected = {
        (BOS, 8, 9, 7): 1 / 9,
        (BOS, 7, 9, 8): 1 / 9,
        (BOS, 7, 8, 9): 1 / 9 + 1 / 6 + 1 / 3,  # a span at the end stays where it is
        (BOS, 9, 7, 8): 1 / 6,
    }
    counts: Counter = Counter()
    for seed in range(2000):
        sequence = apply("infill-end", tensor([BOS, 7, 8, 9, EOS]), seed)
        span = sequence.span_ids == 1
        assert sequence.labels.equal(sequence.input_ids.masked_fill(~span, NO_LOSS))
        assert sequence.span_ids.diff().sum() == 1  # 0 in the context, then 1
        assert sequence.mirror
        counts[tuple(sequence.input_ids.tolist())] += 1
        causal = apply("infill-end-causal", tensor([BOS, 7, 8, 9, EOS]), seed)
        assert causal.input_ids.equal(sequence.input_ids)
        assert causal.labels.equal(sequence.labels)
        assert causal.span_ids.tolist() == [1] * len(span)
    assert chi_square(counts, expected) < 16.27  # the 99.9 % quantile, 3 degrees of freedom
    nothing = apply("infill-end", tensor([BOS, EOS]), 0)
    assert (nothing.input_ids.tolist(), nothing.labels.tolist(), nothing.span_ids.tolist()) == (
        [BOS, EOS],
        [NO_LOSS, NO_LOSS],
        [0, 0],
    )


def test_infill_naive_is_infill_without_the_flip():
    input_ids = tensor([BOS, *range(4, VOCABULARY), EOS])
    flipped, plain = apply("infill", input_ids, seed=1), apply("infill-naive", input_ids, seed=1)
    assert plain.labels.equal(flipped.labels)
    assert plain.span_ids.equal(flipped.span_ids)
    assert (plain.mirror, flipped.mirror) == (False, True)
