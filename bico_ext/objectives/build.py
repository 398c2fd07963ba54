"""Builds an objective for one model and tokenizer: finds the special ids, the placeholder and its other options."""

import re
from collections.abc import Callable
from functools import cache
from numbers import Integral
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from bico_ext.cjk import CJK
from bico_ext.files import read_lines
from bico_ext.models.special_tokens import added_tokens
from bico_ext.objectives import registry
from bico_ext.objectives.registry import Objective

_WORD_START = ("Ġ", "▁", " ")  # byte-level BPE, SentencePiece, this package's word-level tokenizer


def build_objective(name: str, settings: Any, model: Any, tokenizer: PreTrainedTokenizerBase | None) -> Objective:
    """Build an objective whose options come from the settings, the model and the tokenizer.

    Args:
        name: a key of `registry.OBJECTIVES`.
        settings: a `BicoConfig`, of which `mask_rate`, `placeholder_id`, `infill_spans`, `permute_segments`,
            `reverse_segment_length`, `abi_positions` and `entities_file` are used.
        model: a transformers causal LM. If the objective needs special tokens that are missing, they are added in
            place.
        tokenizer: the model's tokenizer, if there is one; the special tokens are added to it, too.

    Returns:
        A function that turns input ids and a generator into a `TrainingSequence`.

    Raises:
        ValueError: an option that the objective needs cannot be determined. The message names the option and the
            remedy.
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
        "separator_id": lambda: tokens("rev"),
        "segment_length": lambda: settings.reverse_segment_length,
        "word_starts": lambda: word_tables()[0],
        "word_parts": lambda: word_tables()[1],
        "entities": lambda: _entities(settings.entities_file, tokenizer),
    }
    return registry.bind(name, **{option: sources[option]() for option in registry.option_names(name)})


def special_ids(model: Any, tokenizer: PreTrainedTokenizerBase | None) -> frozenset[int]:
    """Return the tokenizer's special ids, or, without a tokenizer, those of the model's configuration."""
    if tokenizer is not None:
        return frozenset(tokenizer.all_special_ids)
    config = model.config.get_text_config()
    named = (config.bos_token_id, config.eos_token_id, config.pad_token_id)
    return frozenset(token for ids in named for token in (ids if isinstance(ids, list) else [ids]) if token is not None)


def _placeholder_id(given: int | None, objective: str, model: Any, tokenizer: PreTrainedTokenizerBase | None) -> int:
    """Return the given placeholder, or the tokenizer's padding id, after a check that the model has it."""
    placeholder_id, vocabulary = given, model.get_input_embeddings().weight.shape[0]
    if placeholder_id is None:
        placeholder_id = getattr(tokenizer, "pad_token_id", None)
    if placeholder_id is None:
        raise ValueError(
            f"placeholder_id is needed for objective={objective!r}, because there is no tokenizer with a padding token "
            "to take it from; set placeholder_id=0 as the official code does (any existing id will do, because nothing "
            "attends to it, except with 'attended-pad')"
        )
    if not (isinstance(placeholder_id, Integral) and 0 <= placeholder_id < vocabulary):
        raise ValueError(
            f"placeholder_id must be in [0, {vocabulary}), the ids of the model, got {placeholder_id!r}"
            + ("" if given is not None else ", the tokenizer's padding id; set placeholder_id=0")
        )
    return placeholder_id


def _word_tables(objective: str, model: Any, tokenizer: PreTrainedTokenizerBase | None) -> tuple[Tensor, Tensor]:
    """Return which tokens begin a word and which continue one, both bool [V].

    Every Chinese or Japanese character begins a word. If a vocabulary marks no word starts, every token is a word.
    """
    if tokenizer is None:
        raise ValueError(f"objective={objective!r} needs a tokenizer to find where words begin; pass processing_class")
    starts = torch.ones(model.get_input_embeddings().weight.shape[0], dtype=torch.bool)
    parts = torch.zeros_like(starts)
    tokens = tokenizer.convert_ids_to_tokens(list(range(min(len(tokenizer), len(starts)))))
    marked = [token.startswith(_WORD_START) or re.match(f"[{CJK}]", token) is not None for token in tokens]
    if any(marked):
        starts[: len(marked)] = torch.tensor(marked)
        parts[: len(marked)] = torch.tensor([token[:1].isalnum() for token in tokens]) & ~starts[: len(marked)]
    return starts, parts


def _entities(file: str | None, tokenizer: PreTrainedTokenizerBase | None) -> list[list[int]]:
    """Read entities from a text file, one per line, and return their token ids.

    Each entity is encoded twice: as at the start of a text, and as inside a text (after a space).
    """
    if file is None or tokenizer is None:
        return []
    names = [name.strip() for name in read_lines(file) if name.strip()]
    if not names:
        raise ValueError(f"entities_file {file} contains no entity; expected one per line")
    spellings = [spelling for name in names for spelling in (name, f" {name}")]
    return [tokenizer(spelling, add_special_tokens=False)["input_ids"] for spelling in spellings]
