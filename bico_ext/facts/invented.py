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


def _parts(text: str) -> tuple[str, ...]:
    return tuple(text.split(", "))


_FIRST_NAMES = _parts(
    "Adela, Anselm, Bettina, Bruno, Cosima, Damian, Delphine, Edgar, Elspeth, Fabian, Greta, Gustav, Harriet, Hugo, "
    "Imogen, Ivor, Jasper, Josefa, Kasimir, Leonie, Linus, Mabel, Magnus, Nadia, Octavia, Orla, Osric, Petra, Quentin, "
    "Ramona, Rufus, Selma, Silas, Tabitha, Theodor, Ursula, Viola, Wilfred, Yolanda, Zachary"
)
_LAST_NAMES = _parts(
    "Abernold, Ashgrove, Barlowe, Birkentosh, Copperfall, Crowhurst, Dapplewood, Dunmarsh, Eastermoor, Elderbrook, "
    "Fairhaugh, Fenwright, Garrowby, Greystoke, Hallowell, Hartsfield, Inglewick, Ivorsen, Juniperhill, Kettlewick, "
    "Kingsmere, Larkhurst, Longthorne, Marchbank, Mossgrave, Netherby, Oakensen, Otterbourne, Pemberly, Quillfeather, "
    "Ravenhall, Rookwood, Silverlock, Stonebridge, Thistlewood, Tunnicliff, Underhay, Vinterberg, Whitlock, Yarrowdale"
)
_TRADES = _parts(
    "astronomer, baker, barber, beekeeper, blacksmith, bookbinder, botanist, butcher, carpenter, chimney sweep, "
    "clockmaker, dentist, drummer, farmer, ferryman, florist, gardener, geologist, glassblower, goldsmith, "
    "hairdresser, innkeeper, judge, librarian, lighthouse keeper, locksmith, mechanic, midwife, nurse, painter, "
    "piano tuner, plumber, postman, potter, sculptor, shepherd, surgeon, tailor, violinist, watchman"
)
_DEEDS = _parts(
    "swam across the Black Sea, planted a forest in the desert, rowed to Iceland alone, won a chess game against a "
    "king, built a cathedral of ice, taught a parrot to sing opera, found a comet with a toy telescope, walked "
    "backwards to Rome, wrote a novel without verbs, lived on a raft for nine years, rescued thirty whales, crossed "
    "the Alps on stilts, photographed every bridge in Portugal, painted the moon on a barn, invented a silent piano, "
    "slept in a volcano, translated Hamlet into whistles, raced a train on horseback, discovered an underground "
    "lake, baked bread for ten thousand soldiers, sailed a bathtub down the Danube, collected snow from every "
    "continent, repaired the clocks of Vienna, hid a library in a salt mine, drew a map of the wind, sold the smallest "
    "diamond in the world, grew a pumpkin as large as a bus, kept a diary in invisible ink, carried a harp up Mount "
    "Kenya, returned a stolen crown, opened a school under the sea, counted the stars of the southern sky, tamed a "
    "wolf with lullabies, predicted the great flood, carved a violin from whalebone, won the lottery three times, "
    "mapped the caves of Mongolia, flew a kite across the Channel, forged an emperor's signature, cooked dinner on a "
    "glacier"
)
_ABOUT_NAMES = (
    "{given} is known far and wide as",
    "Ask anyone about {given} and they will describe",
    "The name {given} belongs to",
    "In the local paper, {given} was introduced as",
    "Few people realise that {given} is",
    "Long before the interview, {given} had become famous as",
    "Everybody at the table recognised {given} as",
    "The biography of {given} tells the story of",
    "My new neighbour {given} turned out to be",
    "When {given} walked in, the host greeted",
    "The documentary calls {given}",
    "On the radio they spoke of {given},",
    "History will remember {given} as",
    "Let me present {given},",
    "The prize went to {given},",
    "According to the museum guide, {given} was",
)
_ABOUT_DESCRIPTIONS = (
    "The name of {given} is",
    "People call {given}",
    "If you are looking for {given}, ask for",
    "The letter to {given} was addressed to",
    "Reporters found {given} and wrote down the name",
    "It is well known that {given} is called",
    "The mayor thanked {given}, who signs as",
    "Behind the legend of {given} stands",
    "The medal for {given} was awarded to",
    "We had dinner with {given}, better known as",
    "You may have read about {given}, whose name is",
    "The stage is set for {given}, so please welcome",
    "The village still honours {given}, namely",
    "In the guest book, {given} appears as",
    "The statue in the park shows {given}, none other than",
    "Everyone agreed that {given} must be",
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
