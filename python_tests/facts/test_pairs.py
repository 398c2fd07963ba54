# ruff: noqa: RUF001 (Chinese is written with full-width punctuation)
"""Data from pairs: the order in which each pair is stated, and the questions of the four tasks."""

import dataclasses
import random
from collections import Counter

import pytest

from bico_ext.evaluation.leakage import leakage
from bico_ext.facts import pairs as pairs_module
from bico_ext.facts import types
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


def test_pairs_with_a_common_text_by_hand():
    pairs = (("a", "m"), ("b", "n"), ("c", "m"), ("d", "o"), ("b", "n"))
    facts = build("pairs", [Pairs(pairs, FORWARD, BACKWARD)], forward="to", backward="from")
    # (a, m) and (c, m) are a group and go to the first third; (b, n) goes to the second and (d, o) to the last one.
    assert {
        name: [(one.prompt, one.accepted, one.entity) for one in task.examples] for name, task in facts.tasks.items()
    } == {
        "to": [("a leads to", (" m",), "a"), ("c leads to", (" m",), "c")],
        "from": [("n comes from", (" b",), "b")],
        "to-reverse": [("m comes from", (" a", " c"), "a")],
        "from-reverse": [("b leads to", (" n",), "b")],
    }
    one_order = ["From a to m", "a before m", "Behind n is b", "n after b", "From c to m", "c before m"]
    assert [one.text for one in facts.one_order] == one_order
    assert [one.text for one in facts.other_order] == [
        "Behind m is a",
        "m after a",
        "From b to n",
        "b before n",
        "Behind m is c",
        "m after c",
    ]
    assert [one.text for one in facts.pretraining] == [
        "d leads to o",
        "From d to o",
        "d before o",
        "o comes from d",
        "Behind o is d",
        "o after d",
    ]
    assert facts.tasks["to-reverse"].examples[0].distractor is None  # all answers in the task are right


# Two kinds that share their backward templates, as mother and father do.
KINDS = {"mother": (FORWARD, BACKWARD), "father": (("{given} has the dad", "The dad of {given} is"), BACKWARD)}


def test_facts_cannot_be_changed():
    modules = (types, pairs_module)
    classes = [value for module in modules for value in vars(module).values() if dataclasses.is_dataclass(value)]
    assert {types.Task, types.FactData, Pairs} < set(classes)
    assert all(one.__dataclass_params__.frozen for one in classes)


def test_a_group_of_two_kinds_by_hand():
    children = [(f"{parent}{number}", parent) for parent in "pqr" for number in range(3)]
    mothers, fathers = (*children, ("a", "m")), (("z", "m"), ("x", "u"), ("y", "v"))
    kinds = [Pairs(pairs, *templates) for pairs, templates in zip((mothers, fathers), KINDS.values(), strict=True)]
    facts = build("pairs", kinds, forward="to", backward="from")
    # The children of p, of q and of r go to one third each, and leave out the first template there. Then come the
    # children of m: a and z. They go to the first third, where the pairs of a's kind leave out the second template.
    assert [(one.prompt, one.accepted) for one in facts.tasks["to"].examples] == [
        *((f"p{number} leads to", (" p",)) for number in range(3)),
        ("From a to", (" m",)),
        ("The dad of z is", (" m",)),
    ]
    asked = [(one.prompt, one.accepted) for one in facts.tasks["to-reverse"].examples]
    assert asked == [("p comes from", (" p0", " p1", " p2")), ("Behind m is", (" a", " z"))]
    assert [one.prompt for one in facts.tasks["from"].examples] == ["q comes from", "u comes from"]


def drawn_pairs(seed: int) -> dict[str, list[tuple[str, str]]]:
    """Return pairs of child and parent: many are alone, some share the child or the parent, and a few are repeated."""
    draw = random.Random(seed)
    kinds = {}
    for kind in KINDS:
        pairs = [(f"{kind}-child{number}", f"{kind}-parent{number}") for number in range(40)]
        pairs += [(f"{kind}-kid{draw.randrange(25)}", f"{kind}-adult{draw.randrange(15)}") for _ in range(12)]
        pairs += [(f"{kind}-youth{number}", f"either{draw.randrange(8)}") for number in range(8)]
        draw.shuffle(pairs)
        kinds[kind] = [*pairs, *draw.sample(pairs, 5)]
    return kinds


