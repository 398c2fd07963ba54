"""Perplexity and everyday answers compared with the loss and the generation of stock transformers."""

import math

import pytest
import torch
from tiny_models import tiny_llama
from torch.nn.functional import cross_entropy

from bico_ext.evaluation import fluency as module
from bico_ext.evaluation.fluency import PROMPTS, WINDOW, WINDOWS, fluency, general_text, perplexity, windows
from bico_ext.models.tokenization import train_word_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return train_word_tokenizer([*general_text()[:100], *PROMPTS])


@pytest.fixture
def model(tokenizer):
    return tiny_llama(
        vocab_size=len(tokenizer),
        max_position_embeddings=WINDOW,
        attention_dropout=0.5,  # changes every number in training mode
        eos_token_id=tokenizer.eos_token_id,
    ).train()


@pytest.fixture(scope="module")
def ids(tokenizer):
    return torch.randint(0, len(tokenizer), (5, 12), generator=torch.Generator().manual_seed(0))


def test_perplexity_is_exp_of_the_stock_loss(model, ids):
    value = perplexity(model, ids)
    assert model.training
    with torch.no_grad():
        losses = [model.double().eval()(input_ids=row[None], labels=row[None]).loss for row in ids]
    assert value == pytest.approx(torch.stack(losses).mean().exp().item(), rel=1e-6)


def test_perplexity_does_not_depend_on_the_batch_size(model, ids):
    values = [perplexity(model, ids, batch_size=size) for size in (1, 2, 5)]
    assert values == pytest.approx([values[0]] * 3, rel=1e-6)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        perplexity(model, ids, batch_size=0)


@pytest.mark.parametrize("autocast", [False, True])
def test_perplexity_in_half_precision(model, ids, autocast):
    """The logits have 8 bits, and log p is computed from them in float32; autocast is that of the caller."""
    full = perplexity(model, ids)
    model = model if autocast else model.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        value = perplexity(model, ids)
        with torch.no_grad():
            logits = model.eval()(input_ids=ids).logits
    assert logits.dtype == torch.bfloat16
    expected = cross_entropy(logits[:, :-1].double().flatten(0, 1), ids[:, 1:].flatten()).exp().item()
    assert value == pytest.approx(expected, rel=1e-5)
    assert value != pytest.approx(full, rel=1e-5)


def test_the_windows_start_the_parts_of_the_text(model, tokenizer):
    paragraphs = general_text()
    cut = windows(model, tokenizer, paragraphs)
    assert cut.shape == (WINDOWS, WINDOW)
    assert cut.dtype == torch.int64
    assert (cut[:, 0] == tokenizer.bos_token_id).all()
    half = "\n\n".join(paragraphs[len(paragraphs) // 2 :])
    assert cut[WINDOWS // 2].tolist() == tokenizer(half)["input_ids"][:WINDOW]


def test_the_text_is_prose_without_repetition():
    paragraphs = general_text()
    assert len(paragraphs) == len(set(paragraphs))
    assert any(paragraph.startswith("Any object can be tested for truth value") for paragraph in paragraphs)
    letters = sum(character.isalpha() or character.isspace() for text in paragraphs for character in text)
    assert letters / sum(map(len, paragraphs)) > 0.9
    assert not any("\n" in paragraph or "  * " in paragraph for paragraph in paragraphs)
    assert not any("::=" in paragraph or ">>> " in paragraph[:4] for paragraph in paragraphs)


def test_what_is_too_short_is_refused(tokenizer, model):
    with pytest.raises(ValueError, match=r"each part of the text must have 256 tokens, got \d+; use a longer text"):
        windows(model, tokenizer, general_text()[:100])
    short = tiny_llama(max_position_embeddings=WINDOW - 1)
    with pytest.raises(ValueError, match=r"needs 256 tokens, .* is 255 .*; use a model with a longer context"):
        fluency(short, tokenizer)


def test_the_answers_are_those_of_stock_generation(model, tokenizer):
    model = model.double()
    answers = fluency(model, tokenizer)["answers"]
    assert list(answers) == list(PROMPTS)
    model.eval()
    for prompt, answer in answers.items():
        inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
        written = model.generate(**inputs, do_sample=False, max_new_tokens=24)
        text, given = (tokenizer.decode(row, skip_special_tokens=True) for row in (written[0], inputs["input_ids"][0]))
        assert answer == text[len(given) :]
    assert len(set(answers.values())) > 5


def test_the_record_names_the_text(model, tokenizer, monkeypatch):
    measured = fluency(model, tokenizer)
    assert measured["tokens"] == WINDOWS * (WINDOW - 1)
    assert measured["text"].startswith("pydoc_data.topics of Python 3.")
    assert measured["perplexity"] == perplexity(model, windows(model, tokenizer, general_text()))
    assert len(measured["digest"]) == 16
    paragraphs = [*general_text(), "One more."]
    monkeypatch.setattr(module, "general_text", lambda: paragraphs)
    assert fluency(model, tokenizer)["digest"] != measured["digest"]


def test_a_diverged_model_has_no_perplexity(model, tokenizer):
    with torch.no_grad():
        model.lm_head.weight[7] = math.nan
    assert fluency(model, tokenizer)["perplexity"] is None
