"""Facts to train on and questions to test them with, as prompt and completion pairs.

A training text is exactly `prompt + completion`, with nothing in between. A fact links a name and a description. Its
training texts state it in one order or in both orders. A task gives one of the two and asks for the other:

    N2D          name-first facts, asked in the trained order: the answer is a description
    D2N          description-first facts, asked in the trained order: the answer is a name
    N2D-reverse  name-first facts, given the description: the answer is a name
    D2N-reverse  description-first facts, given the name: the answer is a description

Other data sets have other tasks. The task `<task>-reverse` always asks for the facts of `<task>` the other way round.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal

Answer = Literal["name", "description"]

ANSWERS: dict[str, Answer] = {
    "N2D": "description",
    "D2N": "name",
    "N2D-reverse": "name",
    "D2N-reverse": "description",
}
TASKS: tuple[str, ...] = tuple(ANSWERS)
# The forward counterpart of each reverse task. N2D and D2N-reverse both ask for a description, in the same templates.
COUNTERPARTS = {"N2D-reverse": "D2N", "D2N-reverse": "N2D"}


@dataclass(frozen=True)
class Example:
    """A text in two parts: a prompt and its completion.

    Attributes:
        prompt: the first part. It is never empty and does not end with a space.
        completion: the rest, starting with a space. In a task, it is the expected answer.
    """

    prompt: str
    completion: str

    @property
    def text(self) -> str:
        """The whole text, `prompt + completion`."""
        return self.prompt + self.completion


@dataclass(frozen=True)
class Question(Example):
    """A prompt for the model to continue; `completion` is the expected answer, or the main one of several.

    Attributes:
        entity: the entity that the question is about, for scores per entity. None if the data does not tell.
        template: the prompt with "..." in place of the entity, for scores per template. None if the data does not tell.
        distractor: a wrong answer of the same kind, for the log-probability test. None if there is none.
        also: further answers that are right, too, each in the form of `completion`.

    Example:
        >>> Question("A child of Mary is", " Tom", also=(" Ann",)).accepted
        (' Tom', ' Ann')
    """

    entity: str | None = None
    template: str | None = None
    distractor: str | None = None
    also: tuple[str, ...] = ()

    @property
    def accepted(self) -> tuple[str, ...]:
        """All right answers, the main one first."""
        return (self.completion, *self.also)


@dataclass(frozen=True)
class Task:
    """Questions of one kind.

    Attributes:
        name: the task's name in reports.
        answer: the kind of answer, "name" or "description". It decides the metric.
        examples: the questions, each with its expected answers.
        counterpart: the forward counterpart of a reverse task: the forward task that asks the same kind of question,
            about facts that training states in that order. Its score is what the reverse task could reach. None for a
            forward task.
    """

    name: str
    answer: Answer
    examples: tuple[Question, ...]
    counterpart: str | None = None


# Digests stand in results files. So they keep the names that fields had when the first files were written, and they
# leave out a later field that holds nothing.
_HASHED_NAMES = {"template": "frame", "counterpart": "twin"}
_HASHED_IF_SET = {"also"}


def _hashed_form(value: Any) -> str:
    """Return the `repr` of a value, with fields of dataclasses under their hashed names."""
    if is_dataclass(value):
        known = {part.name: getattr(value, part.name) for part in fields(value)}
        parts = (
            f"{_HASHED_NAMES.get(name, name)}={_hashed_form(part)}"
            for name, part in known.items()
            if part or name not in _HASHED_IF_SET
        )
        return f"{type(value).__name__}({', '.join(parts)})"
    if isinstance(value, tuple):
        return f"({', '.join(map(_hashed_form, value))}{',' if len(value) == 1 else ''})"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key!r}: {_hashed_form(part)}' for key, part in value.items())}}}"
    return repr(value)


@dataclass(frozen=True)
class FactData:
    """A training set and the tasks that test it.

    Attributes:
        name: the set's name in reports.
        train: the training texts. `load_facts` never returns a set without them.
        tasks: the tasks by name, forward tasks first. A set may have none.
        pretraining: texts that state facts about other entities in both orders, for pre-training before fine-tuning.
            They are part of `train` if it holds such entities, and separate from it otherwise. Empty if there are none.
        other_order: the facts of `one_order`, stated in the other order. Only the system that measures the upper bound
            of data augmentation trains on them. Empty if they are not known.
        one_order: the texts of `train` about entities that are stated in one order only. A model pre-trained on
            `pretraining` is fine-tuned on them. Empty if they are not known.
    """

    name: str
    train: tuple[Example, ...]
    tasks: dict[str, Task]
    pretraining: tuple[Example, ...] = ()
    other_order: tuple[Example, ...] = ()
    one_order: tuple[Example, ...] = ()

    def digest(self) -> str:
        """Return a hash of all texts and questions (16 hex digits), which tells apart sets of the same name."""
        texts = (self.train, self.tasks, self.pretraining, self.other_order, self.one_order)
        return hashlib.blake2b(_hashed_form(texts).encode(), digest_size=8).hexdigest()


def is_reverse(task: str) -> bool:
    """Tell by its name whether a task asks for facts in the order that training does not state."""
    return task == "reverse" or task.endswith("-reverse")


def counterpart_of(task: str, answers: Mapping[str, Answer]) -> str | None:
    """Return the forward counterpart of a task, found by the names of the tasks and their kinds of answer.

    Args:
        task: the task's name.
        answers: the kind of answer of each task of the set.

    Returns:
        For the four tasks of this module, the counterpart in `COUNTERPARTS` if the set has it. For another reverse
        task, the only forward task with the same kind of answer. None for a forward task, and if there is no such task
        or more than one.

    Example:
        >>> counterpart_of("mother-reverse", {"mother": "name", "mother-reverse": "name"})
        'mother'
    """
    if not is_reverse(task):
        return None
    if task in COUNTERPARTS:
        return COUNTERPARTS[task] if COUNTERPARTS[task] in answers else None
    alike = [other for other, answer in answers.items() if not is_reverse(other) and answer == answers[task]]
    return alike[0] if len(alike) == 1 else None
