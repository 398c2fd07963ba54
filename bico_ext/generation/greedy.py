"""Greedy causal generation: continues prompts in batches, with a KV cache."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from copy import copy
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from bico_ext.bounds import check_bounds
from bico_ext.generation.inference import (
    BATCH_SIZE,
    cache_argument,
    check_distributed,
    check_loaded,
    evaluation_mode,
    gathered,
    is_rank_0,
    own_batches,
)
from bico_ext.models.tokenization import check_context, check_ids, encode_prompt, padding_id

# Every so many new tokens, rows whose answer has ended leave the batch. 256 questions to a fine-tuned SmolLM2-135M, in
# batches of 128 with up to 40 new tokens, take 33 seconds of CPU time if all rows stay, 21 with 8 and 20 with 4.
_STAGE_TOKENS = 8


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Iterable[str],
    *,
    max_new_tokens: int = 40,
    batch_size: int = BATCH_SIZE,
    progress: bool = True,
    distributed: bool = False,
) -> list[str]:
    """Continue prompts greedily, with a KV cache.

    A completion is separated from its prompt as in the paper's script: prompt and answer are decoded together, without
    special tokens, and as many characters are dropped as the decoded prompt has. It therefore usually starts with a
    space.

    During generation the model is in evaluation mode and its `generation_config` is replaced; both are restored, also
    after an error. A model prepared by `bico_ext.models.attach` generates in its stock, causal way. If two tokens are
    nearly tied, which happens above all in half precision, the batch size can decide between them.

    Args:
        model: a transformers causal LM or a PEFT model around one, on any device and with any dtype. Unwrap it from DDP
            first.
        tokenizer: the model's tokenizer; `encode_prompt` makes the ids. Its EOS ends a
            completion; the model's own list of end tokens is ignored. Its `padding_side` is neither used nor changed,
            and it needs no pad token.
        prompts: the texts to continue, in any order; equal ones are generated once.
        max_new_tokens: the largest number of tokens of a completion, at least 1; default 40, as in the paper's script.
        batch_size: the number of prompts in a batch, at least 1; prompts are sorted by length. The default, 128, is the
            fastest measured for a tiny model on a CPU. Lower it if memory runs out.
        progress: whether to show a progress bar, on rank 0 only.
        distributed: whether the processes of the process group divide the batches among them. All of them must make the
            same call, and each gets all completions. By default every process that calls generates all completions.

    Returns:
        One completion per prompt, in the given order.

    Raises:
        RuntimeError: distributed is set and there is no process group.
        TypeError: prompts is a single string.
        ValueError: a prompt has no tokens, has ids that the model lacks, or leaves fewer than max_new_tokens tokens of
            the model's context; max_new_tokens or batch_size is less than 1; or distributed is set and the model is
            sharded.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> from bico_ext.models.tokenization import train_word_tokenizer
        >>> tokenizer = train_word_tokenizer(["Ada wrote the first program."])
        >>> config = LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        ...                      vocab_size=len(tokenizer))
        >>> model = LlamaForCausalLM(config)
        >>> len(generate(model, tokenizer, ["Ada wrote", "Ada"], max_new_tokens=3, progress=False))
        2
    """
    check_request(model, tokenizer, prompts, max_new_tokens, batch_size)
    settings = GenerationConfig(
        do_sample=False,
        num_beams=1,
        use_cache=True,
        max_new_tokens=max_new_tokens,
        pad_token_id=padding_id(model, tokenizer),  # any id: the mask hides it, and answers are cut at EOS
        eos_token_id=tokenizer.eos_token_id,
        return_dict_in_generate=True,  # with the cache
    )
    with _prepared(model, settings):
        return in_batches(
            lambda ids: _answers(model, ids, settings),
            model,
            tokenizer,
            prompts,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            progress=progress,
            distributed=distributed,
        )


def in_batches(
    answers: Callable[[list[list[int]]], list[list[int]]],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Iterable[str],
    *,
    max_new_tokens: int,
    batch_size: int,
    progress: bool,
    distributed: bool,
) -> list[str]:
    """Encode, sort and batch prompts, generate an answer to each, and return the decoded completions.

    Args:
        answers: a function from the ids of a batch of prompts to the ids that follow each prompt, without the end
            token.
        model, tokenizer, prompts, max_new_tokens, batch_size, progress, distributed: as in `generate`.

    Returns:
        One completion per prompt, in the given order.

    Raises:
        RuntimeError: as in `check_distributed`.
        ValueError: as in `encode_prompts` and `check_distributed`.
    """
    check_distributed(model, distributed)
    prompts = list(prompts)
    for prompt in prompts:
        if not isinstance(prompt, str):
            raise TypeError(f"prompts must hold texts, got {type(prompt).__name__} {prompt!r:.60}")
    ids = encode_prompts(model, tokenizer, prompts, max_new_tokens)
    # The longest prompts come first, so that a batch that does not fit in memory fails at once.
    order = sorted(ids, key=lambda prompt: len(ids[prompt]), reverse=True)
    own: dict[str, str] = {}
    batches = own_batches(order, batch_size, distributed)
    total = sum(map(len, batches))
    with tqdm(total=total, desc="generate", unit="prompt", disable=not (progress and is_rank_0())) as bar:
        for asked in batches:
            batch = [ids[prompt] for prompt in asked]
            texts = [prompt + answer for prompt, answer in zip(batch, answers(batch), strict=True)]
            decoded_prompts = tokenizer.batch_decode(batch, skip_special_tokens=True)
            decoded = tokenizer.batch_decode(texts, skip_special_tokens=True)
            for prompt, decoded_prompt, text in zip(asked, decoded_prompts, decoded, strict=True):
                own[prompt] = text[len(decoded_prompt) :]
            bar.update(len(batch))
    completions = gathered(own, distributed)
    return [completions[prompt] for prompt in prompts]


def check_request(model: Any, tokenizer: Any, prompts: Iterable[str], max_new_tokens: int, batch_size: int) -> None:
    """Raise TypeError if an argument has the wrong type, such as one string, and ValueError for numbers below 1."""
    check_loaded(model, tokenizer)
    if isinstance(prompts, str) or not isinstance(prompts, Iterable):
        raise TypeError(
            f"prompts must be an iterable of texts, got {type(prompts).__name__} {prompts!r:.60}; use [text]"
        )
    check_bounds(max_new_tokens=max_new_tokens, batch_size=batch_size)


def encode_prompts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Iterable[str], max_new_tokens: int
) -> dict[str, list[int]]:
    """Return the ids of each prompt, after a check that every prompt leaves room for an answer.

    Raises:
        ValueError: a prompt has no tokens, has ids that the model lacks, or leaves fewer than max_new_tokens tokens of
            the model's context.
    """
    ids = {prompt: encode_prompt(tokenizer, prompt) for prompt in prompts}
    for prompt, tokens in ids.items():
        if not tokens:
            raise ValueError(f"a prompt must have at least one token, got none for {prompt!r:.60}")
        check_ids(model, tokens, f"prompt {prompt!r:.60}")
        check_context(
            model,
            len(tokens) + max_new_tokens,
            f"prompt {prompt!r:.60} with max_new_tokens={max_new_tokens}",
            "shorten the prompt or lower max_new_tokens",
        )
    return ids


def _answers(model: Any, prompts: list[list[int]], settings: GenerationConfig) -> list[list[int]]:
    """Generate the ids that follow each prompt, up to EOS.

    `model.generate` would compute each row until the last one ends, so it is called for a few tokens at a time.
    """
    width = max(map(len, prompts))
    pad: Any = settings.pad_token_id
    eos: Any = settings.eos_token_id
    left: Any = settings.max_new_tokens
    cache_name = cache_argument(model)
    # Both are [B, S], left-padded.
    ids = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=model.device)
    answers: list[list[int]] = [[] for _ in prompts]
    unfinished = torch.arange(len(prompts), device=model.device)  # [B], the prompts of the rows
    cache: dict[str, Any] = {}
    now = min(_STAGE_TOKENS, left)
    while True:
        stage = copy(settings)
        stage.max_new_tokens = now
        output = model.generate(input_ids=ids, attention_mask=mask, generation_config=stage, **cache)
        new = output.sequences[:, ids.shape[1] :]
        for prompt, answer in zip(unfinished.tolist(), new.tolist(), strict=True):
            # The ids after EOS are padding, which decoding need not skip: a pad token may be an ordinary token.
            answers[prompt] += answer[: answer.index(eos)] if eos in answer else answer
        left -= now
        rows = torch.arange(len(new), device=new.device) if eos is None else (new != eos).all(dim=1).nonzero()[:, 0]
        if not (left and len(rows)):
            return answers
        unfinished, ids = unfinished[rows], output.sequences[rows]
        mask = torch.cat((mask, torch.ones_like(new)), dim=1)[rows]
        selected = _selected(output.get(cache_name), rows)
        cache = {} if selected is None else {cache_name: selected}
        now = left if selected is None else min(_STAGE_TOKENS, left)


def _selected(cache: Any, rows: Tensor) -> Any:
    """Return a KV cache with these rows only; None for a cache with other states, whose rows cannot be selected."""
    if {type(layer) for layer in getattr(cache, "layers", [None])} <= {DynamicLayer, DynamicSlidingWindowLayer}:
        cache.batch_select_indices(rows)
        return cache
    return None


@contextmanager
def _prepared(model: nn.Module, settings: GenerationConfig) -> Iterator[None]:
    """Put the model in evaluation mode and replace its generation settings.

    `generate(generation_config=...)` takes settings that the given configuration leaves open (repetition penalty,
    minimum length, ...) from the model's own, which therefore has to be replaced. A PEFT model may have one in addition
    to that of the model inside.
    """
    own = [(module, module.generation_config) for module in model.modules() if "generation_config" in vars(module)]
    try:
        for module, _ in own:
            module.generation_config = settings  # type: ignore[assignment]
        with evaluation_mode(model):
            yield
    finally:
        for module, config in own:
            module.generation_config = config
