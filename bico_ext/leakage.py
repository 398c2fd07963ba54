"""Proof that training is one-directional: no training text answers a reverse question, or holds a test prompt."""

from typing import NamedTuple

from bico_ext.data import FactData, Question, Task, is_reverse
from bico_ext.metrics import normalised, normalised_target

_SENTENCE_ENDS = ".!?:;\"'\u201d\u3002\uff01\uff1f\uff1a\uff1b"


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

    1. No training text, and none in the other order, contains the prompt of a question, of any task, verbatim, at the
       start of the text or of a sentence in it.
    2. No training text holds what a reverse question gives and, after it, the question's target, both as
       `metrics.contains` compares them. What is given is known from the entity: its name where the prompt has it, and
       the answers to the forward questions about the same entity. For example, N2D-reverse gives the description
       that N2D asks for, so no text may hold that description and then the name. For a question without an entity
       only the first rule applies.

    A reverse task is one that has a twin or a name as `data.is_reverse` knows it. The second rule finds what is given
    where it is written as in a question; a paraphrase that no question uses passes.

    Args:
        facts: training texts and tasks.

    Returns:
        Each text with each question that it gives away, once, in the order of tasks, questions and texts.

    Raises:
        ValueError: a target has no text.

    Example:
        >>> from bico_ext.data import load_facts
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
            found = {text for text in prompted if _asks(question.prompt, text)}
            if _is_reverse(task) and question.entity is not None:
                target = normalised_target(question.completion, task.answer)
                given = (answers.get(question.entity, set()) | _named(question.entity, question.prompt)) - {target}
                if target not in holders:
                    holders[target] = {text: lowered for text, lowered in texts.items() if target in lowered}
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
    return task.twin is not None or is_reverse(task.name)


def _asks(prompt: str, text: str) -> bool:
    """Whether a sentence of the text begins with the prompt: "Guinea's capital is" does not ask of Papua New Guinea."""
    place = text.find(prompt)
    while place >= 0:
        before = text[:place].rstrip()
        if not before or before[-1] in _SENTENCE_ENDS:
            return True
        place = text.find(prompt, place + 1)
    return False


def _named(entity: str, prompt: str) -> set[str]:
    """The entity's name, if that is what the prompt gives."""
    name = normalised(entity).strip()
    return {name} if name and name in normalised(prompt) else set()


def _follows(target: str, given: set[str], text: str) -> bool:
    """Whether the target stands after something given: after its earliest place, which leaves the most room."""
    return any(one in text and target in text[text.index(one) + len(one) :] for one in given)
