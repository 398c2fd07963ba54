"""What knows nothing must score nothing: a model with random weights, and right answers to the wrong questions."""

import random
from collections.abc import Callable
from typing import Any

import pytest

from bico_ext.comparison.config import CompareConfig
from bico_ext.comparison.initial_models import initial_model
from bico_ext.evaluation.evaluate import evaluate
from bico_ext.facts.loader import load_facts
from bico_ext.facts.types import FactData

SEED = 0
CHANCE = 0.02  # two answers of 100: one by accident, about one person


@pytest.fixture(scope="module")
def facts() -> FactData:
    return load_facts("synthetic")


def answering(facts: FactData, others: Callable[[list[str]], list[str]]) -> Callable[..., list[str]]:
    """A generator that answers each task's questions with its right answers, after they have changed places."""
    answers = {}
    for name, task in facts.tasks.items():
        entities = sorted({str(example.entity) for example in task.examples})
        place = dict(zip(entities, others(entities), strict=True))
        right = {str(example.entity): example.completion for example in task.examples}
        answers.update({(name, example.prompt): right[place[str(example.entity)]] for example in task.examples})

    def generator(model: Any, tokenizer: Any, prompts: list[str], **_: Any) -> list[str]:
        assert prompts == [example.prompt for task in facts.tasks.values() for example in task.examples]
        return [answers[name, example.prompt] for name, task in facts.tasks.items() for example in task.examples]

    return generator


def test_shuffled_answers_score_0(facts: FactData) -> None:
    """Every entity gets the answers of the next one, and each score of every task is 0."""
    summary = evaluate(
        None, None, facts.tasks, progress=False, generator=answering(facts, lambda names: [*names[1:], names[0]])
    ).summary()
    assert set(summary) == {"N2D", "D2N", "N2D-reverse", "D2N-reverse"}
    assert {task: (scores["contains"], scores["exact_match"]) for task, scores in summary.items()} == dict.fromkeys(
        summary, (0.0, 0.0)
    )


def test_right_answers_score_1(facts: FactData) -> None:
    """The same answers in their own places: the zeros above are not those of a metric that never says yes."""
    summary = evaluate(
        None, None, facts.tasks, progress=False, generator=answering(facts, lambda names: names)
    ).summary()
    names = {task: scores["contains"] for task, scores in summary.items() if facts.tasks[task].answer == "name"}
    assert names == {"D2N": 1.0, "N2D-reverse": 1.0}


def test_random_weights_score_at_chance(facts: FactData) -> None:
    """Generation hits nothing; the log-probability test prefers the right answer as often as the wrong one."""
    print(f"seed {SEED}")
    config = CompareConfig("unused", data="synthetic", model="tiny", hidden_size=32, layers=1)
    model, tokenizer = initial_model(config, facts, "llama", SEED)
    some = {
        name: type(task)(task.name, task.answer, tuple(random.Random(SEED).sample(task.examples, 100)))
        for name, task in facts.tasks.items()
    }
    summary = evaluate(model, tokenizer, some, likelihood=True, progress=False).summary()
    assert len(summary) == 4
    for task, scores in summary.items():
        test = scores["likelihood"]
        assert scores["contains"] <= CHANCE, task
        assert scores["exact_match"] == 0, task
        assert abs(test["preferred"] - 0.5) < 0.2, task  # 30 entities: a standard error of .09
        assert test["t_p"] > 0.01, task
