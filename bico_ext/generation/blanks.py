"""Blank filling: generation for models trained by blank infilling (`bico_ext.objectives.blank_infilling`)."""

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from bico_ext.generation.greedy import check_request, in_batches
from bico_ext.generation.inference import BATCH_SIZE, cache_argument, evaluation_mode
from bico_ext.models.attach import check_attached
from bico_ext.models.special_tokens import token_ids
from bico_ext.models.tokenization import check_ids
from bico_ext.objectives.blank_infilling import Positions, block_position, check_positions


def generate_blank(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Iterable[str],
    *,
    max_new_tokens: int = 40,
    batch_size: int = BATCH_SIZE,
    progress: bool = True,
    distributed: bool = False,
    positions: Positions = "2d",
    mask: Literal["gmask", "mask"] = "gmask",
) -> list[str]:
    """Fill a blank at the end of each prompt greedily, with a KV cache.

    The prompt and a [gMASK] see each other in both directions, with plain RoPE attention. After a [sop] the model then
    generates token by token until [eop]; each token sees the prompt, the [gMASK] and what was generated before.
    Completions are separated from their prompts as in `bico_ext.generation.greedy.generate`, and the model's training
    mode is restored.

    Args:
        model: a causal LM prepared by `bico_ext.models.attach`, or a PEFT model around one.
        tokenizer: the model's tokenizer. It must have [gMASK] (or [MASK]), [sop] and [eop], see
            `bico_ext.models.special_tokens`. Its EOS also ends a completion.
        prompts: the texts to continue, in any order; equal ones are generated once.
        max_new_tokens: the largest number of tokens of a completion, at least 1; default 40, as in the paper's script.
        batch_size: the number of prompts in a batch, at least 1; default 128. Prompts are sorted by length.
        progress: whether to show a progress bar, on rank 0 only.
        distributed: as in `bico_ext.generation.greedy.generate`.
        positions: the positions that the model was trained with, as in `bico_ext.objectives.blank_infilling.abi`.
        mask: the token of the blank: "gmask" (the default) for [gMASK], as in GLM's generation, or "mask" for [MASK],
            the only one that a model trained by `abi` alone has seen.

    Returns:
        One completion per prompt, in the given order.

    Raises:
        RuntimeError: the model is not attached, or there is no process group for distributed.
        TypeError: prompts is a single string.
        ValueError: the tokenizer lacks a token; a prompt has no tokens, or leaves fewer than max_new_tokens tokens of
            the model's context; max_new_tokens or batch_size is less than 1; or positions is unknown.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> from bico_ext.models.attach import attach
        >>> from bico_ext.models.special_tokens import added_tokens
        >>> from bico_ext.models.tokenization import train_word_tokenizer
        >>> tokenizer = train_word_tokenizer(["Ada wrote the first program."])
        >>> config = LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        ...                      vocab_size=len(tokenizer))
        >>> model = attach(LlamaForCausalLM(config))
        >>> ids = added_tokens(model, tokenizer, ["mask", "gmask", "sop", "eop"])
        >>> len(generate_blank(model, tokenizer, ["Ada wrote", "Ada"], max_new_tokens=3, progress=False))
        2
    """
    check_request(model, tokenizer, prompts, max_new_tokens, batch_size)
    check_positions(positions)
    check_attached(model)  # a stock model would silently ignore block positions
    special = token_ids(tokenizer, [mask, "sop", "eop"])
    check_ids(model, list(special.values()), "the special tokens")
    ends = [end for end in (special["eop"], tokenizer.eos_token_id) if end is not None]

    def answers(ids: list[list[int]]) -> list[list[int]]:
        prefixes = [[*prompt, special[mask]] for prompt in ids]
        return _answers(model, prefixes, special["sop"], ends, max_new_tokens, positions)

    with evaluation_mode(model), torch.no_grad():
        return in_batches(
            answers,
            model,
            tokenizer,
            prompts,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            progress=progress,
            distributed=distributed,
        )


def _answers(
    model: Any, prefixes: list[list[int]], sop: int, ends: list[int], max_new_tokens: int, positions: Positions
) -> list[list[int]]:
    """Generate the ids that follow each prefix, up to an end token."""
    device = model.device
    width = max(map(len, prefixes))
    padding = torch.tensor([width - len(prefix) for prefix in prefixes], device=device)  # [B], the padding on the left
    rows = [[sop] * (width - len(prefix)) + prefix + [sop] for prefix in prefixes]  # any id can serve as padding
    input_ids = torch.tensor(rows, device=device)  # [B, S]
    index = torch.arange(width + 1, device=device)
    keys = index >= padding[:, None]  # [B, S]
    seen = keys[:, None] & ((index < width) | (index[:, None] == width))  # [B, m, n]: the prefix does not see [sop]
    prefix_index = (index[:width] - padding[:, None]).clamp_min(0)  # [B, S - 1]
    mask_index = prefix_index[:, -1]  # [B]

    def next_position(step: int) -> Tensor:
        first, second = block_position(mask_index, step, positions)
        return torch.stack((first, torch.full_like(first, second)), dim=1)[..., None]  # [B, 2, 1]

    prefix_positions = torch.stack((prefix_index, torch.zeros_like(prefix_index)), dim=1)
    both = torch.cat((prefix_positions, next_position(0)), dim=-1)  # [B, 2, S]
    inputs: dict[str, Any] = {cache_argument(model): DynamicCache(config=model.config.get_text_config())}
    generated: list[Tensor] = []
    ended = torch.zeros_like(padding, dtype=torch.bool)
    for step in range(1, max_new_tokens + 1):
        position_inputs = {"block_positions": both} if positions == "2d" else {"position_ids": both[:, 0]}
        out = model(
            input_ids=input_ids,
            attention_mask=seen[:, None],
            logits_to_keep=1,
            use_cache=True,
            **position_inputs,
            **inputs,
        )
        token = out.logits[:, -1].argmax(-1)
        generated.append(token)
        ended |= torch.isin(token, torch.tensor(ends, device=device))
        if ended.all():
            break
        input_ids, both = token[:, None], next_position(step)
        keys = torch.cat((keys, torch.ones_like(keys[:, :1])), dim=1)
        seen = keys[:, None]  # [B, 1, n]
    answers = torch.stack(generated, dim=1).tolist()
    return [answer[: next((i for i, token in enumerate(answer) if token in ends), None)] for answer in answers]
