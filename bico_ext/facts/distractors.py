"""Wrong answers of the same kind, for the log-probability test."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain

from bico_ext.facts.types import Question


def draw_distractors(questions: Sequence[Question], seed: int = 0) -> tuple[Question, ...]:
    """Gives each question that has no distractor the answer to another one, about another entity.

    Args:
        questions: of one task.
        seed: draws them; the default is what the sources of `load_facts` use.

    Returns:
        The questions in their order. A distractor is an answer in the same template where there is one, so that it
        continues the prompt as grammatically as the right one does; it is None where all entities share one answer.

    Example:
        >>> asked = [Question("Who wrote it?", " Ada", "Ada"), Question("Who sang it?", " Bo", "Bo")]
        >>> [question.distractor for question in draw_distractors(asked)]
        [' Bo', ' Ada']
    """
    rng = random.Random(seed)
    by_template: dict[str | None, list[Question]] = {}
    right: dict[str | None, set[str]] = {}
    for one in questions:
        by_template.setdefault(one.template, []).append(one)
        right.setdefault(one.entity, set()).add(one.completion)

    def turned(others: Sequence[Question]) -> Iterator[str]:
        start = rng.randrange(len(others))
        return (others[(start + step) % len(others)].completion for step in range(len(others)))

    def draw(question: Question) -> str | None:
        known = {question.completion} if question.entity is None else right[question.entity]
        answers = chain(turned(by_template[question.template]), turned(questions))
        return next((answer for answer in answers if answer not in known), None)

    return tuple(one if one.distractor else replace(one, distractor=draw(one)) for one in questions)
