"""Objectives against hand-written examples, the reference's visibility rule and their documented probabilities."""

import inspect
import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from objective_cases import BOS, EOP, EOS, MASK, PAD, REV, SEQUENCE, SPECIAL, VOCABULARY, apply, chi_square
from torch import Tensor, tensor
from transformers import LlamaConfig, LlamaForCausalLM

from bico_ext.models.attach import attach
from bico_ext.objectives import registry
from bico_ext.objectives.registry import OBJECTIVES
from bico_ext.objectives.training_sequence import NO_LOSS, TrainingSequence, pack, pad
from bico_ext.ops.reference import visible
from bico_ext.seeding import happens, stream_seed

sequences = st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=12).map(tensor)
seeds = st.integers(0, 2**32 - 1)


def leaks(input_ids: Tensor, sequence: TrainingSequence, shift: int = 0) -> list[int]:
    """Return the predicted positions whose token reaches the output that predicts it, through any number of layers."""
    length = len(sequence.input_ids)
    reaches = visible(sequence.span_ids[None])[0] | torch.eye(length, dtype=torch.bool)  # one layer with its residual
    for _ in range(length):  # the transitive closure of a relation on S elements takes at most S compositions
        reaches = (reaches.float() @ reaches.float()) > 0
    predicted = [i for i in range(1, length) if sequence.labels[i] != NO_LOSS]
    return [
        i for i in predicted if reaches[i - 1, source := i - shift] and sequence.input_ids[source] not in (PAD, MASK)
    ]


def test_ntp_by_hand():
    sequence = apply("ntp", tensor(SEQUENCE), seed=0)
    assert sequence.input_ids.tolist() == SEQUENCE
    assert sequence.labels.tolist() == [NO_LOSS, 7, 8, 9, EOS]
    assert sequence.span_ids.tolist() == [1, 1, 1, 1, 1]
    assert sequence.span_ids.dtype == torch.int32


def test_bico_by_hand():
    sequence = apply("bico", tensor(SEQUENCE), seed=0, mask_rate=1.0)
    assert sequence.input_ids.tolist() == [BOS, PAD, PAD, PAD, EOS]
    assert sequence.labels.tolist() == [NO_LOSS, 7, 8, 9, NO_LOSS]
    assert sequence.span_ids.tolist() == [0, -1, -1, -1, 0]
    assert sequence.span_ids.dtype == torch.int32


@pytest.mark.parametrize("name", ["naive", "attended-pad", "new-token"])
def test_a_control_changes_one_thing_in_bico(name: str):
    input_ids = tensor([BOS, *range(4, VOCABULARY), EOS])
    bico, control = apply("bico", input_ids, seed=1), apply(name, input_ids, seed=1)
    hidden = bico.span_ids == -1
    assert control.labels.equal(bico.labels)
    assert control.input_ids.equal(input_ids.masked_fill(hidden, MASK if name == "new-token" else PAD))
    assert control.span_ids.equal(bico.span_ids if name == "naive" else torch.zeros_like(bico.span_ids))
    assert (control.mirror, bico.mirror) == (name != "naive", True)


def test_bert_by_hand():
    sequence = apply(
        "bert", tensor([BOS, 7, 8, 9]), seed=0, mask_rate=1.0
    )  # no EOS: the last token cannot be predicted
    assert sequence.input_ids.tolist() == [BOS, PAD, PAD, 9]
    assert sequence.labels.tolist() == [NO_LOSS, NO_LOSS, 7, 8]  # the label shift makes output i predict the token at i
    assert sequence.span_ids.tolist() == [0, -1, -1, 0]


def test_a_uniform_rate_is_drawn_for_each_sequence():
    input_ids = tensor([BOS, *[7] * 50, EOS])
    shares = sorted(
        float((apply("bico", input_ids, seed, "uniform").labels == 7).float().mean()) for seed in range(400)
    )
    expected = [50 / 52 * (i + 0.5) / 400 for i in range(400)]
    # Kolmogorov's bound for 400 draws at 99.9 %, plus the resolution of a rate: one of 50 tokens
    assert max(abs(a - b) for a, b in zip(shares, expected, strict=True)) < 1.95 / 20 + 1 / 50


