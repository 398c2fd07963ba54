"""What the tests of the probe share: short texts, and a small Llama with a tokenizer for their words."""

from typing import Any

from tiny_models import tiny_llama

from bico_ext.facts.types import Example
from bico_ext.models.tokenization import train_word_tokenizer

TEXTS = [Example(f"word{i}", " and".join(f" word{j}" for j in range(i % 5 + 1)) + ".") for i in range(20)]


def word_model(**changes: object) -> tuple[Any, Any]:
    tokenizer = train_word_tokenizer(text.text for text in TEXTS)
    return tiny_llama(**({"vocab_size": len(tokenizer)} | changes)), tokenizer
