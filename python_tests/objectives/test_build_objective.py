"""Options that `build_objective` takes from the settings, the model and its tokenizer."""

from types import SimpleNamespace

import pytest
import torch
from torch import Generator, tensor
from transformers import LlamaConfig, LlamaForCausalLM

from bico_ext.models.tokenization import train_word_tokenizer
from bico_ext.objectives.build import build_objective
from bico_ext.objectives.registry import OBJECTIVES
from bico_ext.objectives.training_sequence import NO_LOSS

TEXT = "Ada Lovelace wrote the program."


def settings(**changes):
    fields = {
        "mask_rate": 1.0,
        "placeholder_id": None,
        "infill_spans": 1,
        "permute_segments": 2,
        "reverse_segment_length": 2,
        "abi_positions": "2d",
        "entities_file": None,
    }
    return SimpleNamespace(**fields | changes)


@pytest.fixture
def tokenizer():
    return train_word_tokenizer([TEXT])


@pytest.fixture
def model(tokenizer):
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    return LlamaForCausalLM(config)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_gets_the_options_that_it_needs(name, model, tokenizer):
    objective = build_objective(name, settings(), model, tokenizer)
    sequence = objective(tensor(tokenizer(TEXT)["input_ids"]), Generator().manual_seed(0))
    assert (sequence.labels != NO_LOSS).any()
    assert sequence.input_ids.max() < len(model.get_input_embeddings().weight)


def test_bico_uses_the_padding_token_as_placeholder_and_keeps_special_tokens(model, tokenizer):
    ids = tensor([*tokenizer(TEXT)["input_ids"], tokenizer.eos_token_id])
    sequence = build_objective("bico", settings(), model, tokenizer)(ids, Generator())
    assert sequence.input_ids.tolist() == [2, *[0] * (len(ids) - 2), 3]
    given = build_objective("bico", settings(placeholder_id=5), model, tokenizer)(ids, Generator())
    assert given.input_ids.tolist() == [2, *[5] * (len(ids) - 2), 3]


def test_a_new_token_is_new(model, tokenizer):
    before = len(tokenizer)
    sequence = build_objective("new-token", settings(), model, tokenizer)(tensor([2, 5, 6]), Generator())
    assert sequence.input_ids.tolist() == [2, before, before]
    assert len(model.get_input_embeddings().weight) == before + 1


def test_reverse_segments_adds_its_separator(model, tokenizer):
    before = len(tokenizer)
    objective = build_objective("reverse-segments", settings(reverse_segment_length=1), model, tokenizer)
    assert objective(tensor([2, 5, 6, 3]), Generator()).input_ids.tolist() == [2, 6, before, 5, 3]
    assert tokenizer.convert_ids_to_tokens(before) == "[REV]"
    assert tokenizer.decode([5, before], skip_special_tokens=True) == tokenizer.decode([5])
    assert len(model.get_input_embeddings().weight) == before + 1


def test_reverse_keeps_words_and_named_entities(model, tokenizer, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("Ada Lovelace\n\n")
    ids = tensor(tokenizer(TEXT)["input_ids"])

    def reversed_text(**changes):
        sequence = build_objective("reverse", settings(**changes), model, tokenizer)(ids, Generator())
        return tokenizer.decode(sequence.input_ids, skip_special_tokens=True)

    assert reversed_text() == "program. the wrote Lovelace Ada"  # the full stop does not begin a word
    assert reversed_text(entities_file=str(names)) == "program. the wrote Ada Lovelace"
    names.write_text("\ufeffAda Lovelace\n", encoding="utf-8")  # Windows writes this mark, which belonged to the name
    assert reversed_text(entities_file=str(names)) == "program. the wrote Ada Lovelace"
    names.write_text("the program")
    assert reversed_text(entities_file=str(names)) == ". the program wrote Lovelace Ada"
    names.write_text("\n")
    with pytest.raises(ValueError, match="contains no entity; expected one per line"):
        reversed_text(entities_file=str(names))


def test_reverse_handles_text_without_spaces():
    tokenizer = train_word_tokenizer(["\u6708\u5149\u767d"])
    config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    ids = tensor(tokenizer("\u6708\u5149\u767d")["input_ids"])
    sequence = build_objective("reverse", settings(), LlamaForCausalLM(config), tokenizer)(ids, Generator())
    assert "\u767d\u5149\u6708" in tokenizer.decode(sequence.input_ids, skip_special_tokens=True)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bico", "placeholder_id is needed for objective='bico'"),
        ("reverse", "objective='reverse' needs a tokenizer"),
        ("abi", "tokenizer must be given to add tokens"),
        ("new-token", "tokenizer must be given to add tokens"),
        ("reverse-segments", "tokenizer must be given to add tokens"),
    ],
)
def test_options_that_need_a_tokenizer(name, message, model):
    with pytest.raises(ValueError, match=message):
        build_objective(name, settings(), model, None)


def test_a_placeholder_that_the_model_lacks(model, tokenizer):
    message = r"placeholder_id must be in \[0, 10\), the ids of the model, got "
    for given in (10, 999, -1):
        with pytest.raises(ValueError, match=f"{message}{given}$"):
            build_objective("naive", settings(placeholder_id=given), model, tokenizer)
    tokenizer.add_special_tokens({"pad_token": "<late>"})
    with pytest.raises(ValueError, match=f"{message}10, the tokenizer's padding id; set placeholder_id=0$"):
        build_objective("naive", settings(), model, tokenizer)


@pytest.mark.parametrize(("piece", "continues"), [("ms", True), ("s.", True), (".s", False), ("\u0120ms", False)])
def test_an_entity_ends_where_its_last_word_does(piece, continues, model, tmp_path):
    """A name is not in "Lovelacems", but in "Lovelace.s"; \u0120 is a space of GPT-2's tokenizer."""
    tokenizer = train_word_tokenizer(["Ada Lovelace ms"])
    tokens = ["<pad>", "<unk>", "<s>", "</s>", "\u0120Ada", "\u0120Lovelace", piece]
    tokenizer.convert_ids_to_tokens = lambda ids: [tokens[i] for i in ids]
    (tmp_path / "names.txt").write_text("Ada Lovelace")
    objective = build_objective("reverse", settings(entities_file=str(tmp_path / "names.txt")), model, tokenizer)
    reordered = objective(tensor([2, 4, 5, 6, 3]), Generator()).input_ids.tolist()
    assert reordered == ([2, 5, 6, 4, 3] if continues else [2, 6, 4, 5, 3])


def test_every_token_is_a_word_if_the_vocabulary_marks_no_word_starts(model):
    tokenizer = train_word_tokenizer(["a"])
    tokenizer.convert_ids_to_tokens = lambda ids: ["x" for _ in ids]
    reversed_ids = build_objective("reverse", settings(), model, tokenizer)(tensor([2, 4, 5, 6]), Generator())
    assert reversed_ids.input_ids.tolist() == [2, 6, 5, 4]
    assert reversed_ids.span_ids.equal(torch.ones(4, dtype=torch.int32))
