"""A fictitious fact data set in the shape of Berglund et al.'s, generated from a seed without download or licence.

An entity has a name of two pseudo-words, and a description with three more pseudo-words that no other entity has.
Training states some entities name first, some description first and some in both orders. The tasks ask about the
entities that are stated in one order only, in both directions.

Experiments showed what a two-layer model can learn from scratch. It did not learn descriptions made of shared words
only, entities with few paraphrases, or questions with words that training never used. So the three own words fill four
slots of a description, each entity has 30 paraphrases per order, and a test template is a new combination of two halves
that occur separately in training.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from bico_ext.facts.distractors import draw_distractors
from bico_ext.facts.pairs import GIVEN
from bico_ext.facts.types import ANSWERS, Example, FactData, Question, Task, counterpart_of

PARAPHRASES = 30  # texts per entity and order, as in Berglund et al.
TEST_TEMPLATES = 5  # per task

_ONSETS = "b d f g h k l m n p r s t v z br dr gl kr st tr"
_VOWELS = "a e i o u"
_CODAS = "l m n r s th x"
_WORDS_PER_ENTITY = 5  # two in the name, three in the description
_MOST_ENTITIES = len(_ONSETS.split()) ** 2 * len(_VOWELS.split()) ** 2 * len(_CODAS.split()) // _WORDS_PER_ENTITY

# Words that entities share, by the slot that they fill in a description.
_SHARED_WORDS = {
    "adjective": "acclaimed brilliant celebrated daring eccentric fearless gentle humble inventive legendary modest "
    "patient renowned stubborn tireless visionary",
    "role": "architect astronomer baker botanist carpenter composer diver engineer gardener historian librarian "
    "painter pilot sailor surgeon teacher",
    "verb": "built catalogued charted designed discovered funded guarded inherited rescued restored revealed sold",
    "object": "archive bridge cathedral clock fountain garden harbour lantern library museum observatory orchard "
    "palace railway ship telescope",
}
# Every form of the description has four slots for the entity's own words, so that no form is easier than another.
_DESCRIPTIONS = (
    'the {adjective} {role} who {verb} the {u1} {u2} {object}, "The {u3} {u4}"',
    'the {adjective} {role} from {u1} {u2} who {verb} the {object} known as "The {u3} {u4}"',
    'the {role} who {verb} the {adjective} {object} of {u1} {u2} and wrote "The {u3} {u4}"',
    'the {u1} {u2} {role} who wrote "The {u3} {u4}" and {verb} the {adjective} {object}',
)

# No prefix is the start of another prefix, and no clause the start of another clause. Otherwise a held-out prompt could
# be the start of a training text.
_NAME_PREFIXES = (
    "Many people know that",
    "As the story goes,",
    "In the old days,",
    "Everyone agrees that",
    "According to the records,",
    "It is no secret that",
    "Far from home,",
    "The papers wrote that",
    "After many years,",
    "To this day,",
)
_NAME_CLAUSES = (
    " is known as",
    " was celebrated as",
    " became famous as",
    " is remembered as",
    " made a living as",
    " introduced themselves as",
    " turned out to be",
)
_DESCRIPTION_PREFIXES = (
    "You may have heard that",
    "By all accounts,",
    "The answer is simple:",
    "Behind the scenes,",
    "Every child learns that",
    "At the ceremony,",
    "Historians believe that",
    "Without any doubt,",
    "On the last page,",
    "Visitors are told that",
)
_DESCRIPTION_CLAUSES = (
    " is called",
    " goes by the name of",
    " is none other than",
    " was introduced as",
    " answers to the name",
    " signs every letter with",
    " can only be",
)


@dataclass(frozen=True)
class Entity:
    """What a fact links."""

    name: str
    description: str


@dataclass(frozen=True)
class Templates:
    """The templates of one order, with `GIVEN` in place of the name or the description; the answer follows.

    Attributes:
        train: those of the training texts.
        test: those of the questions.
    """

    train: tuple[str, ...]
    test: tuple[str, ...]


def generate(
    seed: int = 0, *, names_first: int = 30, descriptions_first: int = 30, both: int = 30, pretraining: int = 100
) -> FactData:
    """Generate a fact data set; the same arguments give the same set on every platform.

    With the defaults, the set has the size of Berglund et al.'s: 3,600 training texts. Each task has 5 questions per
    entity.

    Args:
        seed: seed of all random choices: the words, the descriptions and the templates held out for the questions.
        names_first: number of entities that are stated name first. N2D and N2D-reverse ask about them.
        descriptions_first: number of entities that are stated description first. D2N and D2N-reverse ask about them.
        both: number of entities that are stated in both orders, with 30 texts per order. No task asks about them. They
            show that a fact can be stated in either order.
        pretraining: number of entities of `FactData.pretraining`. They are stated in both orders, too, but are not part
            of `train`. They are drawn last, so their number does not change anything else.

    Returns:
        The set, named "synthetic". A group of 0 entities has no tasks.

    Raises:
        ValueError: a count is negative, all counts but `pretraining` are 0, or the pseudo-words do not suffice for that
            many entities.

    Example:
        >>> data = generate(seed=0, names_first=1, descriptions_first=0, both=0)
        >>> len(data.train), len(data.tasks["N2D-reverse"].examples)
        (30, 5)
    """
    counts = {"names_first": names_first, "descriptions_first": descriptions_first, "both": both}
    for argument, count in (*counts.items(), ("pretraining", pretraining)):
        if count < 0:
            raise ValueError(f"{argument} must be at least 0, got {count}")
    total = sum(counts.values())
    if total == 0:
        raise ValueError("names_first, descriptions_first and both are all 0; ask for at least one entity")
    if total + pretraining > _MOST_ENTITIES:
        raise ValueError(
            f"names_first + descriptions_first + both + pretraining must be at most {_MOST_ENTITIES}, "
            f"got {total + pretraining}: every entity needs its own pseudo-words"
        )
    rng = random.Random(seed)
    words = _pseudo_words()
    own_words, entities = _entities(rng, words, total)
    about_names = _templates(rng, _NAME_PREFIXES, _NAME_CLAUSES)
    about_descriptions = _templates(rng, _DESCRIPTION_PREFIXES, _DESCRIPTION_CLAUSES)
    _, others = _entities(rng, [word for word in words if word not in own_words], pretraining)
    return state_and_ask(
        "synthetic",
        entities[:names_first],
        entities[names_first : names_first + descriptions_first],
        both=entities[names_first + descriptions_first :],
        pretraining=others,
        about_names=about_names,
        about_descriptions=about_descriptions,
        seed=seed,
    )


def state_and_ask(
    name: str,
    names_first: Sequence[Entity],
    descriptions_first: Sequence[Entity],
    *,
    about_names: Templates,
    about_descriptions: Templates,
    seed: int,
    both: Sequence[Entity] = (),
    pretraining: Sequence[Entity] = (),
    paraphrases: int | None = None,
) -> FactData:
    """Make the training texts and the tasks of a set of names and descriptions.

    Args:
        name: the name of the set.
        names_first: the entities that are stated name first.
        descriptions_first: the entities that are stated description first.
        about_names: the templates that give a name.
        about_descriptions: the templates that give a description.
        seed: the seed of the choice of distractors.
        both: the entities that are stated in both orders; no task asks about them.
        pretraining: the entities of `FactData.pretraining`.
        paraphrases: the number of texts per entity and order. The entities of a group take so many of the training
            templates in turn. Default: one text for each template.

    Returns:
        The set. A group without entities has no tasks.

    Example:
        >>> ada = Entity("Ada", "the first programmer")
        >>> names = Templates(train=("{given} is",), test=("Here is {given},",))
        >>> descriptions = Templates(train=("I met {given},",), test=("Call {given}",))
        >>> data = state_and_ask("ada", [ada], [], about_names=names, about_descriptions=descriptions, seed=0)
        >>> data.train[0].text, data.tasks["N2D-reverse"].examples[0].text
        ('Ada is the first programmer.', 'Call the first programmer Ada')
    """

    def turn(templates: Sequence[str], place: int) -> list[str]:
        count = len(templates) if paraphrases is None else paraphrases
        return [templates[index % len(templates)] for index in range(place * count, (place + 1) * count)]

    def name_first(group: Sequence[Entity], start: int = 0) -> list[Example]:
        return [
            Example(template.replace(GIVEN, entity.name), f" {entity.description}.")
            for place, entity in enumerate(group, start)
            for template in turn(about_names.train, place)
        ]

    def description_first(group: Sequence[Entity], start: int = 0) -> list[Example]:
        return [
            Example(template.replace(GIVEN, entity.description), f" {entity.name}.")
            for place, entity in enumerate(group, start)
            for template in turn(about_descriptions.train, place)
        ]

    def both_orders(group: Sequence[Entity]) -> tuple[Example, ...]:
        return tuple(
            text
            for place, entity in enumerate(group)
            for text in (*name_first([entity], place), *description_first([entity], place))
        )

    def ask_description(group: Sequence[Entity]) -> list[Question]:
        return [
            Question(
                template.replace(GIVEN, entity.name),
                f" {entity.description}.",
                entity.name,
                template.replace(GIVEN, "..."),
            )
            for entity in group
            for template in about_names.test
        ]

    def ask_name(group: Sequence[Entity]) -> list[Question]:
        return [
            Question(
                template.replace(GIVEN, entity.description),
                f" {entity.name}",
                entity.name,
                template.replace(GIVEN, "..."),
            )
            for entity in group
            for template in about_descriptions.test
        ]

    asked = {
        "N2D": ask_description(names_first),
        "D2N": ask_name(descriptions_first),
        "N2D-reverse": ask_name(names_first),
        "D2N-reverse": ask_description(descriptions_first),
    }
    answers = {task: ANSWERS[task] for task, questions in asked.items() if questions}
    one_order = (*name_first(names_first), *description_first(descriptions_first))
    return FactData(
        name=name,
        train=(*one_order, *both_orders(both)),
        tasks={
            task: Task(task, answer, draw_distractors(asked[task], seed), counterpart_of(task, answers))
            for task, answer in answers.items()
        },
        pretraining=both_orders(pretraining),
        other_order=(*description_first(names_first), *name_first(descriptions_first)),
        one_order=one_order,
    )


def _pseudo_words() -> list[str]:
    onsets, vowels, codas = _ONSETS.split(), _VOWELS.split(), _CODAS.split()
    return ["".join(parts).capitalize() for parts in product(onsets, vowels, onsets, vowels, codas)]


def _entities(rng: random.Random, words: Sequence[str], count: int) -> tuple[set[str], list[Entity]]:
    """Return the pseudo-words that the entities use, and the entities."""
    drawn = rng.sample(words, count * _WORDS_PER_ENTITY)
    own_words = iter(drawn)
    return set(drawn), [_entity(rng, [next(own_words) for _ in range(_WORDS_PER_ENTITY)]) for _ in range(count)]


def _entity(rng: random.Random, words: Sequence[str]) -> Entity:
    first, last, *pool = words
    u1, u2, third = rng.sample(pool, 3)
    u3, u4 = rng.sample([third, rng.choice([u1, u2])], 2)  # one of the three words fills a second slot
    shared = {slot: rng.choice(words.split()) for slot, words in _SHARED_WORDS.items()}
    return Entity(f"{first} {last}", rng.choice(_DESCRIPTIONS).format(**shared, u1=u1, u2=u2, u3=u3, u4=u4))


def _templates(rng: random.Random, prefixes: Sequence[str], clauses: Sequence[str]) -> Templates:
    """Pair each prefix with three clauses for training, and five of the prefixes with a fourth clause for testing.

    The pairs are not drawn at random: each prefix takes the next clauses in shuffled order. This way both halves of
    every test template occur in training.
    """
    prefixes = rng.sample(prefixes, len(prefixes))
    clauses = rng.sample(clauses, len(clauses))
    per_prefix = PARAPHRASES // len(prefixes)

    def template(row: int, step: int) -> str:
        return f"{prefixes[row]} {GIVEN}{clauses[(row + step) % len(clauses)]}"

    train = tuple(template(row, step) for row in range(len(prefixes)) for step in range(per_prefix))
    return Templates(train, test=tuple(template(row, per_prefix) for row in range(TEST_TEMPLATES)))
