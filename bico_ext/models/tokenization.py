"""Token ids of prompts and training texts for any tokenizer, and a word-level tokenizer that needs no download.

The word-level tokenizer keeps a word's leading space in its token and puts a space in front of every text. A word is
therefore the same single token wherever it stands, and decoding only has to join the tokens and drop the first space.
Chinese and Japanese, which are written without spaces, have one token per character; a space next to a character is a
token of its own.
"""

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from bico_ext.cjk import CJK

_SPECIAL_TOKENS = ("<pad>", "<unk>", "<s>", "</s>")  # ids 0 to 3
_CHARACTER_BEFORE = "\u263a"  # that of Code Llama's `encode_infilling`; texts hold it so rarely that no token joins it
# GPT-2's rule, extended by scripts without spaces. A contraction ("that's") becomes the word and an ending that it
# shares with other words. In order: an English ending, a character of a script without spaces, a word, a punctuation
# mark, or one white-space character.
_WORD = rf"['\u2019](?:[sdmt]|ll|ve|re)\b|[{CJK}]| ?(?:(?![{CJK}])\w)+| ?(?![{CJK}])[^\w\s]|\s"


def train_word_tokenizer(texts: Iterable[str], *, model_max_length: int = 512) -> PreTrainedTokenizerFast:
    """Make a tokenizer with one token per word, punctuation mark and Chinese or Japanese character of the texts.

    It is lossless on these texts: `decode(ids, skip_special_tokens=True)` returns the text. Decoding drops the space in
    front of any text, so an answer that is decoded alone loses its leading space. Words that occur in none of the texts
    become `<unk>`. `AutoTokenizer` can reload offline what `save_pretrained` writes.

    Args:
        texts: the texts from which the words are taken; their order does not matter.
        model_max_length: the number of tokens above which transformers warns, or truncates if asked to. The default,
            512, is far above the length of this package's fact sentences (up to about 60 tokens).

    Returns:
        A tokenizer with `<pad>` 0, `<unk>` 1, `<s>` 2 (BOS, which the tokenizer adds in front) and `</s>` 3 (EOS, which
        the tokenizer does not add, see `encode_text`), followed by the words in code-point order. The characters "<s>"
        in a text are not read as BOS.

    Raises:
        TypeError: texts is a single string.
        ValueError: the texts contain no word.

    Example:
        >>> tokenizer = train_word_tokenizer(["Ada wrote it."])
        >>> tokenizer.tokenize("Ada wrote it.")
        [' Ada', ' wrote', ' it', '.']
        >>> tokenizer.decode(tokenizer("Ada wrote.")["input_ids"], skip_special_tokens=True)
        'Ada wrote.'
    """
    if isinstance(texts, str):
        raise TypeError(f"texts must be an iterable of texts, got the string {texts!r:.60}; use [text]")
    normalizer = normalizers.Prepend(" ")
    splitter = pre_tokenizers.Split(Regex(_WORD), behavior="isolated")
    words = {word for text in texts for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))}
    if not words:
        raise ValueError("texts must contain at least one word, got none; are the training texts empty?")
    vocabulary = {token: index for index, token in enumerate((*_SPECIAL_TOKENS, *sorted(words)))}
    pad, unk, bos, eos = _SPECIAL_TOKENS

    backend = Tokenizer(WordLevel(vocabulary, unk_token=unk))
    backend.normalizer = normalizer
    backend.pre_tokenizer = splitter
    backend.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, vocabulary[bos])]
    )
    backend.decoder = decoders.Sequence([decoders.Fuse(), decoders.Strip(" ", left=1, right=0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=pad,
        unk_token=unk,
        bos_token=bos,
        eos_token=eos,
        model_max_length=model_max_length,
        clean_up_tokenization_spaces=False,
        split_special_tokens=True,  # the characters "<s>" in a text must not become BOS
    )


def sliding_window(config: Any, layer: Any = None) -> int | None:
    """Return the sliding window that a configuration names, in tokens; None if it names none.

    Args:
        config: the configuration of the decoder.
        layer: the attention module whose window is asked for; default None, which asks for that of any layer.
    """
    kinds = getattr(config, "layer_types", None)
    if kinds and layer is not None:
        kinds = [kinds[layer.layer_idx]]
    has_window = not kinds or any("sliding" in kind for kind in kinds)
    return getattr(config, "sliding_window", None) if has_window else None


def context_length(model: Any) -> float:
    """Return the largest number of tokens that a model reads; infinity if its configuration names none (Bloom, Mamba).

    Example:
        >>> from transformers import BloomConfig, BloomForCausalLM
        >>> context_length(BloomForCausalLM(BloomConfig(hidden_size=8, n_layer=1, n_head=1, vocab_size=9)))
        inf
    """
    return getattr(model.config.get_text_config(), "max_position_embeddings", math.inf)


def check_context(model: Any, tokens: int, what: str, remedy: str, *, within_window: bool = False) -> None:
    """Raise an error if a number of tokens exceeds the model's context.

    Args:
        model: a transformers causal LM, or a PEFT model around one.
        tokens: the number of tokens that are needed.
        what: what needs them, for the error message.
        remedy: what the user can do about it, for the error message; "{context}" in it becomes the limit.
        within_window: the sliding window of the model's layers is a limit, too; default False.

    Raises:
        ValueError: `tokens` exceeds the model's `max_position_embeddings`, or the sliding window of its layers.

    Example:
        >>> from types import SimpleNamespace
        >>> config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(max_position_embeddings=8))
        >>> check_context(SimpleNamespace(config=config), 9, "text 'Ada'", "shorten it")
        Traceback (most recent call last):
        ValueError: text 'Ada' needs 9 tokens, but the model's context is 8 (max_position_embeddings); shorten it
    """
    config = model.config.get_text_config()
    limits = {"context is {} (max_position_embeddings)": context_length(model)}
    if within_window and (window := sliding_window(config)) is not None:
        limits["layers have a sliding window of {}, in which the text must lie"] = window
    for limit, context in limits.items():
        if tokens > context:
            raise ValueError(
                f"{what} needs {tokens} tokens, but the model's {limit.format(context)}; "
                + remedy.format(context=context)
            )


def check_completion(prompt: Any, completion: Any, where: str) -> None:
    """Raise an error unless a prompt and its completion make one text whose first tokens are the prompt's.

    Args:
        prompt: the start of a text.
        completion: the rest of it, with the space in front of it if there is one. It may be empty.
        where: where they stand, for the error message.

    Raises:
        ValueError: one of them is no text, the prompt is blank or ends with a space, or the two run together.

    Example:
        >>> check_completion("Ada wrote", " it.", "row 1")
        >>> check_completion("Ada wrote", "it.", "row 1")
        Traceback (most recent call last):
        ValueError: row 1: prompt and completion run together as 'Ada wroteit.'; start the completion with a space
    """
    check_text(completion, "completion", where, blank=True)
    check_text(prompt, "prompt", where)
    # The tokenizer would split such a prompt differently in a question than in the training text.
    if completion and prompt.endswith(" "):
        raise ValueError(
            f"{where}: prompt must not end with a space, got {prompt[-20:]!r}; start the completion with it instead"
        )
    if re.search(r"[A-Za-z0-9]\Z", prompt) and re.match(r"[A-Za-z0-9]", completion):
        raise ValueError(
            f"{where}: prompt and completion run together as {(prompt[-20:] + completion[:20])!r}; "
            "start the completion with a space"
        )


def check_text(text: Any, key: str, where: str, *, blank: bool = False) -> None:
    """Raise a ValueError, which begins with `where` and `key`, unless a value is a text; a blank one only if `blank`.

    Example:
        >>> check_text(" ", "text", "row 1", blank=True)
    """
    if not isinstance(text, str):
        raise ValueError(f"{where}: {key} must be a string, got {type(text).__name__} {text!r:.60}")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError(f"{where}: {key} holds half of a surrogate pair, which is no text: {text!r:.60}")
    if not blank and not text.strip():
        raise ValueError(f"{where}: {key} must not be empty, got {text!r:.60}")


def check_ids(model: Any, ids: Sequence[int], what: str) -> None:
    """Raise an error for a token id that is not below the model's `vocab_size`; it would end in an IndexError.

    Args:
        model: a transformers causal LM, or a PEFT model around one.
        ids: the token ids.
        what: what has them, for the error message.

    Raises:
        ValueError: an id is negative, or not below the model's `vocab_size`.

    Example:
        >>> from types import SimpleNamespace
        >>> config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(vocab_size=8))
        >>> check_ids(SimpleNamespace(config=config), [2, 7], "text 'Ada'")
    """
    size = model.config.get_text_config().vocab_size
    if ids and not 0 <= min(ids) <= max(ids) < size:
        raise ValueError(
            f"{what}: ids must be in [0, {size}), the ids of the model, got {min(ids)} to {max(ids)}; use the "
            "tokenizer that was saved with the model, or give the model rows for the tokenizer's new tokens: "
            "model.resize_token_embeddings(len(tokenizer))"
        )


def padding_id(model: Any, tokenizer: PreTrainedTokenizerBase | None) -> int:
    """Return an id to fill places that nothing attends to: the tokenizer's padding, or 0 if the model has no such id.

    Example:
        >>> from types import SimpleNamespace
        >>> config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(vocab_size=8))
        >>> padding_id(SimpleNamespace(config=config), None)
        0
    """
    index: Any = getattr(tokenizer, "pad_token_id", None)
    return index if index is not None and index < model.config.get_text_config().vocab_size else 0


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """Return the token ids of a prompt: BOS, if the tokenizer puts it in front of a text, and the prompt, without EOS.

    They are the first ids that `encode_text` returns for a text that starts with the prompt, provided that the
    tokenizer keeps a word's leading space with the word. What the tokenizer puts in front is what the model has met in
    pre-training. It is left out where the prompt begins with it, as text of a chat template does, and never added to
    it: a model that has met no BOS there predicts worse behind one.

    Args:
        tokenizer: any transformers tokenizer.
        prompt: the text to be continued. An EOS in it stays.

    Returns:
        What the tokenizer puts in front, usually BOS or nothing, and the prompt's ids.

    Example:
        >>> tokenizer = train_word_tokenizer(["Ada wrote it."])
        >>> encode_prompt(tokenizer, "Ada wrote")
        [2, 4, 6]
    """
    front, ids = _encode(tokenizer, prompt)
    return front + ids


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the token ids of a training text: the ids of `encode_prompt`, and EOS. Nothing is cut off.

    Args:
        tokenizer: any transformers tokenizer. EOS is added if it has one and the text does not end with it. White space
            may follow that EOS, as in many chat templates.
        text: the whole text, that is prompt and completion together.

    Returns:
        The ids.

    Example:
        >>> tokenizer = train_word_tokenizer(["Ada wrote it."])
        >>> encode_text(tokenizer, "Ada wrote it.")
        [2, 4, 6, 5, 7, 3]
    """
    front, ids = _encode(tokenizer, text)
    return front + _ended(tokenizer, ids)


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[list[int], list[int]]:
    """Return the ids that the tokenizer puts in front of a text, unless the text begins with them, and the text's."""
    ids: list[int] = list(tokenizer(text)["input_ids"])
    own: list[int] = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    if own:
        front = ids[: next((first for first in range(len(ids)) if ids[first : first + len(own)] == own), 0)]
    else:  # nothing separates BOS from an EOS that the tokenizer adds
        front = ids[:-1] if ids[-1:] == [tokenizer.eos_token_id] != [tokenizer.bos_token_id] else ids
    return ([] if own[: len(front)] == front else front), own


def _ended(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[int]:
    """Return the ids of the end of a text, with EOS if the tokenizer has one and they do not end with it."""
    eos: Any = tokenizer.eos_token_id
    if eos is None or (eos in ids and not str(tokenizer.decode(ids[len(ids) - ids[::-1].index(eos) :])).strip()):
        return ids
    return [*ids, eos]


def encode_suffix(tokenizer: PreTrainedTokenizerBase, suffix: str) -> list[int]:
    """Return the token ids of the end of a training text: the suffix, without BOS, and EOS as in `encode_text`.

    They are the last ids that `encode_text` returns for a text that ends with the suffix, provided that the tokenizer
    starts a new token there. Tokenizers that put a space in front of every text put none in front of the suffix: it is
    encoded after another character, whose tokens are dropped, as in Code Llama's infilling.

    Args:
        tokenizer: a fast transformers tokenizer; a slow one does not say which character a token comes from.
        suffix: the end of a text, with the space in front of it if there is one. It may be empty.

    Returns:
        The suffix's ids, and EOS, if the tokenizer has one.

    Raises:
        ValueError: the tokenizer is a slow one.

    Example:
        >>> tokenizer = train_word_tokenizer(["Ada wrote it."])
        >>> encode_suffix(tokenizer, " it.")
        [5, 7, 3]
    """
    if not tokenizer.is_fast:
        raise ValueError(f"tokenizer must be a fast one, got {type(tokenizer).__name__}; load it with AutoTokenizer")
    encoding = tokenizer(_CHARACTER_BEFORE + suffix, add_special_tokens=False, return_offsets_mapping=True)
    offsets: list[tuple[int, int]] = encoding["offset_mapping"]
    ids: list[int] = [token for token, (start, _) in zip(encoding["input_ids"], offsets, strict=True) if start > 0]
    if any(start == 0 and end > 1 for start, end in offsets):  # the suffix's first token swallowed the character
        ids = list(tokenizer(suffix, add_special_tokens=False)["input_ids"])
    return _ended(tokenizer, ids)
