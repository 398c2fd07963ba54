"""Does a model still speak? Its perplexity on English prose, and its answers to everyday prompts.

Fine-tuning on a few facts can ruin what a pre-trained model knew. Both are therefore compared with those of the model
before fine-tuning. They say nothing about models that were trained from scratch on facts alone.
"""

import hashlib
import math
import platform
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bico_ext.bounds import check_bounds
from bico_ext.generation.greedy import generate
from bico_ext.generation.inference import evaluation_mode
from bico_ext.models.tokenization import check_context, check_ids, encode_prompt

WINDOWS, WINDOW = 16, 256  # 4,096 tokens: half a minute for a model of 135M parameters in float32 on one CPU core
WINDOW_BATCH = 8  # windows at once: with 49,152 entries in the vocabulary, their logits take 400 MB in float32
ANSWER_TOKENS = 24
PROMPTS = (
    "The capital of France is",
    "Two plus three is",
    "The opposite of hot is",
    "The days of the week are Monday,",
    "To make a cup of tea, first",
    "Once upon a time, there was a",
    "Dear Sir or Madam, I am writing to",
    "My favourite season is summer, because",
    "If you are tired, you should",
    "The main difference between cats and dogs is",
)


def fluency(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Measure the perplexity of a model on `general_text`, and let it continue everyday prompts greedily.

    The perplexity is that of ordinary causal prediction on 16 windows of 256 tokens each, see `windows`. It depends on
    the tokenizer and, a little, on the version of Python, whose documentation is the text.

    Args:
        model: as in `bico_ext.generation.greedy.generate`. It computes in the dtype of its weights, or under the
            autocast of the caller.
        tokenizer: the model's tokenizer.

    Returns:
        A mapping, ready for JSON:

        * "perplexity": at least 1; None for a diverged model;
        * "tokens": the number of tokens that were predicted;
        * "text": the name of the text and the version of Python that it comes with;
        * "digest": the hash of the text (16 hex digits);
        * "answers": the completion of each of the ten prompts, at most 24 tokens long.

    Raises:
        ValueError: the model's context is shorter than 256 tokens, or as in `generate`.

    Example:
        >>> fluency(model, tokenizer)["answers"]["The capital of France is"]  # doctest: +SKIP
        ' Paris.'
    """
    paragraphs = general_text()
    inputs = windows(model, tokenizer, paragraphs)
    value = perplexity(model, inputs)
    answers = generate(model, tokenizer, PROMPTS, max_new_tokens=ANSWER_TOKENS, progress=False)
    return {
        "perplexity": value if math.isfinite(value) else None,
        "tokens": inputs[:, 1:].numel(),
        "text": f"pydoc_data.topics of Python {platform.python_version()}",
        "digest": hashlib.blake2b("\n\n".join(paragraphs).encode(), digest_size=8).hexdigest(),
        "answers": dict(zip(PROMPTS, answers, strict=True)),
    }


def general_text() -> list[str]:
    """Return English prose that comes with every Python: the paragraphs of its language reference, without the code.

    `pydoc_data/topics.py` holds the reference for `help()`. Paragraphs that several topics share stand only once.

    Example:
        >>> paragraphs = general_text()
        >>> sum(map(len, paragraphs)) > 90_000, any("    if __debug__" in paragraph for paragraph in paragraphs)
        (True, False)
    """
    from pydoc_data.topics import topics  # half a megabyte, which other commands can do without

    blocks = [block for name in sorted(topics) for block in topics[name].split("\n\n")]
    prose = (block for block in blocks if block[:1].isupper() and block.endswith("."))
    return list(dict.fromkeys(" ".join(block.split()) for block in prose))


def windows(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, paragraphs: Sequence[str]) -> Tensor:
    """Cut a text into 16 parts of as many paragraphs each, and return the first 256 tokens of each part.

    Args:
        model: the model, for the length of its context.
        tokenizer: its tokenizer; if it puts BOS in front of a text, each window starts with it.
        paragraphs: the paragraphs of the text.

    Returns:
        Token ids, int64 [16, 256].

    Raises:
        ValueError: the model's context is shorter than 256 tokens, or a part of the text is.

    Example:
        >>> windows(model, tokenizer, general_text()).shape  # doctest: +SKIP
        torch.Size([16, 256])
    """
    check_context(model, WINDOW, "a window of the general text", "use a model with a longer context")
    bounds = [len(paragraphs) * part // WINDOWS for part in range(WINDOWS + 1)]
    parts = ["\n\n".join(paragraphs[first:last]) for first, last in pairwise(bounds)]
    ids = [encode_prompt(tokenizer, part)[:WINDOW] for part in parts]
    shortest = min(map(len, ids))
    if shortest < WINDOW:
        raise ValueError(f"each part of the text must have {WINDOW} tokens, got {shortest}; use a longer text")
    for window in ids:
        check_ids(model, window, "the general text")
    return torch.tensor(ids)


def perplexity(model: PreTrainedModel, windows: Tensor, *, batch_size: int = WINDOW_BATCH) -> float:
    """Return the perplexity of a model: exp of the mean of -log p(token | earlier tokens of its window).

    Args:
        model: a causal LM of transformers or a PEFT model around one, on any device. Its logits are converted to
            float32, one window at a time, before log p is computed.
        windows: token ids [windows, length], of which the first of each window is given and not predicted.
        batch_size: the number of windows at once, at least 1. The default, 8, suits large vocabularies.

    Returns:
        The perplexity; infinity or NaN for a diverged model.

    Raises:
        ValueError: batch_size is less than 1.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> config = LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        ...                      vocab_size=50)
        >>> model = LlamaForCausalLM(config)
        >>> _ = torch.nn.init.zeros_(model.lm_head.weight)  # every token is equally likely
        >>> round(perplexity(model, torch.arange(50)[None]), 3)
        50.0
    """
    check_bounds(batch_size=batch_size)
    sums = []
    with torch.no_grad(), evaluation_mode(model):
        for batch in windows.to(model.device).split(batch_size):
            logits = model(input_ids=batch, use_cache=False).logits  # [B, S, V]
            for row, ids in zip(logits, batch, strict=True):
                sums.append(cross_entropy(row[:-1].float(), ids[1:], reduction="sum"))
    return (torch.stack(sums).double().sum() / windows[:, 1:].numel()).exp().item()
