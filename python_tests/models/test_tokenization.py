# ruff: noqa: RUF001 (Chinese is written with full-width punctuation)
"""The word-level tokenizer is lossless and prompts are prefixes; `encode_text` with tokenizers that add BOS or EOS."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from bico_ext.facts.loader import load_facts
from bico_ext.facts.types import Example, FactData
from bico_ext.models.tokenization import encode_prompt, encode_suffix, encode_text, train_word_tokenizer

BERGLUND = Path(
    os.environ.get("BICO_BERGLUND_DIR")
    or Path(__file__).parents[3] / "shared/data/reverse_experiments/june_version_7921032488"
)
PAD, UNK, BOS, EOS = range(4)


@pytest.fixture(scope="module", params=["synthetic", "berglund"])
def facts(request) -> FactData:
    if request.param == "synthetic":
        return load_facts("synthetic")
    if not BERGLUND.is_dir():
        pytest.skip(f"Berglund et al.'s data is not in {BERGLUND}; set BICO_BERGLUND_DIR to test with it")
    return load_facts(BERGLUND)


@pytest.fixture(scope="module")
def examples(facts) -> list[Example]:
    return [*facts.train, *(example for task in facts.tasks.values() for example in task.examples)]


@pytest.fixture(scope="module")
def tokenizer(examples) -> PreTrainedTokenizerFast:
    return train_word_tokenizer(example.text for example in examples)


def test_words_are_tokens_with_their_space():
    text = "Daphne's \"Time.\", they're: 3 words\u2019s"
    tokens = train_word_tokenizer([text]).tokenize(text)
    assert tokens == [" Daphne", "'s", ' "', "Time", ".", '"', ",", " they", "'re", ":", " 3", " words", "\u2019s"]


def test_a_word_keeps_its_space_after_white_space():
    text = "a  b\n c\nb"
    assert train_word_tokenizer([text]).tokenize(text) == [" a", " ", " b", "\n", " c", "\n", "b"]


def test_scripts_without_spaces_have_one_token_per_character():
    text = "床前明月光，疑是 Ada 地上霜 の IT街々"
    tokens = train_word_tokenizer([text]).tokenize(text)
    assert tokens == [" ", *"床前明月光，疑是", " Ada", " ", *"地上霜", " ", "の", " IT", "街", "々"]


def test_a_character_is_the_same_token_wherever_it_stands():
    tokenizer = train_word_tokenizer(["月光下，月"])
    assert set(tokenizer.get_vocab()) == {"<pad>", "<unk>", "<s>", "</s>", " ", *"月光下，"}


def test_chinese_answers_follow_their_prompt():
    tokenizer = train_word_tokenizer(["“月光”的下一句是：疑是霜。"])
    example = Example("“月光”的下一句是：", "疑是霜。")
    ids = encode_text(tokenizer, example.text)
    start = encode_prompt(tokenizer, example.prompt)
    assert ids[: len(start)] == start
    assert tokenizer.decode(ids, skip_special_tokens=True) == example.text
    assert tokenizer.decode(ids[len(start) :], skip_special_tokens=True) == example.completion


def test_other_scripts_are_split_as_without_the_rule_for_characters():
    texts = [example.text for example in load_facts("synthetic").train[::40]]
    texts += ["Zoë's naïve “e\u0301” — 3.14, привет мир! שלום עולם \u00a0 a_b's rock'n'roll 한국어 말 👩\u200d🚀"]
    # GPT-2's rule for words, without the rule for characters
    rule = Regex(r"['\u2019](?:[sdmt]|ll|ve|re)\b| ?\w+| ?[^\w\s]|\s")
    before = pre_tokenizers.Split(rule, behavior="isolated")
    tokenizer = train_word_tokenizer(texts)
    for text in texts:
        assert tokenizer.tokenize(text) == [word for word, _ in before.pre_tokenize_str(f" {text}")]


def test_first_word_is_the_same_token_as_later():
    tokenizer = train_word_tokenizer(["who was Ada"])
    assert tokenizer("Ada was")["input_ids"][1:] == tokenizer("was Ada")["input_ids"][:0:-1]


def test_special_ids():
    tokenizer = train_word_tokenizer(["b a"])
    assert tokenizer.get_vocab() == {"<pad>": 0, "<unk>": 1, "<s>": 2, "</s>": 3, " a": 4, " b": 5}
    ids = (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert ids == (PAD, UNK, BOS, EOS)
    assert tokenizer("a c b")["input_ids"] == [BOS, 4, UNK, 5]


def test_vocabulary_does_not_depend_on_the_order_of_texts():
    texts = ["one two", "three, two", "four"]
    assert train_word_tokenizer(texts).get_vocab() == train_word_tokenizer(iter(texts[::-1])).get_vocab()


def test_whole_set_is_lossless(tokenizer, examples):
    texts = [example.text for example in examples]
    ids = tokenizer(texts)["input_ids"]
    assert not any(UNK in row for row in ids)
    assert tokenizer.batch_decode(ids, skip_special_tokens=True) == texts


def test_prompt_tokens_start_the_tokens_of_the_text(tokenizer, examples):
    prompts = tokenizer([example.prompt for example in examples])["input_ids"]
    texts = tokenizer([example.text for example in examples])["input_ids"]
    for prompt, text in zip(prompts, texts, strict=True):
        assert text[: len(prompt)] == prompt


def test_answers_decode_from_the_ids_after_the_prompt(tokenizer, examples):
    for example in examples[::50]:
        start = len(encode_prompt(tokenizer, example.prompt))
        answer = encode_text(tokenizer, example.text)[start:]
        assert answer[-1] == EOS
        assert tokenizer.decode(answer, skip_special_tokens=True) == example.completion.removeprefix(" ")


@pytest.mark.parametrize(
    "text",
    [
        "",
        " leading",
        "   three  and   two ",
        "tabs\tand\n\nnewlines \n mixed\r\n",
        "trailing  ",
        "Zoë naïve 日本語 🎻👩‍🚀 e\u0301 \u00a0 \u2028",
        " 床前 明月光，\u3000疑是地上霜。 かな ＡＢ１ 𠮷 x床x",
        "rock'n'roll 'quoted' it's' ''",
        'a_b-c/d 3.14 50% "x".".',
        "<s> </s><pad> <unk>",
    ],
    ids=repr,
)
def test_hostile_text_is_lossless(text):
    tokenizer = train_word_tokenizer([text, "word"])
    ids = tokenizer(text)["input_ids"]
    assert UNK not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_text_cannot_spell_special_tokens():
    tokenizer = train_word_tokenizer(["it ends </s> here <s>"])
    ids = tokenizer("it ends </s> here <s>")["input_ids"]
    assert BOS not in ids[1:]
    assert EOS not in ids


def test_decoding_with_special_tokens_and_padding():
    tokenizer = train_word_tokenizer(["Ada wrote it.", "it"])
    tokenizer.padding_side = "left"
    batch = tokenizer(["Ada wrote it.", "it"], padding=True)
    assert batch["input_ids"][1] == [PAD, PAD, PAD, BOS, tokenizer.convert_tokens_to_ids(" it")]
    assert batch["attention_mask"][1] == [0, 0, 0, 1, 1]
    assert tokenizer.batch_decode(batch["input_ids"], skip_special_tokens=True) == ["Ada wrote it.", "it"]
    assert tokenizer.decode(batch["input_ids"][0]) == "<s> Ada wrote it."


def test_reloads_offline(tokenizer, examples, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    tokenizer.save_pretrained(tmp_path)
    reloaded = AutoTokenizer.from_pretrained(tmp_path)
    assert reloaded.model_max_length == 512
    assert reloaded.get_vocab() == tokenizer.get_vocab()
    texts = [example.text for example in examples[::100]] + ["never seen </s> words"]
    for text in texts:
        ids = reloaded(text)["input_ids"]
        assert ids == tokenizer(text)["input_ids"]
        assert reloaded.decode(ids, skip_special_tokens=True) == tokenizer.decode(ids, skip_special_tokens=True)
    example = examples[0]
    assert encode_text(reloaded, example.text) == encode_text(tokenizer, example.text)


def test_refuses_no_words_and_single_strings():
    with pytest.raises(ValueError, match="at least one word"):
        train_word_tokenizer([])
    with pytest.raises(TypeError, match="use \\[text\\]"):
        train_word_tokenizer("Ada wrote it.")


def plain_tokenizer(template: str | None, **special: str) -> PreTrainedTokenizerFast:
    """Make a tokenizer of the words a=0, b=1, [B]=2, [E]=3 that adds the special tokens of the template."""
    backend = Tokenizer(models.WordLevel({"a": 0, "b": 1, "[B]": 2, "[E]": 3}, unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    if template:
        backend.post_processor = processors.TemplateProcessing(single=template, special_tokens=[("[B]", 2), ("[E]", 3)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


CASES = {
    "adds-neither": (plain_tokenizer(None, bos_token="[B]", eos_token="[E]"), [0], [0, 1, 3]),
    "adds-bos": (plain_tokenizer("[B] $A", bos_token="[B]", eos_token="[E]"), [2, 0], [2, 0, 1, 3]),
    "adds-both": (plain_tokenizer("[B] $A [E]", bos_token="[B]", eos_token="[E]"), [2, 0], [2, 0, 1, 3]),
    "has-neither": (plain_tokenizer(None), [0], [0, 1]),
    "has-no-bos": (plain_tokenizer(None, eos_token="[E]"), [0], [0, 1, 3]),
    "has-no-bos-adds-eos": (plain_tokenizer("$A [E]", eos_token="[E]"), [0], [0, 1, 3]),
    "has-no-eos": (plain_tokenizer("[B] $A", bos_token="[B]"), [2, 0], [2, 0, 1]),
    "one-token-for-both": (plain_tokenizer("[E] $A", bos_token="[E]", eos_token="[E]"), [3, 0], [3, 0, 1, 3]),
    "adds-neither-of-one-token": (plain_tokenizer(None, bos_token="[E]", eos_token="[E]"), [0], [0, 1, 3]),
}


@pytest.mark.parametrize(("tokenizer", "prompt", "text"), CASES.values(), ids=CASES.keys())
def test_the_tokenizer_decides_about_bos_and_a_text_ends_in_one_eos(tokenizer, prompt, text):
    """BOS was forced in front where the tokenizer adds none; SmolLM2 then found 5 of 6 plain sentences less likely."""
    assert encode_prompt(tokenizer, "a") == prompt
    assert encode_text(tokenizer, "a b") == text
    assert encode_prompt(tokenizer, "") == prompt[:-1]


@pytest.mark.parametrize(("tokenizer", "prompt", "text"), CASES.values(), ids=CASES.keys())
def test_a_text_that_has_bos_and_eos_gets_no_second_one(tokenizer, prompt, text):
    """The text of a chat template has BOS and EOS in it, and got both once more."""
    bos = tokenizer.bos_token if len(prompt) > 1 else ""
    written = f"{bos or ''} a b {tokenizer.eos_token or ''}"
    assert encode_text(tokenizer, written) == text
    assert encode_text(tokenizer, f"{written}\n") == text, "white space follows EOS in many templates"
    assert encode_prompt(tokenizer, f"{bos or ''} a") == prompt
    assert encode_prompt(tokenizer, written) == text, "an EOS of the prompt's own is the end of an earlier message"
    assert encode_suffix(tokenizer, f" b {tokenizer.eos_token or ''}") == text[len(prompt) :]


@pytest.mark.parametrize(("tokenizer", "prompt", "text"), CASES.values(), ids=CASES.keys())
def test_a_suffix_has_eos_and_no_bos_whatever_the_tokenizer_adds(tokenizer, prompt, text):
    assert prompt + encode_suffix(tokenizer, " b") == text
    assert encode_suffix(tokenizer, "") == text[len(prompt) + 1 :]


def word_pieces() -> PreTrainedTokenizerFast:
    """Make a tokenizer that puts a space in front of every text, as SentencePiece does, and cuts words into letters."""
    letters = {token: index for index, token in enumerate(["<unk>", "\u2581", *"abc.\n", "</s>"])}
    backend = Tokenizer(models.BPE(letters, [], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")


@pytest.mark.parametrize("tokenizer", [train_word_tokenizer(["a b. c\nb"]), word_pieces()], ids=["words", "letters"])
@pytest.mark.parametrize("suffix", [" b. c", ". c\nb", "\nb", " ", "", ".", "  b"], ids=repr)
def test_a_suffix_is_tokenised_as_within_a_text(tokenizer, suffix):
    assert encode_prompt(tokenizer, "a") + encode_suffix(tokenizer, suffix) == encode_text(tokenizer, "a" + suffix)


def test_the_start_of_a_suffix_is_not_lost_in_an_unknown_word():
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "b": 1, "ab": 2}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    assert encode_suffix(tokenizer, "ab b") == [2, 1]
    assert encode_suffix(tokenizer, " ab b") == [2, 1]


def test_a_suffix_needs_to_know_where_its_tokens_come_from():
    with pytest.raises(ValueError, match="must be a fast one, got SimpleNamespace; load it with AutoTokenizer"):
        encode_suffix(SimpleNamespace(is_fast=False), " it")
