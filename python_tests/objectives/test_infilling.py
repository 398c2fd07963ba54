"""Span infilling and its controls, against hand-written examples and their documented probabilities."""

from collections import Counter

import pytest
import torch
from objective_cases import BOS, EOS, SEQUENCE, VOCABULARY, apply, chi_square
from tiny_models import tiny_llama
from torch import Tensor, tensor

from bico_ext.models.attach import attach
from bico_ext.objectives.training_sequence import NO_LOSS
from bico_ext.ops.reference import CAUSAL_CONTEXT


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


def test_infill_causal_by_hand():
    seen = set()
    for seed in range(100):
        whole, causal = (apply(name, tensor([BOS, 7, 8, 9, EOS]), seed) for name in ("infill", "infill-causal"))
        assert causal.input_ids.equal(whole.input_ids)
        assert causal.labels.equal(whole.labels)
        assert causal.span_ids.dtype == torch.int32
        assert causal.mirror
        seen.add(tuple(causal.span_ids.tolist()))
    c = CAUSAL_CONTEXT
    of_length = {
        1: {(0, 1, c, c, c), (c, 0, 1, c, c), (c, c, 0, 1, c), (c, c, c, 0, 1)},
        2: {(0, 1, 1, c, c), (c, 0, 1, 1, c), (c, c, 0, 1, 1)},
        3: {(0, 1, 1, 1, c), (c, 0, 1, 1, 1)},
        4: {(0, 1, 1, 1, 1)},
    }
    assert seen == set().union(*of_length.values())
    assert apply("infill-causal", tensor([BOS]), 0).span_ids.tolist() == [c]
    assert apply("infill-causal", tensor([BOS, 7, EOS]), 0, spans=2).span_ids.tolist() == [0, 1, 2]


@pytest.mark.parametrize("backend", ["auto", "portable"])
@pytest.mark.parametrize(("layers", "informed"), [(1, {3, 4, 5, 6}), (2, {3, 4, 5, 6, 7, 8, 9})])
def test_who_learns_of_a_later_context_token_in_infill_causal(layers: int, informed: set[int], backend, monkeypatch):
    """The token before the span and the span; through that token, from the second layer on, the context after it."""
    monkeypatch.setenv("BICO_BACKEND", backend)
    c = CAUSAL_CONTEXT
    text = tensor([BOS, *range(4, 14)])
    drawn = (apply("infill-causal", text, seed).span_ids for seed in range(1000))
    span_ids = next(ids for ids in drawn if ids.tolist() == [c, c, c, 0, 1, 1, 1, c, c, c, c])
    model = attach(tiny_llama(num_hidden_layers=layers))

    def states(input_ids: Tensor) -> Tensor:
        with torch.no_grad():
            out = model(input_ids=input_ids[None], span_ids=span_ids[None], output_hidden_states=True)
        return out.hidden_states[-1][0]

    changed = (states(text) != states(torch.cat([text[:-1], tensor([20])]))).any(-1)
    assert set(changed.nonzero()[:, 0].tolist()) == informed | {10}
