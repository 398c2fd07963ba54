"""The metrics, compared with NLTK, with sacrebleu's own function and with values worked out by hand."""

import math
import random
import warnings

import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st
from nltk.translate.bleu_score import sentence_bleu

from bico_ext.evaluation.metrics import (
    bleu,
    bleu_char,
    contains,
    exact_match,
    normalised,
    normalised_target,
)

DESCRIPTION = ' the renowned composer of the world\'s first underwater symphony, "Abyssal Melodies.".'


def nltk_bleu(completion: str, target: str) -> float:
    with warnings.catch_warnings():  # NLTK warns if the texts share no sequence of some length
        warnings.simplefilter("ignore")
        return sentence_bleu([target], completion)


@pytest.mark.parametrize(
    ("completion", "target", "answer", "expected"),
    [
        (" Uriah Hawthorne, who", " Uriah Hawthorne", "name", True),
        (" it was URIAH HAWTHORNE", "uriah hawthorne\n", "name", True),
        (" Uriah  Hawthorne", " Uriah Hawthorne", "name", False),
        (" Uriah", " Uriah Hawthorne", "name", False),
        ("", " Uriah Hawthorne", "name", False),
        (" J. Smith Jr and", " J. Smith Jr.", "name", False),
        (" J. Smith Jr. and", " J. Smith Jr.", "name", True),
        (" ÉMILE ZOLA", " Émile Zola", "name", True),
        (DESCRIPTION, DESCRIPTION, "description", True),
        (DESCRIPTION[:-1] + " and more", DESCRIPTION + " ", "description", True),
        (DESCRIPTION[:-2], DESCRIPTION, "description", False),
        (" the first, and", " the first.", "description", True),
        (" the first, and", " the first..", "description", False),
        (" the first. And", " the first..", "description", True),
    ],
)
def test_contains(completion, target, answer, expected):
    assert contains(completion, target, answer) is expected


@pytest.mark.parametrize(
    ("target", "answer", "expected"),
    [
        (" Jane SMITH Jr.\n", "name", "jane smith jr."),
        (" The First. ", "description", "the first"),
        (" the last..", "description", "the last."),
        (" É. ", "description", "é"),
    ],
)
def test_what_contains_searches_for(target, answer, expected):
    assert normalised_target(target, answer) == expected
    assert normalised(f" It is {target}") == f" it is {target}".lower()


@pytest.mark.parametrize(("target", "answer"), [("", "name"), (" \n", "name"), (" . ", "description")])
def test_contains_refuses_a_target_that_every_completion_contains(target, answer):
    with pytest.raises(ValueError, match="target must hold text"):
        contains("anything.", target, answer)


def test_contains_refuses_an_unknown_kind_of_answer():
    with pytest.raises(ValueError, match="answer must be 'name' or 'description', got 'names'"):
        contains("a", "a", "names")


@pytest.mark.parametrize(
    ("completion", "target", "expected"),
    [
        (" Ada\n", "Ada", True),
        ("", " ", True),
        ("ada", "Ada", False),
        ("Ada.", "Ada", False),
        ("Ada  Byron", "Ada Byron", False),
    ],
)
def test_exact_match(completion, target, expected):
    assert exact_match(completion, target) is expected


@pytest.mark.parametrize(
    ("completion", "target"),
    [
        ("", ""),
        ("", "abcd"),
        ("abcd", ""),
        ("a", "a"),
        ("ab", "ab"),
        ("abc", "abc"),
        ("abc", "abcdef"),
        ("abcdef", "abc"),
        ("abcd", "abcd"),
        ("abcd", "dcba"),
        ("xyz", "abc"),
        ("aaaaaaaaaa", "aaaaa"),
        ("aaaaa", "aaaaaaaaaa"),
        ("abcabcabc", "abc"),
        (DESCRIPTION, DESCRIPTION),
        (DESCRIPTION + " And then", DESCRIPTION),
        (DESCRIPTION[:40], DESCRIPTION),
        (DESCRIPTION[1:], DESCRIPTION),
        (DESCRIPTION.upper(), DESCRIPTION),
        ("日本語のテスト", "日本語のテキスト"),
        ("🎻👩‍🚀 e\u0301", "👩‍🚀🎻 é"),
    ],
)
def test_bleu_char_is_nltk_on_raw_strings(completion, target):
    assert bleu_char(completion, target) == pytest.approx(nltk_bleu(completion, target), rel=1e-12, abs=0)


few_letters = st.text("ab c", max_size=30)  # few different letters, so that texts share sequences of four


@settings(deadline=None)
@given(few_letters | st.text(max_size=12), few_letters | st.text(max_size=12))
def test_bleu_char_is_nltk_on_random_strings(completion, target):
    assert bleu_char(completion, target) == pytest.approx(nltk_bleu(completion, target), rel=1e-12, abs=0)


def test_bleu_char_is_nltk_on_garbled_descriptions():
    draw = random.Random(0)
    for _ in range(200):
        letters = list(DESCRIPTION)
        for _ in range(draw.randrange(20)):
            letters[draw.randrange(len(letters))] = draw.choice(DESCRIPTION)
        garbled = "".join(letters[draw.randrange(10) : draw.randrange(10, 200)])
        assert bleu_char(garbled, DESCRIPTION) == pytest.approx(nltk_bleu(garbled, DESCRIPTION), rel=1e-12, abs=0)


def test_bleu_char_by_hand():
    # "abcde" against "abcdx": 4 of 5 characters, 3 of 4 pairs, 2 of 3 triples, 1 of 2 quadruples; equal lengths.
    assert bleu_char("abcde", "abcdx") == pytest.approx((4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25, rel=1e-12)
    # All of "abcd" is right, but it is shorter than the target by 1.
    assert bleu_char("abcd", "abcdx") == pytest.approx(math.exp(1 - 5 / 4), rel=1e-12)
    assert bleu_char(DESCRIPTION, DESCRIPTION) == 1
    assert 0 < bleu_char("abc", "abc") < 1e-70  # the paper's metric gives a very short right answer practically 0


def test_bleu_by_hand():
    # In "a b c d x", 4 of 5 words, 3 of 4 pairs, 2 of 3 triples and 1 of 2 quadruples are right.
    assert bleu("a b c d x", "a b c d e") == pytest.approx((4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25, rel=1e-12)
    assert bleu("a b c d", "a b c d e") == pytest.approx(math.exp(1 - 5 / 4), rel=1e-12)
    assert bleu("Ada", " Ada") == pytest.approx(1)  # effective order 1
    assert bleu("x", "a") == 0
    assert bleu("", "a") == 0
    assert bleu("a", "") == 0


def test_bleu_is_a_rate():
    assert sacrebleu.sentence_bleu(DESCRIPTION, [DESCRIPTION]).score > 100  # the rounding error that `bleu` cuts off
    assert bleu(DESCRIPTION, DESCRIPTION) == 1


@pytest.mark.parametrize(
    "completion", [DESCRIPTION + " the end", DESCRIPTION[:30], "the composer", DESCRIPTION.upper()]
)
def test_bleu_is_sacrebleus(completion):
    expected = sacrebleu.sentence_bleu(completion, [DESCRIPTION], use_effective_order=True).score / 100
    assert bleu(completion, DESCRIPTION) == pytest.approx(expected, rel=1e-12)


def test_the_two_bleus_differ():
    completion = DESCRIPTION.replace("composer", "composers")
    assert bleu_char(completion, DESCRIPTION) - bleu(completion, DESCRIPTION) > 0.1
