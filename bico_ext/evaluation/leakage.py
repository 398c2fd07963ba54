"""A check that training is one-directional: no training text answers a reverse question or contains a test prompt."""

import re
from functools import lru_cache
from typing import NamedTuple

from bico_ext.cjk import CJK
from bico_ext.evaluation.metrics import normalised, normalised_target
from bico_ext.facts.types import FactData, Question, Task, is_reverse

_LETTER = rf"[^\W{CJK}]"  # a letter of a script that separates words


class Leak(NamedTuple):
    """A training text that gives away the answer to a question.

    Attributes:
        task: the name of the question's task.
        question: the question.
        text: the training text, prompt and completion.
    """

    task: str
    question: Question
    text: str


def leakage(facts: FactData) -> list[Leak]:
    """Find the training texts that give away the answer to a question; sound data has none.

    Two rules apply to `facts.train` and `facts.pretraining`. The first also applies to `facts.other_order`, whose
    purpose is to break the second.

    1. No text contains the prompt of a question verbatim. One case is allowed: the prompt follows a capitalised word
       and starts with a capital itself. Then the text is about a longer name: "Papua New Guinea's capital is" does not
       ask for the capital of Guinea. The rule skips a forward task if each of its questions, with a right answer,
       starts a training text: such a task asks, on purpose, for what training states in the same words.
    2. No text contains what a reverse question gives and, later, one of the question's right answers, both compared as
       in `metrics.contains`. A question gives the name of its entity, if the prompt contains it, and the right answers
       to the forward questions about the same entity. For example, N2D-reverse gives the description that N2D asks
       for, so no text may contain this description and later the name. This rule skips questions without an entity.

    A task is a reverse task if it has a forward counterpart, or by its name (`bico_ext.facts.types.is_reverse`). The
    second rule only finds the given text as some question writes it. It misses a paraphrase that no question uses.

    Args:
        facts: the training texts and tasks.

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
        # The texts that contain a target, by target. They are few, so the search in them is cheap.
        holders: dict[str, dict[str, str]] = {}
        as_trained = not _is_reverse(task) and all(
            any(text.startswith(tuple(question.prompt + answer for answer in question.accepted)) for text in texts)
            for question in task.examples
        )
        for question in task.examples:
            asked = () if as_trained else prompted
            found = {text for text in asked if question.prompt in text and _asks(question.prompt, text)}
            if _is_reverse(task) and question.entity is not None:
                targets = _targets(question, task)
                given = (answers.get(question.entity, set()) | _named(question.entity, question.prompt)) - targets
                for target in targets:
                    if target not in holders:
                        holders[target] = {text: lowered for text, lowered in texts.items() if _starts(target, lowered)}
                    found |= {text for text, lowered in holders[target].items() if _follows(target, given, lowered)}
            if found:
                leaks += [Leak(task.name, question, text) for text in prompted if text in found]
    return leaks


def _forward_answers(facts: FactData) -> dict[str, set[str]]:
    """Return the answers to the forward questions about each entity, which the reverse questions give."""
    answers: dict[str, set[str]] = {}
    for task in facts.tasks.values():
        for question in task.examples:
            if question.entity is not None and not _is_reverse(task):
                answers.setdefault(question.entity, set()).update(_targets(question, task))
    return answers


def _targets(question: Question, task: Task) -> set[str]:
    return {normalised_target(answer, task.answer) for answer in question.accepted}


def _is_reverse(task: Task) -> bool:
    return task.counterpart is not None or is_reverse(task.name)


def _starts(part: str, text: str) -> list[int]:
    """Return where a text contains a part as whole words: "Bo" is not in "about", nor "Neil" in "O'Neil"."""
    if part not in text:  # quick, and nearly always true
        return []
    return [match.start() for match in _whole_words(part).finditer(text)]


@lru_cache(maxsize=10_000)
def _whole_words(part: str) -> re.Pattern[str]:
    before = rf"(?<!{_LETTER})(?<!{_LETTER}['\u2019-])" if re.match(_LETTER, part) else ""
    after = rf"(?!{_LETTER})" if re.search(_LETTER + r"\Z", part) else ""
    return re.compile(before + re.escape(part) + after)


def _asks(prompt: str, text: str) -> bool:
    """Tell whether the text contains the prompt, and not only as the end of a longer name; see `leakage`."""
    longer_name = re.compile(r"\b[A-Z]\w* \Z") if prompt[:1].isupper() else None
    return any(longer_name is None or not longer_name.search(text[:start]) for start in _starts(prompt, text))


def _named(entity: str, prompt: str) -> set[str]:
    """Return the entity's name if the prompt contains it."""
    name = normalised(entity).strip()
    return {name} if name and _starts(name, normalised(prompt)) else set()


def _follows(target: str, given: set[str], text: str) -> bool:
    """Tell whether the target's last occurrence comes after the first occurrence of a given part."""
    last = _starts(target, text)[-1]
    return any(starts and starts[0] + len(part) <= last for part in given if (starts := _starts(part, text)))
