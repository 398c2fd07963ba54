"""Proof that training is one-directional: no training text answers a reverse question, or holds a test prompt."""

import re
from functools import lru_cache
from typing import NamedTuple

from bico_ext.cjk import CJK
from bico_ext.evaluation.metrics import normalised, normalised_target
from bico_ext.facts.types import FactData, Question, Task, is_reverse

_LETTER = rf"[^\W{CJK}]"  # of a script that writes words apart


class Leak(NamedTuple):
    """A training text that gives a question away.

    Attributes:
        task: the question's.
        question: which.
        text: the training text, prompt and completion.
    """

    task: str
    question: Question
    text: str


def leakage(facts: FactData) -> list[Leak]:
    """Finds training texts that give away the answer to a question; sound data has none.

    Two rules, over `facts.train` and `facts.pretraining` (`facts.other_order` is meant to break the second one):

    1. No training text, and none in the other order, contains the prompt of a question, of any task, verbatim; but for
       a longer name that ends in its first word ("Papua New Guinea's capital is" does not ask for Guinea's); any
       capitalised word before a capitalised prompt is taken for the start of one.
    2. No training text holds what a reverse question gives and, after it, the question's target, both as
       `metrics.contains` compares them. What is given is known from the entity: its name where the prompt has it, and
       the answers to the forward questions about the same entity. For example, N2D-reverse gives the description
       that N2D asks for, so no text may hold that description and then the name. For a question without an entity
       only the first rule applies.

    A reverse task is one that has a counterpart or a name as `data.is_reverse` knows it. The second rule finds what is given
    where it is written as in a question; a paraphrase that no question uses passes.

    Args:
        facts: training texts and tasks.

    Returns:
        Each text with each question that it gives away, once, in the order of tasks, questions and texts.

    Raises:
        ValueError: a target has no text.

    Example:
        >>> from bico_ext.facts.loader import load_facts
        >>> leakage(load_facts("synthetic"))
        []
    """
    texts = {text: normalised(text) for text in (example.text for example in (*facts.train, *facts.pretraining))}
    prompted = dict.fromkeys((*texts, *(example.text for example in facts.other_order)))
    answers = _forward_answers(facts)
    leaks = []
    for task in facts.tasks.values():
        holders: dict[str, dict[str, str]] = {}  # target -> the texts that hold it: few, so what follows is cheap
        for question in task.examples:
            found = {text for text in prompted if question.prompt in text and _asks(question.prompt, text)}
            if _is_reverse(task) and question.entity is not None:
                target = normalised_target(question.completion, task.answer)
                given = (answers.get(question.entity, set()) | _named(question.entity, question.prompt)) - {target}
                if target not in holders:
                    holders[target] = {text: lowered for text, lowered in texts.items() if _places(target, lowered)}
                found |= {text for text, lowered in holders[target].items() if _follows(target, given, lowered)}
            leaks += [Leak(task.name, question, text) for text in prompted if text in found]
    return leaks


def _forward_answers(facts: FactData) -> dict[str, set[str]]:
    """By entity, what the forward questions about it ask for: what the reverse ones give."""
    answers: dict[str, set[str]] = {}
    for task in facts.tasks.values():
        for question in task.examples:
            if question.entity is not None and not _is_reverse(task):
                answers.setdefault(question.entity, set()).add(normalised_target(question.completion, task.answer))
    return answers


def _is_reverse(task: Task) -> bool:
    return task.counterpart is not None or is_reverse(task.name)


def _places(part: str, text: str) -> list[int]:
    """Where a text holds a part as whole words: "Bo" is not in "about", nor "Neil" in "O'Neil"."""
    if part not in text:  # nearly always, and quick
        return []
    return [match.start() for match in _whole_words(part).finditer(text)]


@lru_cache(maxsize=10_000)
def _whole_words(part: str) -> re.Pattern[str]:
    before = rf"(?<!{_LETTER})(?<!{_LETTER}['\u2019-])" if re.match(_LETTER, part) else ""
    after = rf"(?!{_LETTER})" if re.search(_LETTER + r"\Z", part) else ""
    return re.compile(before + re.escape(part) + after)


def _asks(prompt: str, text: str) -> bool:
    """Whether the text holds the prompt, and not as the end of a longer name: after a capitalised word and a space."""
    longer_name = re.compile(r"\b[A-Z]\w* \Z") if prompt[:1].isupper() else None
    return any(longer_name is None or not longer_name.search(text[:place]) for place in _places(prompt, text))


def _named(entity: str, prompt: str) -> set[str]:
    """The entity's name, if that is what the prompt gives."""
    name = normalised(entity).strip()
    return {name} if name and _places(name, normalised(prompt)) else set()


def _follows(target: str, given: set[str], text: str) -> bool:
    """Whether the target stands after something given: after its earliest place, which leaves the most room."""
    last = _places(target, text)[-1]
    return any(places and places[0] + len(one) <= last for one in given if (places := _places(one, text)))
