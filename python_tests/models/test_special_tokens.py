"""Special tokens: existing ones are found, missing ones get an id and embedding rows like those of other tokens."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny_family, tiny_llama
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from bico_ext.models.special_tokens import added_tokens, token_ids
from bico_ext.models.tokenization import train_word_tokenizer

NAMES = ["mask", "sop", "eop", "gmask"]


def tokenizer() -> PreTrainedTokenizerFast:
    return train_word_tokenizer([" ".join(f"w{i}" for i in range(46))])  # with 4 special tokens: 50 ids


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("family", ["llama", "glm"])
def test_the_model_grows_by_the_tokens(family: str, tied: bool) -> None:
    torch.manual_seed(0)
    model: Any = tiny_family(family, tie_word_embeddings=tied, vocab_size=50, initializer_range=0.2)
    before = copy.deepcopy(model.state_dict())
    words = tokenizer()
    state = torch.get_rng_state()
    assert added_tokens(model, words, NAMES) == {"mask": 50, "sop": 51, "eop": 52, "gmask": 53}
    assert torch.get_rng_state().equal(state)
    assert len(words) == model.config.vocab_size == 54
    inputs, outputs = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert (inputs is outputs) == tied
    assert inputs.shape == outputs.shape == (54, 64)
    assert inputs[:50].equal(before["model.embed_tokens.weight"])
    assert outputs[:50].equal(before["lm_head.weight"])
    assert not inputs[50:].equal(outputs[50:]) or tied
    for rows in {inputs, outputs}:  # 4 x 64 draws from N(0, 0.2^2): their deviation is within four standard errors
        assert abs(rows[50:].std() - 0.2) < 4 * 0.2 / (2 * 256) ** 0.5
        assert (rows[50] - rows[51]).norm() > 0.5 * rows[50].norm()
    assert model(input_ids=torch.arange(50, 54)[None]).logits.shape == (1, 4, 54)


def test_rows_are_like_those_before_them_in_each_dimension() -> None:
    model = tiny_llama()
    with torch.no_grad():
        model.get_input_embeddings().weight[:, :32] += 5
        model.get_input_embeddings().weight[:, 32:] *= 1e-3
    added_tokens(model, tokenizer(), NAMES)
    rows = model.get_input_embeddings().weight[50:]
    assert (rows[:, :32] - 5).abs().max() < 1
    assert 1e-5 < rows[:, 32:].abs().max() < 1e-3


def test_the_same_tokens_get_the_same_rows() -> None:
    first, second = tiny_llama(), tiny_llama()
    added_tokens(first, tokenizer(), ["mask", "sop"])
    torch.rand(3)
    words = tokenizer()
    added_tokens(second, words, ["mask"])
    assert added_tokens(second, words, ["sop", "mask"]) == {"sop": 51, "mask": 50}
    assert first.get_input_embeddings().weight[50].equal(second.get_input_embeddings().weight[50])


def test_tokens_that_were_added_for_another_model_get_the_same_rows() -> None:
    """In a notebook, a fresh model met a tokenizer that had the tokens, and its first forward raised an IndexError."""
    first, second, words = tiny_llama(), tiny_llama(), tokenizer()
    ids = added_tokens(first, words, NAMES)
    assert added_tokens(second, words, NAMES) == ids
    for model in (first, second):
        assert model.config.vocab_size == 54
        assert model(input_ids=torch.arange(50, 54)[None]).logits.shape == (1, 4, 54)
    assert all(weight.equal(first.state_dict()[name]) for name, weight in second.state_dict().items())


def test_existing_tokens_are_used(tmp_path: Path) -> None:
    """Also with the spellings of GLM-10B and after saving and loading. The model then stays as it is."""
    words, model = tokenizer(), tiny_llama()
    words.add_tokens(["[MASK]", "<|startofpiece|>", "<eop>"], special_tokens=True)
    model.resize_token_embeddings(53)
    before = copy.deepcopy(model.state_dict())
    words.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert added_tokens(model, loaded, ["mask", "sop", "eop"]) == {"mask": 50, "sop": 51, "eop": 52}
    assert len(loaded) == 53
    assert all(weight.equal(before[name]) for name, weight in model.state_dict().items())


def test_a_spare_row_is_drawn_anew() -> None:
    """GLM-4 has more rows than its tokenizer has tokens."""
    model = tiny_llama(vocab_size=64)
    before = model.get_input_embeddings().weight.clone()
    added_tokens(model, tokenizer(), ["mask"])
    weight = model.get_input_embeddings().weight
    assert weight.shape[0] == 64
    assert not weight[50].equal(before[50])
    assert weight[51:].equal(before[51:])


def test_decoding_skips_them_and_no_text_spells_them() -> None:
    words = tokenizer()
    ids = added_tokens(tiny_llama(), words, NAMES)
    w1 = words.get_vocab()[" w1"]
    assert words.decode([w1, ids["mask"], ids["sop"], w1, ids["eop"]], skip_special_tokens=True) == "w1 w1"
    assert ids["mask"] not in words("w1 [MASK]")["input_ids"]


def test_errors() -> None:
    with pytest.raises(ValueError, match="tokenizer must be given to add tokens such as"):
        added_tokens(tiny_llama(), None, NAMES)
    with pytest.raises(ValueError, match="must be one of 'mask', 'gmask', 'sop', 'eop', 'rev', got 'cls'"):
        added_tokens(tiny_llama(), tokenizer(), ["cls"])
    with pytest.raises(
        ValueError, match=r"tokenizer must have the tokens \[MASK\], <sop>, but they are not in its vocabulary"
    ):
        token_ids(tokenizer(), ["mask", "sop"])