def test_permute_cuts_and_orders_uniformly():
    def segments(seed: int) -> tuple[int, ...]:
        sequence = apply("permute", tensor([BOS, 7, 8, 9, EOS]), seed, segments=3)
        assert sequence.span_ids.tolist() == [1, 1, 1, 1]
        assert sequence.input_ids[0] == BOS
        given = int((sequence.labels[1:] == NO_LOSS).sum())
        assert sequence.labels.tolist() == [*[NO_LOSS] * (1 + given), *sequence.input_ids[1 + given :].tolist()]
        return given, *sequence.input_ids[1:].tolist()

    # The first number is how many tokens are given. Two segments are cut after one or two tokens and always exchanged.
    # Of the six orders of three segments, five are kept and the identity becomes 9 8 7.
    expected = {
        (2, 8, 9, 7): 1 / 4,
        (1, 9, 7, 8): 1 / 4 + 1 / 12,
        (1, 8, 9, 7): 1 / 12,
        (1, 9, 8, 7): 1 / 6,
        (1, 7, 9, 8): 1 / 12,
        (1, 8, 7, 9): 1 / 12,
    }
    assert chi_square(Counter(segments(seed) for seed in range(4000)), expected) < 20.52  # 99.9 %, 5 degrees of freedom


@pytest.mark.parametrize("sequence", [[BOS], [BOS, EOS], [BOS, 7, EOS]])
def test_permute_of_fewer_than_two_tokens_is_next_token_prediction(sequence: list[int]):
    assert apply("permute", tensor(sequence), 0).labels.tolist() == [NO_LOSS, *sequence[1:]]
    assert apply("permute", tensor(sequence), 0).input_ids.tolist() == sequence


def test_reverse_keeps_the_tokens_of_a_word_and_the_words_of_an_entity_in_order():
    starts = torch.ones(VOCABULARY, dtype=torch.bool)
    starts[8] = False  # 8 continues the word that 7 begins
    text = tensor([BOS, 7, 8, 9, 10, 11, EOS])
    assert apply("reverse", text, 0, word_starts=starts).input_ids.tolist() == [BOS, 11, 10, 9, 7, 8, EOS]
    with_entities = apply("reverse", text, 0, word_starts=starts, entities=[[9], [9, 10]])
    assert with_entities.input_ids.tolist() == [BOS, 11, 9, 10, 7, 8, EOS]
    assert with_entities.labels.tolist() == [NO_LOSS, 11, 9, 10, 7, 8, EOS]
    in_a_word = apply("reverse", text, 0, word_starts=starts, word_parts=~starts, entities=[[7]])
    assert in_a_word.input_ids.tolist() == [BOS, 11, 10, 9, 7, 8, EOS], (
        "the word continues after the entity, so it is another word"
    )
    comma = apply("reverse", text, 0, word_starts=starts, entities=[[7]])  # 8 continues no word, like a comma
    assert comma.input_ids.tolist() == [BOS, 11, 10, 9, 8, 7, EOS]


def test_reverse_segments_draws_lengths_from_left_to_right_and_joins_the_segments_in_reverse():
    def order(seed: int) -> tuple[int, ...]:
        sequence = apply("reverse-segments", tensor([BOS, 7, 8, 9, EOS]), seed, segment_length=2)
        assert sequence.labels.tolist() == [NO_LOSS, *sequence.input_ids[1:].tolist()]
        assert sequence.span_ids.tolist() == [1] * len(sequence.input_ids)
        assert (sequence.input_ids[0], sequence.input_ids[-1]) == (BOS, EOS)
        return tuple(sequence.input_ids[1:-1].tolist())

    # The first length is 1 or 2; after 1, the second is 1 or 2; the last segment is what remains.
    expected = {(9, REV, 8, REV, 7): 1 / 4, (8, 9, REV, 7): 1 / 4, (9, REV, 7, 8): 1 / 2}
    assert chi_square(Counter(order(seed) for seed in range(4000)), expected) < 13.82  # 99.9 %, 2 degrees of freedom


