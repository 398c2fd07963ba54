"""Facts to train on and questions to test them with, as prompt and completion pairs.

A training text is `prompt + completion`, exactly: nothing is put in between. A fact links a name and a description;
its training texts state it in one order or in both, and a task asks for one of the two, given the other:

    N2D          name-first facts, asked in the trained order: the answer is a description
    D2N          description-first facts, asked in the trained order: the answer is a name
    N2D-reverse  name-first facts, given the description: the answer is a name
    D2N-reverse  description-first facts, given the name: the answer is a description

Other data sets have other tasks. A name that ends in "-reverse" always means the facts of the task before the hyphen,
asked the other way round.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Answer = Literal["name", "description"]

ANSWERS: dict[str, Answer] = {
    "N2D": "description",
    "D2N": "name",
    "N2D-reverse": "name",
    "D2N-reverse": "description",
}
TASKS: tuple[str, ...] = tuple(ANSWERS)
# By answer kind: N2D and D2N-reverse both ask for a description, in the same templates.
COUNTERPARTS = {"N2D-reverse": "D2N", "D2N-reverse": "N2D"}


@dataclass(frozen=True)
class Example:
    """A text in two parts: what is given and how it goes on.

    Attributes:
        prompt: never empty; does not end with a space.
        completion: what follows, starting with a space. In a task, the expected answer.
    """

    prompt: str
    completion: str

    @property
    def text(self) -> str:
        """The whole text, `prompt + completion`."""
        return self.prompt + self.completion


@dataclass(frozen=True)
class Question(Example):
    """A prompt to be continued; `completion` is the expected answer.

    Attributes:
        entity: what it asks about, for scores by entity; None where the data does not say.
        template: its prompt with "..." for the entity, for scores by template; None where the data does not say.
        distractor: a wrong answer of the same kind, for the log-probability test; None where there is none.
    """

    entity: str | None = None
    template: str | None = None
    distractor: str | None = None


@dataclass(frozen=True)
class Task:
    """Questions of one kind.

    Attributes:
        name: what a report calls it.
        answer: what the completions are, "name" or "description"; it decides the metric.
        examples: the questions, each with its expected answer as completion.
        counterpart: of a reverse task, the task that asks the same kind of question of facts stated in that very order, so
            that its score is what the reverse one can be expected to reach; None for a forward task.
    """

    name: str
    answer: Answer
    examples: tuple[Question, ...]
    counterpart: str | None = None


@dataclass(frozen=True)
class FactData:
    """A training set and the tasks that test it.

    Attributes:
        name: what a report calls it.
        train: the training texts; never empty when loaded by this module.
        tasks: by name, forward ones first; a set may have none.
        pretraining: texts about other entities, in both orders, for a model that is pre-trained before it is
            fine-tuned; empty where there are none. Part of `train` where that holds such entities, else apart from it.
        other_order: the facts of `one_order`, stated in the other order: for the upper bound that data augmentation
            reaches; empty where they are not known. No objective but that one sees them.
        one_order: the texts of `train` about entities that are stated in one order only: what a model that was
            pre-trained on `pretraining` is fine-tuned on; empty where they are not known.
    """

    name: str
    train: tuple[Example, ...]
    tasks: dict[str, Task]
    pretraining: tuple[Example, ...] = ()
    other_order: tuple[Example, ...] = ()
    one_order: tuple[Example, ...] = ()

    def digest(self) -> str:
        """What tells these facts from others of the same name: 16 hex digits of all texts and questions."""
        texts = (self.train, self.tasks, self.pretraining, self.other_order, self.one_order)
        return hashlib.blake2b(repr(texts).encode(), digest_size=8).hexdigest()


def is_reverse(task: str) -> bool:
    """Whether a task of this name asks its facts the other way round than training states them."""
    return task == "reverse" or task.endswith("-reverse")


def counterpart_of(task: str, answers: Mapping[str, Answer]) -> str | None:
    """The forward task that asks the same kind of question as a reverse task, as far as names and answers tell.

    Args:
        task: the task's name.
        answers: what each task of the set asks for.

    Returns:
        For the four tasks of this module what `COUNTERPARTS` says; for another reverse task the one forward task whose
        answers are of the same kind; None for a forward task, and where there is no such task or more than one.

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
