"""A Llama whose greedy answers have all lengths, and the greedy loop to compare its completions with."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from bico_ext.models.tokenization import encode_prompt, train_word_tokenizer

WORDS = "the composer of a first symphony, who wrote it: Ada Byron. She was not known as 'Abyssal' then"
PROMPTS = [
    "Ada Byron",
    "the first symphony, it was",
    "She",
    "who wrote the symphony of a composer known as Ada Byron then",
    "then it was not",
    "a",
    "the composer of the first symphony, who was known as",
    "not known",
    "She was",
    "it was a never-seen word",
]
NEW_TOKENS = 9


def make_tokenizer() -> PreTrainedTokenizerFast:
    return train_word_tokenizer([WORDS])


def make_model(tokenizer) -> LlamaForCausalLM:
    """Make a model in fp64, so that rounding decides between no tokens; large weights make the answers varied."""
    torch.manual_seed(6)  # a seed with answers of all lengths, as the first test checks
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=24,
        initializer_range=0.3,
        attention_dropout=0.5,  # changes the answers if generation runs in training mode
    )
    return LlamaForCausalLM(config).double()


def greedy_ids(model, ids: list[int], eos: int | None, new_tokens: int = NEW_TOKENS) -> list[int]:
    """Return the ids after one prompt, including EOS; without padding, and with a full forward for each token."""
    answer: list[int] = []
    model.eval()
    while len(answer) < new_tokens and (not answer or answer[-1] != eos):
        with torch.no_grad():
            answer.append(int(model(input_ids=torch.tensor([ids + answer]), use_cache=False).logits[0, -1].argmax()))
    return answer


def greedy(model, tokenizer, prompts=PROMPTS) -> list[str]:
    completions = []
    for prompt in prompts:
        ids = encode_prompt(tokenizer, prompt)
        answer = greedy_ids(model, ids, tokenizer.eos_token_id)
        text = tokenizer.decode(ids + answer, skip_special_tokens=True)
        completions.append(text[len(tokenizer.decode(ids, skip_special_tokens=True)) :])
    return completions