@given(st.lists(st.integers(4, VOCABULARY - 1), max_size=80), seeds, st.integers(1, 40))
def test_segments_of_reverse_segments_are_those_of_the_text(text: list[int], seed: int, longest: int):
    whole = [BOS, *text, EOS]
    ids = apply("reverse-segments", tensor(whole), seed, segment_length=longest).input_ids.tolist()
    segments: list[list[int]] = [[]]
    for token in ids[1:-1]:
        if token == REV:
            segments.append([])
        else:
            segments[-1].append(token)
    assert [BOS, *(token for segment in reversed(segments) for token in segment), EOS] == whole
    assert all(1 <= len(segment) <= longest for segment in segments) or not text


@pytest.mark.parametrize("sequence", [[BOS], [BOS, EOS], [BOS, 7, EOS]])
def test_reverse_segments_of_a_single_segment_is_next_token_prediction(sequence: list[int]):
    assert apply("reverse-segments", tensor(sequence), 0).input_ids.tolist() == sequence


def test_pad_by_hand():
    batch = pad([apply("infill", tensor([BOS, 9]), 0), apply("bico", tensor(SEQUENCE), 0, mask_rate=1.0)], 5)
    assert batch["input_ids"].tolist() == [[BOS, 9, 5, 5, 5], [BOS, PAD, PAD, PAD, EOS]]
    assert batch["labels"].tolist() == [[NO_LOSS, 9, NO_LOSS, NO_LOSS, NO_LOSS], [NO_LOSS, 7, 8, 9, NO_LOSS]]
    assert batch["span_ids"].tolist() == [[0, 1, -1, -1, -1], [0, -1, -1, -1, 0]]
    assert batch["span_ids"].dtype == torch.int32
    (alone,) = pad([apply("naive", tensor(SEQUENCE), 0)], 5)["input_ids"]
    assert len(alone) == len(SEQUENCE)


def test_pack_by_hand():
    batch = pack([apply("infill", tensor([BOS, 9]), 0), apply("bico", tensor(SEQUENCE), 0, mask_rate=1.0)])
    assert batch["input_ids"].tolist() == [[BOS, 9, BOS, PAD, PAD, PAD, EOS]]
    assert batch["labels"].tolist() == [[NO_LOSS, 9, NO_LOSS, 7, 8, 9, NO_LOSS]]
    assert batch["span_ids"].tolist() == [[0, 1, 0, -1, -1, -1, 0]]
    assert batch["position_ids"].tolist() == [[0, 1, 0, 1, 2, 3, 4]]
    assert batch["cu_seq_lens_q"].tolist() == [0, 2, 7]
    assert batch["span_ids"].dtype == batch["cu_seq_lens_q"].dtype == torch.int32


@given(sequences, seeds, st.floats(0.01, 1))
@settings(deadline=None, max_examples=200)
def test_bico_hides_what_it_predicts_and_nothing_else(input_ids: Tensor, seed: int, mask_rate: float):
    before = input_ids.clone()
    sequence = apply("bico", input_ids, seed, mask_rate)
    eligible = [i for i, token in enumerate(input_ids.tolist()) if i > 0 and token not in SPECIAL]
    hidden = [i for i, span in enumerate(sequence.span_ids.tolist()) if span == -1]
    assert set(hidden) <= set(eligible)
    assert bool(hidden) == bool(eligible)
    for i, token in enumerate(before.tolist()):
        expected = (PAD, token, -1) if i in hidden else (token, NO_LOSS, 0)
        assert (sequence.input_ids[i], sequence.labels[i], sequence.span_ids[i]) == expected
    assert input_ids.equal(before), "the tensor of the dataset was changed"


@given(sequences, seeds)
@settings(deadline=None, max_examples=200)
def test_infill_predicts_one_span_of_unchanged_tokens(input_ids: Tensor, seed: int):
    sequence = apply("infill", input_ids, seed)
    assert sequence.input_ids.equal(input_ids)
    span = sequence.span_ids.nonzero()[:, 0].tolist()
    assert span == (list(range(span[0], span[-1] + 1)) if len(input_ids) > 1 else [])
    assert 0 not in span
    for i, token in enumerate(input_ids.tolist()):
        assert (sequence.labels[i], sequence.span_ids[i]) == ((token, 1) if i in span else (NO_LOSS, 0))


