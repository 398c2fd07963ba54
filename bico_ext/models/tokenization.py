"""Token ids of examples, for any tokenizer, and a word-level tokenizer that needs no download.

The word-level tokenizer keeps a word's leading space in its token and puts a space in front of every text, so that a
word is one token wherever it stands and decoding only has to join the tokens and drop the first space. Scripts without
spaces, Chinese and Japanese, have one token a character, and a space beside it is a token of its own.
"""

from collections.abc import Iterable
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from bico_ext.cjk import CJK

_SPECIAL_TOKENS = ("<pad>", "<unk>", "<s>", "</s>")  # ids 0 to 3
# GPT-2's rule, so that a contraction ("that's") is its word and an ending that other words have too: an English
# ending, a character of a script without spaces, a word, a punctuation mark, or one white-space character.
_WORD = rf"['\u2019](?:[sdmt]|ll|ve|re)\b|[{CJK}]| ?(?:(?![{CJK}])\w)+| ?(?![{CJK}])[^\w\s]|\s"


def train_word_tokenizer(texts: Iterable[str], *, model_max_length: int = 512) -> PreTrainedTokenizerFast:
    """Makes a tokenizer with one token for each word, punctuation mark and Chinese or Japanese character of the texts.

    It is lossless on these texts: `decode(ids, skip_special_tokens=True)` gives the text back. Decoding an answer
    alone drops its leading space, as decoding drops the one in front of any text. Words that no text has become
    `<unk>`. `save_pretrained` writes what `AutoTokenizer` reloads offline.

    Args:
        texts: what to take the words from; the order does not matter.
        model_max_length: tokens above which transformers warns, or truncates where that is asked for. The default,
            512, is far above the fact sentences of this package (up to about 60).

    Returns:
        A tokenizer with `<pad>` 0, `<unk>` 1, `<s>` 2 (BOS, put in front by the tokenizer) and `</s>` 3 (EOS, not
        put at the end: see `encode_text`), then the words in code-point order. The text "<s>" is not read as BOS.

    Raises:
        TypeError: texts is a single string.
        ValueError: the texts hold no word.

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
        raise ValueError("texts must hold at least one word, got none; are the training texts empty?")
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
        split_special_tokens=True,  # a text that spells "<s>" must not become BOS
    )


def check_context(model: Any, tokens: int, what: str, remedy: str) -> None:
    """Refuse more tokens than the model's positions reach.

    Args:
        model: a causal LM of transformers, or a PEFT model around one.
        tokens: how many are needed.
        what: what needs them, for the message.
        remedy: what to do about it, for the message.

    Raises:
        ValueError: `tokens` exceeds the model's `max_position_embeddings`.

    Example:
        >>> from types import SimpleNamespace
        >>> config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(max_position_embeddings=8))
        >>> check_context(SimpleNamespace(config=config), 9, "text 'Ada wrote it.'", "shorten it")
        Traceback (most recent call last):
        ValueError: text 'Ada wrote it.' needs 9 tokens, but the model's context is 8 (max_position_embeddings); shorten it
    """
    context = model.config.get_text_config().max_position_embeddings
    if tokens > context:
        raise ValueError(
            f"{what} needs {tokens} tokens, but the model's context is {context} (max_position_embeddings); {remedy}"
        )


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """Token ids of a prompt to be continued: BOS and the prompt, no EOS.

    These are the first ids of `encode_text` for that prompt, as long as the tokenizer keeps a word's leading space
    with the word. Tokenizers differ in what they add by themselves; a model trained with a BOS is to be asked with it.

    Args:
        tokenizer: any tokenizer of transformers.
        prompt: the text to be continued.

    Returns:
        BOS, if the tokenizer has one, and the prompt's ids.

    Example:
        >>> tokenizer = train_word_tokenizer(["Ada wrote it."])
        >>> encode_prompt(tokenizer, "Ada wrote")
        [2, 4, 6]
    """
    ids: list[int] = list(tokenizer(prompt)["input_ids"])
    if tokenizer.eos_token_id is not None and ids[-1:] == [tokenizer.eos_token_id]:
        ids.pop()
    if tokenizer.bos_token_id is not None and ids[:1] != [tokenizer.bos_token_id]:
        ids.insert(0, tokenizer.bos_token_id)
    return ids


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a training text: BOS, the text, EOS. Nothing is cut off.

    Args:
        tokenizer: any tokenizer of transformers. BOS and EOS are added if it has them and has not added them itself.
        text: the text, prompt and completion in one piece.

    Returns:
        The ids.

    Example:
        >>> tokenizer = train_word_tokenizer(["Ada wrote it."])
        >>> encode_text(tokenizer, "Ada wrote it.")
        [2, 4, 6, 5, 7, 3]
    """
    ids = encode_prompt(tokenizer, text)
    if tokenizer.eos_token_id is not None:
        ids.append(tokenizer.eos_token_id)
    return ids