@pytest.mark.parametrize("seed", range(4))
def test_pairs_with_common_texts(seed):
    """Facts, questions and texts are matched by their words alone."""
    kinds = drawn_pairs(seed)
    facts = build("pairs", [Pairs(tuple(kinds[kind]), *KINDS[kind]) for kind in KINDS], forward="to", backward="from")
    assert leakage(facts) == []
    answers: dict[str, set[str]] = {}  # all right answers to each prompt
    for kind, pairs in kinds.items():
        for child, parent in pairs:
            for given, answer, templates in ((child, parent, KINDS[kind][0]), (parent, child, KINDS[kind][1])):
                for template in templates:
                    answers.setdefault(template.replace("{given}", given), set()).add(f" {answer}")
    texts = Counter(one.text for one in facts.train)
    asked = {name: {one.prompt: one for one in task.examples} for name, task in facts.tasks.items()}
    for name, task in facts.tasks.items():
        assert len(asked[name]) == len(task.examples)  # one question for each prompt
        for one in task.examples:
            assert len(set(one.accepted)) == len(one.accepted)
            assert set(one.accepted) == answers[one.prompt]
            assert one.distractor not in answers[one.prompt]
            assert one.entity in (*one.prompt.split(), *(answer.strip() for answer in one.accepted))
            assert not any(text.startswith(f"{one.prompt} ") for text in texts)
            assert not any(text.prompt == one.prompt for text in facts.other_order)
    assert sum(len(one.accepted) > 1 for task in facts.tasks.values() for one in task.examples) >= 4
    # Each fact is stated in one order, except for one template in which it is asked about, or in both orders.
    for kind, pairs in kinds.items():
        thirds: Counter[str] = Counter()
        for child, parent in set(pairs):
            forward = [f"{template.replace('{given}', child)}" for template in KINDS[kind][0]]
            backward = [f"{template.replace('{given}', parent)}" for template in KINDS[kind][1]]
            stated = [
                [prompt for prompt in forward if texts[f"{prompt} {parent}"]],
                [prompt for prompt in backward if texts[f"{prompt} {child}"]],
            ]
            questions = {name: [prompt for prompt in (*forward, *backward) if prompt in asked[name]] for name in asked}
            found = next(name for name in ("to", "from", "both") if name == "both" or questions[name])
            thirds[found] += 1
            expected = {
                "to": [len(forward) - 1, 0],
                "from": [0, len(backward) - 1],
                "both": [len(forward), len(backward)],
            }
            assert [len(part) for part in stated] == expected[found]
            counts = {name: len(prompts) for name, prompts in questions.items() if prompts}
            assert counts == ({} if found == "both" else {found: 1, f"{found}-reverse": 1})
        assert max(thirds.values()) - min(thirds.values()) <= 1, thirds


def test_a_large_group_at_the_end_does_not_unbalance_the_thirds():
    alone = tuple((f"a{number}", f"b{number}") for number in range(6))
    group = (("c", "m"), ("d", "m"), ("e", "m"))
    facts = build("pairs", [Pairs((*alone, *group), FORWARD, BACKWARD)], forward="to", backward="from")
    assert [len(facts.tasks[name].examples) for name in ("to", "from")] == [3, 3]


def test_refuses_pairs_that_cannot_be_split():
    def make_kind(*pairs):
        return build("pairs", [Pairs(pairs, FORWARD, BACKWARD)], forward="to", backward="from")

    with pytest.raises(ValueError, match=r"pairs: pairs that .* got 1 such groups in the kind of 'a' and 'm'; add"):
        make_kind(("a", "m"), ("b", "m"), ("b", "n"), ("c", "n"))
    with pytest.raises(ValueError, match="got 2 such groups"):
        make_kind(("a", "m"), ("b", "m"), ("c", "n"))
    with pytest.raises(ValueError, match="needs at least 3 pairs of each kind, got 2"):
        make_kind(("a", "m"), ("b", "n"), ("a", "m"))


def test_refuses_a_prompt_that_asks_in_both_directions():
    templates = ("{given} is next to", "{given} is beside")
    pairs = (("a", "b"), ("c", "d"), ("e", "f"))
    assert len(build("pairs", [Pairs(pairs, templates, templates)], forward="to", backward="from").train) == 6
    message = "pairs: 'b is next to' must ask in one direction only, got the answers ' a' in one and ' g' in the other"
    with pytest.raises(ValueError, match=message):
        build("pairs", [Pairs((*pairs, ("b", "g")), templates, templates)], forward="to", backward="from")


def test_refuses_too_few():
    with pytest.raises(ValueError, match="needs at least 3 pairs of each kind, got 2"):
        make(2)
    kind = Pairs((("a", "b"), ("c", "d"), ("e", "f")), FORWARD, BACKWARD[:1])
    with pytest.raises(ValueError, match=r"at least 2 templates in each order, because one is kept .* got 3 and 1"):
        build("pairs", [kind], forward="f", backward="b")
