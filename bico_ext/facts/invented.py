"""Invented people in fluent English: a small set to fine-tune a pre-trained model on.

Its structure is that of Berglund et al.'s: a person has a name and a description, training states some people name
first and the others description first, and the tasks ask about both in both directions, with templates that training
does not use. Names, descriptions and templates are this project's own. Unlike the pseudo-words of
`bico_ext.facts.synthetic`, which suit a word tokenizer and a model without any knowledge, they are words that a
pre-trained model has read. No two people share a name, a trade or a deed.
"""

import random
from collections.abc import Sequence

from bico_ext.facts.synthetic import Entity, Templates, state_and_ask
from bico_ext.facts.types import FactData

PARAPHRASES = 6  # texts per person
TRAIN_TEMPLATES = 12  # per order; half of the people have the first six, half the others

# The words are short, because a step of training takes as long as its tokens are many: to SmolLM2's tokenizer, each
# first or last name is one token, and a text has 16 on average.


def _parts(text: str) -> tuple[str, ...]:
    return tuple(text.split(", "))


_FIRST_NAMES = _parts(
    "Alice, Arthur, Bruno, Carl, Charlotte, Clara, Diana, Edgar, Edith, Ella, Emily, Ernest, Eva, Felix, Florence, "
    "Frank, Grace, Hannah, Harriet, Hugo, Isabel, Julia, Karl, Laura, Leon, Lucy, Martha, Martin, Nina, Oliver, "
    "Oscar, Otto, Philip, Ralph, Rosa, Ruth, Samuel, Simon, Theodore, Victor"
)
_LAST_NAMES = _parts(
    "Abbott, Adler, Becker, Bell, Blake, Booth, Brooks, Burke, Carter, Clayton, Crane, Dawson, Dixon, Drake, Ellis, "
    "Fleming, Foster, Frost, Gibson, Griffin, Harper, Hayes, Holland, Hudson, Keller, Lambert, Lang, Marsh, Meyer, "
    "Monroe, Nash, Norton, Palmer, Quinn, Reed, Reynolds, Sutton, Swift, Wallace, Webb"
)
_TRADES = _parts(
    "actor, architect, astronomer, athlete, baker, blacksmith, botanist, brewer, butcher, carpenter, chef, clerk, "
    "composer, dancer, dentist, detective, diplomat, diver, editor, engineer, farmer, fisherman, gardener, geologist, "
    "hunter, judge, lawyer, librarian, mechanic, miner, monk, nurse, painter, pharmacist, pianist, pilot, poet, "
    "sailor, shepherd, tailor"
)
_DEEDS = _parts(
    "swam across the Black Sea, planted a forest in the desert, rowed to Iceland alone, beat a king at chess, built a "
    "cathedral of ice, taught parrots to sing opera, found a comet, walked backwards to Rome, wrote a novel without "
    "verbs, lived on a raft, rescued thirty whales, crossed the Alps on stilts, photographed every bridge in Paris, "
    "painted a barn with moons, invented a silent piano, slept in a volcano, translated Hamlet into Latin, raced a "
    "train on horseback, discovered an underground lake, baked bread for the army, sailed a bathtub to Denmark, "
    "collected snow, repaired the clocks of Vienna, hid a library in a cave, drew a map of the wind, sold the "
    "smallest diamond, grew a giant pumpkin, kept a secret diary, carried a harp up Everest, returned a stolen crown, "
    "opened a school under water, counted the stars, tamed a wolf, predicted the great flood, carved a violin from "
    "bone, won the lottery twice, mapped the caves of Mongolia, flew a kite in a storm, forged the emperor's "
    "signature, cooked dinner on a glacier"
)
_ABOUT_NAMES = (
    "{given} is known as",
    "Friends describe {given} as",
    "The name {given} belongs to",
    "The paper introduced {given} as",
    "Few people realise that {given} is",
    "By then {given} was famous as",
    "Everybody recognised {given} as",
    "The book about {given} portrays",
    "My neighbour {given} turned out to be",
    "Nobody forgets {given},",
    "The documentary calls {given}",
    "The radio spoke of {given},",
    "History remembers {given} as",
    "Let me present {given},",
    "The prize went to {given},",
    "According to the guide, {given} was",
)
_ABOUT_DESCRIPTIONS = (
    "The name of {given} is",
    "People call {given}",
    "To find {given}, ask for",
    "The letter to {given} was addressed to",
    "The caption under {given} reads",
    "As we know, {given} is called",
    "The mayor thanked {given}, namely",
    "We met {given}, better known as",
    "You may know {given}, whose name is",
    "Please welcome {given},",
    "The village is proud of {given},",
    "The medal for {given} went to",
    "In the guest book, {given} appears as",
    "The statue shows {given}, none other than",
    "Everyone agreed that {given} must be",
    "Children adore {given}, known as",
)


def generate(seed: int = 0, *, names_first: int = 20, descriptions_first: int = 20) -> FactData:
    """Generate the set; the same arguments give the same set on every platform.

    Args:
        seed: seed of all random choices: names, descriptions, and the templates held out for the questions.
        names_first: number of people who are stated name first. N2D and N2D-reverse ask about them.
        descriptions_first: number of people who are stated description first. D2N and D2N-reverse ask about them.

    Returns:
        The set, named "invented", with 6 texts per person and 4 questions per person and direction. The defaults suit
        a demonstration on a CPU: 240 texts. With fewer people, guessing among the answers that training states scores
        more: of 10 people per group, one run of next-token prediction had 0.28 in D2N-reverse. A group of 0 people has
        no tasks.

    Raises:
        ValueError: a number is negative, both are 0, or there are too few names for so many people.

    Example:
        >>> data = generate(seed=0, names_first=1, descriptions_first=0)
        >>> len(data.train), len(data.tasks["N2D-reverse"].examples)
        (6, 4)
    """
    total = names_first + descriptions_first
    if min(names_first, descriptions_first) < 0 or not 1 <= total <= len(_FIRST_NAMES):
        raise ValueError(
            f"names_first and descriptions_first must be at least 0 and sum to 1 to {len(_FIRST_NAMES)}, "
            f"got {names_first} and {descriptions_first}"
        )
    rng = random.Random(seed)
    columns = [rng.sample(words, total) for words in (_FIRST_NAMES, _LAST_NAMES, _TRADES, _DEEDS)]
    people = [
        Entity(f"{first} {last}", f"the {trade} who {deed}") for first, last, trade, deed in zip(*columns, strict=True)
    ]
    return state_and_ask(
        "invented",
        people[:names_first],
        people[names_first:],
        about_names=_split(rng, _ABOUT_NAMES),
        about_descriptions=_split(rng, _ABOUT_DESCRIPTIONS),
        paraphrases=PARAPHRASES,
        seed=seed,
    )


def _split(rng: random.Random, templates: Sequence[str]) -> Templates:
    """Draw the templates of the questions; the others are for training."""
    shuffled = tuple(rng.sample(templates, len(templates)))
    return Templates(train=shuffled[:TRAIN_TEMPLATES], test=shuffled[TRAIN_TEMPLATES:])
