"""The sequences that the probe reads."""

import pytest
import torch
from probed import TEXTS, word_model
from tiny_models import tiny_llama, tokens
from torch import Tensor

from bico_ext.facts.types import Example
from bico_ext.models.tokenization import encode_text, train_word_tokenizer
from bico_ext.probing.texts import encode, pack, sequences_by_length

BOS = 2


def sequences(*lengths: int) -> list[Tensor]:
    return [torch.cat((torch.tensor([BOS]), tokens(length - 1))) for length in lengths]


def test_packed_sequences_are_the_texts_one_after_the_other():
    texts = sequences(5, 4, 6)
    packed = pack(texts, 7)
    assert torch.equal(torch.cat(packed), torch.cat(texts)[:14])
    assert [len(ids) for ids in packed] == [7, 7]
    assert pack(texts, 16) == []


def test_texts_are_shuffled_by_the_seed_and_packed_in_that_order():
    model, tokenizer = word_model()
    first, again, other = (sequences_by_length(model, tokenizer, TEXTS, [16], seed=seed) for seed in (1, 1, 2))
    assert sorted(ids.tolist() for ids in first[None]) == sorted(encode_text(tokenizer, text.text) for text in TEXTS)
    assert torch.equal(torch.cat(first[16]), torch.cat(first[None])[: 16 * len(first[16])])
    assert [ids.tolist() for ids in first[None]] == [ids.tolist() for ids in again[None]]
    assert [ids.tolist() for ids in first[None]] != [ids.tolist() for ids in other[None]]


def test_samples_and_tokens_limit_each_length():
    model, tokenizer = word_model()
    everything = sequences_by_length(model, tokenizer, TEXTS, [16, 1000])
    assert everything.keys() == {None, 16}, "1000 exceeds the context"
    limited = sequences_by_length(model, tokenizer, TEXTS, [16], samples=7, tokens=40)
    assert [len(members) for members in limited.values()] == [
        max(n for n in range(8) if sum(map(len, everything[None][:n])) <= 40),
        2,
    ]
    assert [len(x) for x in sequences_by_length(model, tokenizer, TEXTS, [16], tokens=1).values()] == [1, 1]


def test_running_prose_is_cut_without_special_tokens_inside():
    model, tokenizer = word_model()
    prose = sequences_by_length(model, tokenizer, TEXTS, [10], running=True)[10]
    inside = torch.cat([ids[1:] for ids in prose])
    assert {len(ids) for ids in prose} == {10}
    assert {int(ids[0]) for ids in prose} == {tokenizer.bos_token_id}
    assert not torch.isin(inside, torch.tensor([tokenizer.bos_token_id, tokenizer.eos_token_id])).any()
    whole = tokenizer("\n\n".join(text.text for text in TEXTS), add_special_tokens=False)["input_ids"]
    pieces = [whole[start : start + 9] for start in range(0, len(whole) - 8, 9)]
    assert sorted(ids[1:].tolist() for ids in prose) == sorted(pieces)
    tokenizer.backend_tokenizer.post_processor = None  # it has a BOS, but puts none in front of a text
    pieces = [whole[start : start + 10] for start in range(0, len(whole) - 9, 10)]
    prose = sequences_by_length(model, tokenizer, TEXTS, [10], running=True)[10]
    assert sorted(ids.tolist() for ids in prose) == sorted(pieces)


@pytest.mark.parametrize(
    ("texts", "changes", "message"),
    [
        ([], {}, "texts must hold at least one text, got none"),
        (TEXTS, {"max_position_embeddings": 8}, r"text \d+, .* needs \d+ tokens, but the model's context is 8"),
        (TEXTS, {"vocab_size": 9}, r"text \d+, .*: ids must be in \[0, 9\), the ids of the model"),
    ],
)
def test_texts_that_cannot_be_used_are_named(texts, changes, message):
    model, tokenizer = word_model(**changes)
    with pytest.raises(ValueError, match=message):
        encode(model, tokenizer, texts)


def test_a_text_with_nothing_to_hide_is_named():
    tokenizer = train_word_tokenizer(["word"])
    with pytest.raises(ValueError, match=r"text 2 has no token to hide.*got \[2, 1, 3\]"):
        encode(tiny_llama(), tokenizer, [Example("word", ""), Example("unseen", "")])
