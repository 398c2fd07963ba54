"""Ceilings of hand-made facts, counted by hand, and of the synthetic set, compared with `contains` on every pair."""

import dataclasses
import json

import pytest

from bico_ext.evaluation.ceiling import reachable
from bico_ext.evaluation.metrics import contains
from bico_ext.facts.synthetic import generate
from bico_ext.facts.types import Example, FactData, Question, Task

TRAIN = (
    Example("Ada Byron was", " the FIRST programmer, they say."),
    Example("They say that Bob is", " a pilot"),
    Example("and here is", " Cy"),
)
FACTS = FactData(
    "by hand",
    TRAIN,
    {
        "N2D": Task(
            "N2D",
            "description",
            (
                Question("You know, Ada Byron is", " the first programmer.", "Ada", "know"),  # case, full stop
                Question("You know, Bob is", " a pilot who lands.", "Bob", "know"),  # only its start
                Question("They say Cy was", " is a pilot.", "Cy", "say"),
                Question("They say Dan was", " a pilot and here.", "Dan", "say"),  # across two texts
                Question("Who is Dan? He is", " programmer,", "Dan"),  # without a template
            ),
        ),
        "D2N-reverse": Task("D2N-reverse", "name", (Question("A pilot is", " Bob.", "Bob", "is"),), "N2D"),
    },
)


def test_by_hand():
    result = reachable(FACTS)
    assert result == {
        "name": "by hand",
        "tasks": {
            "N2D": {
                "answer": "description",
                "counterpart": None,
                "n": 5,
                "reachable": 0.6,
                "templates": {
                    # The names are not words of the template, whether training has them or not.
                    "know": {"n": 2, "reachable": 0.5, "unseen_words": ["You", "know"]},
                    "say": {"n": 2, "reachable": 0.5, "unseen_words": []},
                },
            },
            "D2N-reverse": {
                "answer": "name",
                "counterpart": "N2D",
                "n": 1,
                "reachable": 0.0,  # a name keeps its full stop, as in the metric
                "templates": {"is": {"n": 1, "reachable": 0.0, "unseen_words": ["A"]}},  # " a" is a different word
            },
        },
    }
    assert json.loads(json.dumps(result)) == result


@pytest.mark.parametrize("texts", [30, 300, 3600])
def test_as_the_metric_would_count(texts):
    """With part of the training set, some targets are unreachable. The metric is applied to every pair of texts."""
    facts = generate(0)
    facts = dataclasses.replace(facts, train=facts.train[:: 3600 // texts][:texts])
    for name, ceiling in reachable(facts)["tasks"].items():
        task = facts.tasks[name]
        distinct = {question.completion for question in task.examples}
        held = {target for target in distinct if any(contains(text.text, target, task.answer) for text in facts.train)}
        hits = [question.completion in held for question in task.examples]
        assert ceiling["reachable"] == sum(hits) / len(hits)
        assert (ceiling["reachable"] < 1) == (texts == 30)
        assert sum(template["n"] for template in ceiling["templates"].values()) == ceiling["n"] == 150


def test_the_words_of_the_synthetic_templates_are_all_seen():
    templates = [
        template for task in reachable(generate(1))["tasks"].values() for template in task["templates"].values()
    ]
    assert len(templates) == 20
    assert all(template["unseen_words"] == [] for template in templates)


def test_unseen_words_are_listed_once_in_order_with_punctuation():
    asked = tuple(
        Question(f"If one asks, one asks: 'Is {name} here?' They'd say", " yes", name, "if") for name in ("Zoe", "Elle")
    )
    facts = FactData("", TRAIN, {"t": Task("t", "name", asked)})
    # Both names are unseen, but neither is in all prompts. "Is" differs from the trained " is". "'d" and "?" are words.
    expected = ["If", "one", "asks", ":", "'", "Is", "?", "'d"]
    assert reachable(facts)["tasks"]["t"]["templates"]["if"]["unseen_words"] == expected


def test_pre_training_counts_and_the_other_order_does_not():
    def score(facts: FactData) -> float:
        return reachable(facts)["tasks"]["D2N-reverse"]["reachable"]

    text = (Example("A pilot is", " Bob."),)
    assert score(FACTS) == 0
    assert score(dataclasses.replace(FACTS, pretraining=text)) == 1
    assert score(dataclasses.replace(FACTS, other_order=text)) == 0


def test_one_reachable_answer_of_several_is_enough():
    asked = (
        Question("Who?", " Zoe", also=(" Cy",)),
        Question("Who?", " Bob", also=(" Zoe",)),
        Question("Who?", " Zoe", also=(" Elle", " Dan")),
        Question("Who?", " Zoe"),
    )
    assert reachable(FactData("", TRAIN, {"t": Task("t", "name", asked)}))["tasks"]["t"]["reachable"] == 2 / 4


def test_no_tasks():
    assert reachable(FactData("bare", TRAIN, {})) == {"name": "bare", "tasks": {}}
