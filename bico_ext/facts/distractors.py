"""Wrong answers of the same kind, for the log-probability test."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain

from bico_ext.facts.types import Question


def draw_distractors(questions: Sequence[Question], seed: int = 0) -> tuple[Question, ...]:
    """Give each question without a distractor the answer to a question about another entity.

    Args:
        questions: the questions of one task.
        seed: seed of the random choice. The readers of files use the default.

    Returns:
        The questions in the same order. A distractor is the main answer to a question, of the same template if
        possible, so that it continues the prompt as grammatically as the right answer. It is never an answer that a
        question about the entity accepts. It is None if no other answer is left.

    Example:
        >>> asked = [Question("Who wrote it?", " Ada", "Ada"), Question("Who sang it?", " Bo", "Bo")]
        >>> [question.distractor for question in draw_distractors(asked)]
        [' Bo', ' Ada']
    """
    rng = random.Random(seed)
    by_template: dict[str | None, list[Question]] = {}
    right: dict[str | None, set[str]] = {}
    for question in questions:
        by_template.setdefault(question.template, []).append(question)
        right.setdefault(question.entity, set()).update(question.accepted)

    def from_a_random_one(others: Sequence[Question]) -> Iterator[str]:
        """All answers, in a cycle that starts at a random one."""
        start = rng.randrange(len(others))
        return (others[(start + step) % len(others)].completion for step in range(len(others)))

    def draw(question: Question) -> str | None:
        known = set(question.accepted) if question.entity is None else right[question.entity]
        answers = chain(from_a_random_one(by_template[question.template]), from_a_random_one(questions))
        return next((answer for answer in answers if answer not in known), None)

    return tuple(
        question if question.distractor else replace(question, distractor=draw(question)) for question in questions
    )
