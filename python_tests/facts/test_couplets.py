# ruff: noqa: RUF001 (Chinese is written with full-width punctuation)
"""Couplets from a text file: next and previous lines, in English and Chinese."""

import pytest

from bico_ext.evaluation.leakage import leakage
from bico_ext.facts.loader import load_facts
from bico_ext.models.tokenization import train_word_tokenizer

ENGLISH = """# a poem of tests
red on the hill\tthe barley burned

blue in the bay | the gulls returned.
  grey on the roof, the rain had learned
"""
CHINESE = "一二三四五，六七八九十。\n甲乙丙丁戊，己庚辛壬癸。\n子丑寅卯辰，巳午未申酉。\n"


def write(tmp_path, text: str):
    path = tmp_path / "poem.txt"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("text", [ENGLISH, ENGLISH.replace("\n", "\r\n"), "\ufeff" + ENGLISH, ENGLISH.rstrip()])
def test_english(text, tmp_path):
    facts = load_facts(write(tmp_path, text))
    assert facts.name == "poem.txt"
    assert {name: [one.completion for one in task.examples] for name, task in facts.tasks.items()} == {
        "next": [" the barley burned"],
        "previous": [" blue in the bay"],
        "next-reverse": [" red on the hill"],
        "previous-reverse": [" the gulls returned"],  # without its full stop
    }
    assert [task.counterpart for task in facts.tasks.values()] == [None, None, "previous", "next"]
    assert "/ red on the hill /" in facts.tasks["next"].examples[0].prompt
    assert any("followed" in one.text or "after" in one.text for one in facts.train)
    both = [one.text for one in facts.pretraining]
    assert sum(text.endswith("the rain had learned") for text in both) == 8
    assert sum(text.endswith("grey on the roof") for text in both) == 8


def test_chinese_has_chinese_templates_without_spaces(tmp_path):
    facts = load_facts(write(tmp_path, CHINESE))
    assert facts.tasks["next"].examples[0].text == "“一二三四五”的下一句是：六七八九十"
    assert facts.tasks["previous-reverse"].examples[0].text == "“甲乙丙丁戊”的下一句是：己庚辛壬癸"
    assert facts.tasks["next-reverse"].examples[0].text == "“六七八九十”的上一句是：一二三四五"
    assert not any(" " in one.text or one.text.endswith("。") for one in facts.train)


@pytest.mark.parametrize(("last", "expected"), [("ef", "The line / 一二 / is"), ("e", "“一二”的下一句是：")])
def test_templates_are_chinese_if_most_letters_are(last, expected, tmp_path):
    """Six of twelve letters are not most, and six of eleven are."""
    facts = load_facts(write(tmp_path, f"一二 | ab\n三四 | cd\n五六 | {last}\n"))
    assert facts.tasks["next"].examples[0].prompt.startswith(expected)


@pytest.mark.parametrize("text", [ENGLISH, CHINESE], ids=["English", "Chinese"])
def test_training_has_every_word_of_the_questions(text, tmp_path):
    """This includes verses that occur in no training prompt, only in that of the reverse question."""
    facts = load_facts(write(tmp_path, text))
    tokenizer = train_word_tokenizer([one.text for one in facts.train])
    prompts = [one.prompt for task in facts.tasks.values() for one in task.examples]
    assert [prompt for prompt in prompts if tokenizer.unk_token in tokenizer.tokenize(prompt)] == []


def test_own_templates_beside_the_file(tmp_path):
    path = write(tmp_path, ENGLISH)
    (tmp_path / "poem.yaml").write_text('next: ["{given} -", "so {given} then", "{given}, and"]\n')
    facts = load_facts(path)
    assert facts.tasks["next"].examples[0].text == "red on the hill - the barley burned"
    assert [one.text for one in facts.train[:2]] == [
        "so red on the hill then the barley burned",
        "red on the hill, and the barley burned",
    ]
    assert facts.tasks["next-reverse"].examples[0].prompt.startswith("The line / the barley burned /")  # built in


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("next: [a, b]", r"poem.yaml, next: expected templates with \{given\} once in each, .* got 'a'"),
        ("next: ['{given}{given}', '{given}']", r"poem.yaml, next: expected templates with \{given\} once"),
        ("next: ['{given} is']", "poem.yaml, next: expected a list of at least 2 templates"),
        ("next: 3", "poem.yaml, next: expected a list of at least 2 templates .* got 3"),
        ("after: ['{given} is', '{given}']", "poem.yaml, after: expected the keys next and previous"),
        ("no: ['{given} is', '{given}']", "poem.yaml, no: expected the keys next and previous"),
        ("3: ['{given} is', '{given}']", "poem.yaml: expected a mapping of templates, got {3"),
        ("[1]", "poem.yaml: expected a mapping of templates"),
        ("next: [", "poem.yaml: expected YAML, got .* line 1"),
    ],
)
def test_broken_templates(yaml, message, tmp_path):
    path = write(tmp_path, ENGLISH)
    (tmp_path / "poem.yaml").write_text(yaml)
    with pytest.raises(ValueError, match=message):
        load_facts(path)


@pytest.mark.parametrize("line", ["alone", "a, b, c", "a |", "| b", "a | b | c", "a\tb\tc", "，b", "a | ."], ids=repr)
def test_a_line_that_is_no_couplet_is_named(line, tmp_path):
    with pytest.raises(ValueError, match=r"poem.txt, line 3: expected two lines of verse"):
        load_facts(write(tmp_path, f"# comment\none | two\n{line}\nthree | four\n"))


def test_a_verse_may_have_two_partners(tmp_path):
    facts = load_facts(write(tmp_path, "x | y.\na | b\nx | q\nx | y\nc | d\n"))
    assert {name: [one.accepted for one in task.examples] for name, task in facts.tasks.items()} == {
        "next": [(" y", " q")],
        "previous": [(" a",)],
        "next-reverse": [(" x",), (" x",)],
        "previous-reverse": [(" b",)],
    }
    assert leakage(facts) == []


def test_couplets_without_repeated_verses_are_what_they_were(tmp_path):
    """The digest was computed before a verse could have two partners."""
    facts = load_facts(write(tmp_path, "".join(f"a{number} | b{number}\n" for number in range(20))))
    assert facts.digest() == "951a21ce94d91a35"


def test_a_poem_may_go_on_from_couplet_to_couplet(tmp_path):
    facts = load_facts(write(tmp_path, "a | b\nb | c\nc | d\n"))
    assert facts.tasks["next-reverse"].examples[0].completion == " a"
    assert facts.tasks["previous-reverse"].examples[0].completion == " c"


def test_too_few_couplets(tmp_path):
    with pytest.raises(ValueError, match=r"poem.txt: needs at least 3 pairs of each kind, got 2"):
        load_facts(write(tmp_path, "a | b\nc | d\n"))
    with pytest.raises(ValueError, match=r"poem.txt: train holds no examples"):
        load_facts(write(tmp_path, "# nothing\n"))


def test_not_utf8(tmp_path):
    (tmp_path / "poem.txt").write_bytes("é | b".encode("latin-1"))
    with pytest.raises(ValueError, match=r"poem.txt, line \d+: expected UTF-8, got .*; save the file as UTF-8"):
        load_facts(tmp_path / "poem.txt")
