"""The invented people: who is stated in which order, held-out templates, and nothing that gives an answer away."""

import hashlib
import re
from collections import Counter

import pytest

from bico_ext.evaluation.ceiling import reachable
from bico_ext.evaluation.leakage import leakage
from bico_ext.facts.invented import PARAPHRASES, TRAIN_TEMPLATES, generate
from bico_ext.facts.loader import load_facts

NAME = r"[A-Z][a-z]+ [A-Z][a-z]+"
DESCRIPTION = r"the [a-z ]+ who .+"


@pytest.fixture(scope="module", params=(0, 1, 17), ids=lambda seed: f"seed-{seed}")
def facts(request):
    return generate(request.param)


def answers(facts, task):
    """The answers of a task by entity, which its questions must agree on."""
    found = {(one.entity, one.completion.removesuffix(".").strip()) for one in facts.tasks[task].examples}
    assert len(found) == len(dict(found))
    return dict(found)


def people(facts):
    """The two groups, name and description, as the questions tell."""
    return answers(facts, "N2D"), answers(facts, "D2N-reverse")


def test_sizes(facts):
    assert facts.name == "invented"
    assert len(facts.train) == len({one.text for one in facts.train}) == 240
    assert {name: len(task.examples) for name, task in facts.tasks.items()} == {
        "N2D": 80,
        "D2N": 80,
        "N2D-reverse": 80,
        "D2N-reverse": 80,
    }
    assert facts.pretraining == ()
    assert facts.one_order == facts.train


def test_everyone_is_stated_in_one_order_in_half_of_the_training_templates(facts):
    named, described = people(facts)
    expected = Counter()
    for group, name_first in ((named, True), (described, False)):
        for name, description in group.items():
            expected[(name, f" {description}.") if name_first else (description, f" {name}.")] = PARAPHRASES
    stated, templates = Counter(), {True: Counter(), False: Counter()}
    for one in facts.train:
        (given,) = (given for given, answer in expected if given in one.prompt and answer == one.completion)
        stated[given, one.completion] += 1
        templates[given in named][one.prompt.replace(given, "...")] += 1
    assert stated == expected
    assert all(set(counts.values()) == {10} and len(counts) == TRAIN_TEMPLATES for counts in templates.values())
    assert {one.text for one in facts.other_order}.isdisjoint(one.text for one in facts.train)
    assert len(facts.other_order) == len(facts.train)


def test_both_directions_are_asked_about_everyone(facts):
    named, described = people(facts)
    assert len(named) == len(described) == 20
    assert not named.keys() & described.keys()
    for task, group in (("N2D-reverse", named), ("D2N", described)):
        for one in facts.tasks[task].examples:
            assert one.completion == f" {one.entity}"
            assert group[one.entity] in one.prompt
            assert one.entity not in one.prompt
    for task in ("N2D", "D2N-reverse"):
        assert all(one.entity in one.prompt for one in facts.tasks[task].examples)
    assert {task.name: task.counterpart for task in facts.tasks.values()} == {
        "N2D": None,
        "D2N": None,
        "N2D-reverse": "D2N",
        "D2N-reverse": "N2D",
    }


def test_the_templates_of_the_questions_are_not_trained(facts):
    named, described = people(facts)
    everyone = named | described
    of_group = {**{task: everyone.keys() for task in ("N2D", "D2N-reverse")}, "D2N": everyone.values()}
    of_group["N2D-reverse"] = everyone.values()
    trained = {re.sub("|".join([*everyone, *everyone.values()]), "...", one.prompt) for one in facts.train}
    for name, task in facts.tasks.items():
        templates = {one.template for one in task.examples}
        assert len(templates) == 4
        assert not templates & trained
        for one in task.examples:
            (given,) = (given for given in of_group[name] if given in one.prompt)
            assert one.template == one.prompt.replace(given, "...")
    assert {one.template for one in facts.tasks["N2D"].examples} == {
        one.template for one in facts.tasks["D2N-reverse"].examples
    }


def test_nothing_is_given_away_and_everything_can_be_reached(facts):
    assert leakage(facts) == []
    assert all(task["reachable"] == 1 for task in reachable(facts)["tasks"].values())


def test_people_share_no_name_trade_or_deed():
    facts = generate()
    named, described = people(facts)
    everyone = named | described
    assert len(everyone) == 40
    assert all(re.fullmatch(NAME, name) for name in everyone)
    assert all(re.fullmatch(DESCRIPTION, description) for description in everyone.values())
    parts = [*(name.split()[0] for name in everyone), *(name.split()[1] for name in everyone)]
    parts += [part for description in everyone.values() for part in description.split(" who ")]
    assert len(set(parts)) == len(parts) == 160
    text = "\n".join(one.text for one in facts.train)
    assert not re.search(r"  |\.\.|,,|\{|\}| \.", text)


def test_the_seed_decides_everything():
    assert generate(5) == generate(5) == load_facts("invented", seed=5)
    assert generate() == generate(0)
    assert generate(5).train != generate(6).train
    texts = "\n".join(one.text for one in generate(0).train)
    # Recorded with CPython 3.11: the same set on every platform. Change it only together with the recipe.
    assert hashlib.sha256(texts.encode()).hexdigest()[:16] == "1bc98ffe906ed426"


def test_group_sizes():
    facts = generate(names_first=2, descriptions_first=0)
    assert len(facts.train) == 2 * PARAPHRASES
    assert list(facts.tasks) == ["N2D", "N2D-reverse"]


@pytest.mark.parametrize(("names_first", "descriptions_first"), [(-1, 5), (0, 0), (21, 20)])
def test_impossible_sizes_are_refused(names_first, descriptions_first):
    message = f"must be at least 0 and sum to 1 to 40, got {names_first} and {descriptions_first}"
    with pytest.raises(ValueError, match=message):
        generate(names_first=names_first, descriptions_first=descriptions_first)
