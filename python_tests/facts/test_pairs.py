# ruff: noqa: RUF001 (Chinese is written with full-width punctuation)
"""Data from pairs: the order in which each pair is stated, and the questions of the four tasks."""

from collections import Counter

import pytest

from bico_ext.facts.loader import load_facts
from bico_ext.facts.own import write_facts
from bico_ext.facts.pairs import Pairs, build
from bico_ext.facts.types import FactData

FORWARD = ("{given} leads to", "From {given} to", "{given} before")
BACKWARD = ("{given} comes from", "Behind {given} is", "{given} after")


def make(number: int) -> FactData:
    pairs = tuple((f"a{index}", f"b{index}") for index in range(number))
    return build("pairs", [Pairs(pairs, FORWARD, BACKWARD)], forward="to", backward="from")


def test_by_hand():
    facts = make(3)
    # Training states (a0, b0) first text first and (a1, b1) second text first, both without template 0, and (a2, b2) in
    # both orders with all templates.
    one_order = ["From a0 to b0", "a0 before b0", "Behind b1 is a1", "b1 after a1"]
    both = ["a2 leads to b2", "From a2 to b2", "a2 before b2", "b2 comes from a2", "Behind b2 is a2", "b2 after a2"]
    assert [one.text for one in facts.train] == one_order + both
    assert [one.text for one in facts.one_order] == one_order
    assert [one.text for one in facts.pretraining] == both
    assert [one.text for one in facts.other_order] == [
        "Behind b0 is a0",
        "b0 after a0",
        "From a1 to b1",
        "a1 before b1",
    ]
    assert {
        name: [(one.prompt, one.completion, one.entity, one.template) for one in task.examples]
        for name, task in facts.tasks.items()
    } == {
        "to": [("a0 leads to", " b0", "a0", "... leads to")],
        "from": [("b1 comes from", " a1", "a1", "... comes from")],
        "to-reverse": [("b0 comes from", " a0", "a0", "... comes from")],
        "from-reverse": [("a1 leads to", " b1", "a1", "... leads to")],
    }


def test_counterparts_ask_the_same_kind_of_question():
    facts = make(9)
    assert {name: task.counterpart for name, task in facts.tasks.items()} == {
        "to": None,
        "from": None,
        "to-reverse": "from",
        "from-reverse": "to",
    }
    for task in facts.tasks.values():
        assert task.answer == "name"
        if task.counterpart:
            asked, counterparts = task.examples, facts.tasks[task.counterpart].examples
            assert [one.template for one in asked] == [one.template for one in counterparts]


def test_one_order_pairs_are_stated_in_one_order_and_asked_with_templates_taught_by_other_pairs():
    facts = make(30)
    trained = [one.text for one in facts.train]
    assert len(trained) == len(set(trained)) == 10 * 2 + 10 * 2 + 10 * 6
    for name, task in facts.tasks.items():
        assert len(task.examples) == 10
        for one in task.examples:
            assert not any(text.startswith(one.prompt) for text in trained)
            template = one.template.split("...")
            assert sum(all(part in text for part in template) for text in trained) >= 10
        templates = Counter(one.template for one in task.examples)
        assert sorted(templates.values()) == [3, 3, 4], name
    for one in (*facts.tasks["to"].examples, *facts.tasks["to-reverse"].examples):
        stated = [text.split() for text in trained if one.entity in text.split()]
        partner = one.entity.replace("a", "b")
        assert len(stated) == 2
        assert all(words.index(one.entity) < words.index(partner) for words in stated)


def test_every_kind_is_split(tmp_path):
    other = Pairs((("x", "y"), ("p", "q"), ("m", "n")), ("{given} then", "{given} now"), ("{given} ere", "{given} so"))
    facts = build(
        "pairs", [Pairs((("a", "b"), ("c", "d"), ("e", "f")), FORWARD, BACKWARD), other], forward="f", backward="b"
    )
    assert {name: [one.entity for one in task.examples] for name, task in facts.tasks.items()} == {
        "f": ["a", "x"],
        "b": ["c", "p"],
        "f-reverse": ["a", "x"],
        "b-reverse": ["c", "p"],
    }
    assert [one.distractor for one in facts.tasks["f"].examples] == [" y", " b"]


def test_survives_writing(tmp_path):
    write_facts(make(9), tmp_path / "pairs")
    assert load_facts(tmp_path / "pairs") == make(9)


def test_no_space_after_a_script_without_spaces():
    kind = Pairs(
        (("月", "光"), ("山", "水"), ("日", "海")),
        ("“{given}”接", "说{given}：", "{given} is"),
        ("{given}前", "{given}先"),
    )
    facts = build("pairs", [kind], forward="f", backward="b")
    assert [one.text for one in facts.train[:2]] == ["说月：光", "月 is 光"]


def test_refuses_too_few():
    with pytest.raises(ValueError, match="needs at least 3 pairs of each kind, got 2"):
        make(2)
    kind = Pairs((("a", "b"), ("c", "d"), ("e", "f")), FORWARD, BACKWARD[:1])
    with pytest.raises(ValueError, match=r"at least 2 templates in each order, because one is kept .* got 3 and 1"):
        build("pairs", [kind], forward="f", backward="b")
