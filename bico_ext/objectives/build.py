"""An objective's options for one model and tokenizer: which ids are special, which one stands for hidden tokens."""

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from bico_ext.cjk import CJK
from bico_ext.models.special_tokens import added_tokens
from bico_ext.objectives import registry
from bico_ext.objectives.registry import Objective

_WORD_START = ("Ġ", "▁", " ")  # byte-level BPE, SentencePiece, the word tokenizer of this package


def build_objective(name: str, settings: Any, model: Any, tokenizer: PreTrainedTokenizerBase | None) -> Objective:
    """The objective `name`, ready for token sequences.

    Args:
        name: a key of `registry.OBJECTIVES`.
        settings: a `BicoConfig`: `mask_rate`, `placeholder_id`, `infill_spans`, `permute_segments`, `abi_positions`,
            `entities_file`.
        model: a causal LM of transformers. An objective with tokens of its own adds those that it lacks, in place.
        tokenizer: its tokenizer, if there is one; grows with the model.

    Raises:
        ValueError: an option that this objective needs cannot be had from them; the message says which and the remedy.
    """

    def tokens(kind: str) -> int:
        return added_tokens(model, tokenizer, [kind])[kind]

    @cache
    def word_tables() -> tuple[Tensor, Tensor]:
        return _word_tables(name, model, tokenizer)

    sources: dict[str, Callable[[], Any]] = {
        "special_ids": lambda: special_ids(model, tokenizer),
        "mask_rate": lambda: settings.mask_rate,
        "placeholder_id": lambda: _placeholder_id(settings.placeholder_id, name, model, tokenizer),
        "mask_id": lambda: tokens("mask"),
        "sop_id": lambda: tokens("sop"),
        "eop_id": lambda: tokens("eop"),
        "positions": lambda: settings.abi_positions,
        "spans": lambda: settings.infill_spans,
        "segments": lambda: settings.permute_segments,
        "word_starts": lambda: word_tables()[0],
        "word_parts": lambda: word_tables()[1],
        "entities": lambda: _entities(settings.entities_file, tokenizer),
    }
    return registry.bind(name, **{option: sources[option]() for option in registry.option_names(name)})


def special_ids(model: Any, tokenizer: PreTrainedTokenizerBase | None) -> frozenset[int]:
    """The tokenizer's special ids; without a tokenizer those that the model's configuration names."""
    if tokenizer is not None:
        return frozenset(tokenizer.all_special_ids)
    config = model.config.get_text_config()
    named = (config.bos_token_id, config.eos_token_id, config.pad_token_id)
    return frozenset(token for ids in named for token in (ids if isinstance(ids, list) else [ids]) if token is not None)


def _placeholder_id(given: int | None, objective: str, model: Any, tokenizer: PreTrainedTokenizerBase | None) -> int:
    placeholder_id, vocabulary = given, model.get_input_embeddings().weight.shape[0]
    if placeholder_id is None:
        placeholder_id = getattr(tokenizer, "pad_token_id", None)
    if placeholder_id is None:
        raise ValueError(
            f"placeholder_id is needed for objective={objective!r}, as there is no tokenizer with a padding token to "
            "take it from; set placeholder_id=0 as the official code does (any existing id will do: nothing attends to "
            "it but with 'attended-pad')"
        )
    if not 0 <= placeholder_id < vocabulary:
        raise ValueError(f"placeholder_id must be in [0, {vocabulary}), the model's ids, got {placeholder_id}")
    return placeholder_id


def _word_tables(objective: str, model: Any, tokenizer: PreTrainedTokenizerBase | None) -> tuple[Tensor, Tensor]:
    """Two bool [V]: whether a token begins a word, as each Chinese or Japanese character does; or continues one.

    In a vocabulary that marks no word starts every token is a word.
    """
    if tokenizer is None:
        raise ValueError(
            f"objective={objective!r} needs a tokenizer, which knows where words begin; pass processing_class"
        )
    starts = torch.ones(model.get_input_embeddings().weight.shape[0], dtype=torch.bool)
    parts = torch.zeros_like(starts)
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    marked = [token.startswith(_WORD_START) or re.match(f"[{CJK}]", token) is not None for token in tokens]
    if any(marked):
        starts[: len(marked)] = torch.tensor(marked)
        parts[: len(marked)] = torch.tensor([token[:1].isalnum() for token in tokens]) & ~starts[: len(marked)]
    return starts, parts


def _entities(file: str | None, tokenizer: PreTrainedTokenizerBase | None) -> list[list[int]]:
    """The token sequences of the entities in a text file, one a line, as they stand at a text's start and within it."""
    if file is None or tokenizer is None:
        return []
    names = [name.strip() for name in Path(file).read_text(encoding="utf-8").splitlines() if name.strip()]
    if not names:
        raise ValueError(f"entities_file {file} holds no entity; expected one a line")
    spellings = [spelling for name in names for spelling in (name, f" {name}")]
    return [tokenizer(spelling, add_special_tokens=False)["input_ids"] for spelling in spellings]
