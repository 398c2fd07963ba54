"""`generate_blank` against a loop without cache or batches that recomputes everything through the op."""

from typing import Any, Literal

import pytest
import torch
from tiny_models import tiny_family, tiny_llama
from transformers import PreTrainedTokenizerFast

from bico_ext.generation.blanks import generate_blank
from bico_ext.models.attach import attach
from bico_ext.models.special_tokens import added_tokens
from bico_ext.models.tokenization import encode_prompt, train_word_tokenizer
from bico_ext.objectives.blank_infilling import Positions

WORDS = [f"w{i}" for i in range(46)]
PROMPTS = ["w1", "w2 w3 w4 w5 w6", "w7 w8", "w2 w3 w4 w5 w6", "w9 w10 w11 w12 w13 w14 w15 w16 w17"]


def tokenizer() -> PreTrainedTokenizerFast:
    return train_word_tokenizer([" ".join(WORDS)])


def model_and_tokenizer(family: str) -> tuple[Any, PreTrainedTokenizerFast, dict[str, int]]:
    torch.manual_seed(0)
    settings = {"vocab_size": 50, "initializer_range": 0.2}
    model = tiny_llama(**settings) if family == "llama" else tiny_family("glm", **settings)
    words = tokenizer()
    ids = added_tokens(model, words, ["mask", "gmask", "sop", "eop"])
    return attach(model.double().train()), words, ids  # fp64, so that no tokens are nearly tied


def slow_greedy(model: Any, prompt: list[int], ids: dict[str, int], mask: str, positions: str, count: int) -> list[int]:
    """Generate greedily from the definition: the prompt and the mask are context; [sop] and what follows are span 1."""
    prefix = [*prompt, ids[mask]]
    generated: list[int] = []
    model.eval()
    while len(generated) < count:
        n, block = len(prefix), len(generated) + 1
        if positions == "2d":
            first, second = [*range(n), *[n - 1] * block], [*[0] * n, *range(1, block + 1)]
            position_inputs = {"block_positions": torch.tensor([[first, second]])}
        else:
            position_inputs = {"position_ids": torch.tensor([[*range(n), *range(n - 2, n - 2 + block)]])}
        span_ids = torch.tensor([[0] * n + [1] * block], dtype=torch.int32)
        inputs = torch.tensor([[*prefix, ids["sop"], *generated]])
        with torch.no_grad():
            token = int(
                model(input_ids=inputs, span_ids=span_ids, mirror=False, **position_inputs).logits[0, -1].argmax()
            )
        if token in (ids["eop"], 3):  # 3 is the tokenizer's EOS
            break
        generated.append(token)
    return generated


@pytest.mark.parametrize("mask", ["gmask", "mask"])
@pytest.mark.parametrize("positions", ["2d", "in-place"])
@pytest.mark.parametrize("family", ["llama", "glm"])
def test_equals_the_slow_loop(family: str, positions: Positions, mask: Literal["gmask", "mask"]) -> None:
    model, words, ids = model_and_tokenizer(family)
    with torch.no_grad():  # make [eop] likely enough to end some answers
        model.get_output_embeddings().weight[ids["eop"]] *= 2
    expected = {}
    for prompt in PROMPTS:
        answer = slow_greedy(model, encode_prompt(words, prompt), ids, mask, positions, 12)
        expected[prompt] = words.decode(encode_prompt(words, prompt) + answer, skip_special_tokens=True)[len(prompt) :]
    model.train()
    for batch_size in (1, 3, 128):
        got = generate_blank(
            model,
            words,
            PROMPTS,
            max_new_tokens=12,
            batch_size=batch_size,
            progress=False,
            positions=positions,
            mask=mask,
        )
        assert got == [expected[prompt] for prompt in PROMPTS]
    assert all(module.training for module in model.modules())
    assert len(set(expected.values())) > 2


@pytest.mark.parametrize("end", ["eop", "eos"])
def test_an_end_token_ends_an_answer(end: str) -> None:
    """The end token takes over the output row of a word that an answer contains."""
    model, words, ids = model_and_tokenizer("llama")
    (free,) = generate_blank(model, words, PROMPTS[:1], max_new_tokens=6, progress=False)
    generated = free.split()
    last = next(word for word in reversed(generated) if word != generated[0])
    head, word = model.get_output_embeddings().weight, words.get_vocab()[f" {last}"]
    with torch.no_grad():
        head[ids["eop"] if end == "eop" else words.eos_token_id] = head[word]
        head[word] = 0
    (cut,) = generate_blank(model, words, PROMPTS[:1], max_new_tokens=6, progress=False)
    assert cut.split() == generated[: generated.index(last)] != []


def test_errors() -> None:
    model, words, _ = model_and_tokenizer("llama")
    with pytest.raises(TypeError, match="prompts must be an iterable of texts, got str 'w1'"):
        generate_blank(model, words, "w1")
    with pytest.raises(ValueError, match="max_new_tokens must be at least 1, got 0"):
        generate_blank(model, words, PROMPTS, max_new_tokens=0)
    with pytest.raises(ValueError, match="the positions of 'abi' must be '2d' or 'in-place'"):
        generate_blank(model, words, PROMPTS, positions="1d")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"tokenizer must have the tokens \[gMASK\], <sop>, <eop>"):
        generate_blank(model, tokenizer(), PROMPTS)
    with pytest.raises(ValueError, match="but the model's context is 128"):
        generate_blank(model, words, PROMPTS, max_new_tokens=126)
    with pytest.raises(RuntimeError, match="LlamaForCausalLM is not attached"):
        generate_blank(tiny_llama(), words, PROMPTS)
