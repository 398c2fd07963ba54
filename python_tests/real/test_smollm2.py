"""The fetched model is the pre-trained Llama that it should be, and bico's attention fits it."""

import copy

import torch
from transformers import LlamaForCausalLM

from bico_ext.generation.greedy import generate
from bico_ext.models.attach import attach
from bico_ext.models.tokenization import encode_text
from bico_ext.ops import reference

TEXT = "The quick brown fox jumps over the lazy dog, and the dog sleeps on."


def test_it_is_a_stock_llama(real_model):
    model, tokenizer = real_model
    config = model.config
    assert type(model) is LlamaForCausalLM
    assert (config.num_hidden_layers, config.hidden_size, config.head_dim) == (30, 576, 64)
    assert (config.num_attention_heads, config.num_key_value_heads) == (9, 3)
    assert (config.vocab_size, len(tokenizer)) == (49152, 49152)
    assert (config.rope_parameters["rope_theta"], config.max_position_embeddings) == (100_000, 8192)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert model.num_parameters() == 134_515_008
    assert all(weight.dtype == torch.float32 for weight in model.parameters())


def test_its_tokenizer_is_lossless(real_model):
    _, tokenizer = real_model
    assert tokenizer("The capital of France is 42.")["input_ids"] == [504, 3575, 282, 4649, 314, 216, 36, 34, 30]
    assert tokenizer.decode(encode_text(tokenizer, TEXT), skip_special_tokens=True) == TEXT


def test_it_knows_english(real_model):
    model, tokenizer = real_model
    answers = generate(model, tokenizer, ["The capital of France is"], max_new_tokens=2, progress=False)
    assert answers == [" Paris."]
    ordered = torch.tensor([encode_text(tokenizer, TEXT)])
    backwards = ordered.flip(1)
    with torch.no_grad():
        assert model(ordered, labels=ordered).loss < model(backwards, labels=backwards).loss - 2


def test_bico_attention_is_that_of_the_definition(real_model, monkeypatch):
    model, tokenizer = real_model
    tokens = torch.tensor([encode_text(tokenizer, TEXT)])
    span_ids = torch.zeros_like(tokens, dtype=torch.int32)
    span_ids[0, 4] = -1
    span_ids[0, 8:11] = 1
    attached = attach(copy.deepcopy(model))
    with torch.no_grad():
        torch.testing.assert_close(attached(tokens).logits, model(tokens).logits, rtol=0, atol=0)
        logits = attached(tokens, span_ids=span_ids).logits
        monkeypatch.setattr("bico_ext.models.hooks.split_triangle_attention", reference.split_triangle_attention)
        expected = attached(tokens, span_ids=span_ids).logits
    assert not torch.allclose(logits, model(tokens).logits, atol=0.1)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-3)


def test_with_the_flip_everywhere_a_reversed_text_has_the_reversed_logits(real_model):
    """Positions enter a score as |m - n| only, so both directions are alike; docs/understanding.md has the numbers."""
    model, tokenizer = real_model
    tokens = torch.tensor([encode_text(tokenizer, TEXT)])
    attached = attach(copy.deepcopy(model))

    def logits(tokens: torch.Tensor, mirror: bool) -> torch.Tensor:
        with torch.no_grad():
            return attached(tokens, span_ids=torch.zeros_like(tokens, dtype=torch.int32), mirror=mirror).logits

    difference = {
        mirror: (logits(tokens.flip(1), mirror).flip(1) - logits(tokens, mirror)).abs().max().item()
        for mirror in (True, False)
    }
    assert difference[True] < 1e-5 * logits(tokens, True).abs().max()
    assert difference[False] > 5