@pytest.mark.parametrize("name", OBJECTIVES)
@given(input_ids=sequences, seed=seeds, mask_rate=st.floats(0.01, 1))
@settings(deadline=None, max_examples=100)
def test_no_label_reaches_the_output_that_predicts_it(name: str, input_ids: Tensor, seed: int, mask_rate: float):
    # The label at i is the token at i, or the token before it if the same position predicts it (bert).
    assert leaks(input_ids, apply(name, input_ids, seed, mask_rate), shift=int(name == "bert")) == []


def test_the_leak_check_sees_leaks():
    input_ids = tensor(SEQUENCE)
    in_context = TrainingSequence(input_ids, input_ids, torch.zeros(5, dtype=torch.int32))
    assert leaks(input_ids, in_context) == [1, 2, 3, 4]
    not_replaced = TrainingSequence(input_ids, input_ids, tensor([0, 0, -1, 0, 0]))
    assert leaks(input_ids, not_replaced) == [
        1,
        3,
        4,
    ]  # position 2 is never a key, so its token reaches no other position


@pytest.mark.parametrize("name", OBJECTIVES)
def test_logits_do_not_depend_on_the_token_they_predict(name: str):
    """In a real model, changing the token at i + 1 leaves the logits at i bit-identical."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY + 3, hidden_size=16, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2
    )
    model = attach(LlamaForCausalLM(config)).eval()
    original = tensor([BOS, 7, 8, 9, 10, 11, 12, EOS])

    def logits(input_ids: Tensor) -> tuple[Tensor, Tensor]:
        sequence = apply(name, input_ids, seed=3)
        with torch.no_grad():
            out = model(input_ids=sequence.input_ids[None], span_ids=sequence.span_ids[None]).logits[0]
        return out, sequence.labels

    out, labels = logits(original)
    predicted = [i for i in range(1, len(labels)) if labels[i] not in (NO_LOSS, EOS, EOP, REV)]
    assert len(predicted) > 1
    for i in predicted:
        changed = original.masked_fill(original == labels[i], 13)  # every token of the original occurs once
        assert logits(changed)[0][i - 1].equal(out[i - 1])


def test_bico_hides_tokens_at_the_given_rate():
    count, rate, rows = 20, 0.15, 2000
    input_ids = tensor([BOS, *[7] * count, EOS])
    hidden = [int((apply("bico", input_ids, seed, rate).span_ids == -1).sum()) for seed in range(rows)]
    nothing = (1 - rate) ** count
    mean = count * rate + nothing
    second_moment = count * rate * (1 - rate) + (count * rate) ** 2 + nothing
    sigma = math.sqrt((second_moment - mean**2) / rows)
    assert abs(sum(hidden) / rows - mean) < 4 * sigma
    assert abs(hidden.count(1) / rows - (count * rate * (1 - rate) ** (count - 1) + nothing)) < 4 * 0.5 / rows**0.5


def test_bico_chooses_a_single_hidden_token_uniformly():
    input_ids = tensor([7, 8, EOS, 9, 10, 11])  # position 0 and the EOS are not eligible
    counts = Counter(
        int((apply("bico", input_ids, seed, mask_rate=1e-12).span_ids == -1).nonzero()) for seed in range(2000)
    )
    assert chi_square(counts, dict.fromkeys((1, 3, 4, 5), 1 / 4)) < 16.27  # the 99.9 % quantile, 3 degrees of freedom


def test_infill_spans_are_uniform_in_length_then_in_start():
    def span(seed: int) -> tuple[int, int]:
        inside = apply("infill", tensor(SEQUENCE), seed).span_ids.nonzero()[:, 0]
        return len(inside), int(inside[0])

    counts = Counter(span(seed) for seed in range(4000))
    starts = {1: (1, 2, 3, 4), 2: (1, 2, 3), 3: (1, 2), 4: (1,)}
    expected = {(length, start): 1 / 4 / len(possible) for length, possible in starts.items() for start in possible}
    assert chi_square(counts, expected) < 27.88  # the 99.9 % quantile, 9 degrees of freedom


@pytest.mark.parametrize("name", OBJECTIVES)
def test_random_numbers_come_only_from_the_generator(name: str):
    input_ids = tensor([BOS, *range(4, VOCABULARY), EOS])
    state = torch.get_rng_state()
    first, again = apply(name, input_ids, seed=5), apply(name, input_ids, seed=5)
    assert first.span_ids.equal(again.span_ids)
    assert torch.get_rng_state().equal(state)
    assert first.input_ids.equal(again.input_ids)
    if name not in ("ntp", "reverse"):
        drawn = [apply(name, input_ids, seed) for seed in range(4)]
        assert any(not sequence.labels.equal(first.labels) for sequence in drawn)


def test_stream_seed_is_blake2b_of_the_key():
    # printf "('masks', 42, 0, 7)" | b2sum -l 64, read as a little-endian number
    assert stream_seed("masks", 42, 0, 7) == int.from_bytes(bytes.fromhex("4c4505a1e2cede1b"), "little")


def test_happens_with_the_given_probability():
    for probability in (0.1, 0.5, 0.9):
        share = sum(happens(probability, "objective", 42, step) for step in range(4000)) / 4000
        assert abs(share - probability) < 4 * math.sqrt(probability * (1 - probability) / 4000)
    assert not any(happens(0.0, step) for step in range(100))
    assert all(happens(1.0, step) for step in range(100))


def test_options_by_objective():
    assert {name: registry.option_names(name) for name in OBJECTIVES} == {
        "ntp": (),
        "bico": ("placeholder_id", "special_ids", "mask_rate"),
        "infill": ("spans",),
        "infill-naive": ("spans",),
        "infill-causal": ("spans",),
        "infill-end": ("special_ids",),
        "infill-end-causal": ("special_ids",),
        "permute": ("special_ids", "segments"),
        "abi": ("mask_id", "sop_id", "eop_id", "special_ids", "positions"),
        "naive": ("placeholder_id", "special_ids", "mask_rate"),
        "bert": ("placeholder_id", "special_ids", "mask_rate"),
        "attended-pad": ("placeholder_id", "special_ids", "mask_rate"),
        "new-token": ("mask_id", "special_ids", "mask_rate"),
        "reverse": ("special_ids", "word_starts", "word_parts", "entities"),
        "reverse-segments": ("special_ids", "separator_id", "segment_length"),
    }


def test_defaults_are_those_of_the_sources():
    """The papers' mask rate and length of a reversed segment, ChatGLM-6B's positions, and docs/experiments.md."""
    sources = {"mask_rate": 0.15, "segment_length": 25, "positions": "2d", "segments": 4, "spans": 1, "entities": ()}
    for name, function in OBJECTIVES.items():
        for option, parameter in inspect.signature(function).parameters.items():
            if parameter.default is not parameter.empty:
                assert parameter.default == sources[option], (name, option)


@pytest.mark.parametrize("mask_rate", [0.0, -0.1, 1.01, math.nan, "often"])
def test_mask_rate_out_of_range(mask_rate: float | str):
    with pytest.raises(ValueError, match=r"mask_rate must be in \(0, 1\] or 'uniform', got"):
        apply("bico", tensor(SEQUENCE), 0, mask_rate)


def test_unknown_objective_lists_the_known():
    with pytest.raises(ValueError, match=r"one of 'ntp', 'bico', 'infill', .*, got 'mlm'"):
        registry.bind("mlm")


def test_too_few_segments_and_spans():
    with pytest.raises(ValueError, match="segment_length must be at least 1, got 0"):
        apply("reverse-segments", tensor(SEQUENCE), 0, segment_length=0)
    with pytest.raises(ValueError, match="segments must be at least 2, got 1"):
        apply("permute", tensor(SEQUENCE), 0, segments=1)
    with pytest.raises(ValueError, match="spans must be at least 1, got 0"):
        apply("infill", tensor(SEQUENCE), 0, spans=0)


def test_batches_of_nothing():
    with pytest.raises(ValueError, match="pad needs at least one row"):
        pad([], 0)
    with pytest.raises(ValueError, match="pack needs at least one row"):
        pack([])
