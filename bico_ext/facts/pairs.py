"""Fact data from pairs of texts that belong together, such as two lines of a couplet.

A pair has a first and a second text. One third of the pairs is stated with the first text first, one third with the
second text first, and one third in both orders. So training shows how questions in both directions are put, but states
the pairs that the tasks ask about in one order only. The four tasks are parallel to N2D, D2N, N2D-reverse and
D2N-reverse:

    forward           pairs stated first text first: gives the first text, asks for the second
    backward          pairs stated second text first: gives the second text, asks for the first
    forward-reverse   the pairs of `forward`: gives the second text, asks for the first; its counterpart is `backward`
    backward-reverse  the pairs of `backward`: gives the first text, asks for the second; its counterpart is `forward`

Each kind of data has its own names for `forward` and `backward`. For each one-order pair, training leaves out one
template, and the question about the pair uses that template. So no question is the start of a training text. The pairs
leave out different templates, so that training teaches every template on other pairs.

A text may occur in several pairs: Mary has two children. All pairs that are asked about with the same prompt share one
question, which accepts all their answers. They form a group with the pairs that share the prompt for the other text,
and so on. All pairs of a group are stated in the same order and leave out the same template. Otherwise, training would
state one answer to a question in the order of the question and another answer in the other order. Groups are assigned
to the thirds one by one, the largest first, each to the third with the fewest pairs so far. Without repeated texts,
each pair is a group, and every third pair in a row goes to the same third. An exactly repeated pair counts once.

A task has one question for each different text that it gives. So `forward` has more questions than `forward-reverse`
where several first texts share a second one.
"""

import re
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from bico_ext.cjk import CJK
from bico_ext.facts.distractors import draw_distractors
from bico_ext.facts.types import Example, FactData, Question, Task
from bico_ext.files import read_yaml

GIVEN = "{given}"
_THIRDS = 3  # first text first, second text first, both orders
_BOTH_ORDERS = 2
_FEWEST_TEMPLATES = 2  # one to train on, one to ask with


@dataclass(frozen=True)
class Pairs:
    """Pairs that share their templates.

    Attributes:
        pairs: the first and the second text of each pair; at least three groups of pairs without common texts.
        forward: prompts that ask for the second text, with `GIVEN` in place of the first; at least two.
        backward: prompts that ask for the first text, with `GIVEN` in place of the second; at least two.
    """

    pairs: tuple[tuple[str, str], ...]
    forward: tuple[str, ...]
    backward: tuple[str, ...]


def build(name: str, kinds: Iterable[Pairs], *, forward: str, backward: str) -> FactData:
    """Make the training texts and the tasks; see the module.

    Args:
        name: the name of the set.
        kinds: the pairs. Each kind is split into thirds on its own, but kinds that share templates may share questions.
        forward: the name of the task that asks for second texts in the trained order.
        backward: the name of the task that asks for first texts in the trained order.

    Returns:
        The set. `pretraining` holds the texts of the pairs stated in both orders, and `one_order` the others.
        `other_order` states the pairs of `one_order` in the other order, without the templates of the questions.

    Raises:
        ValueError: a kind has fewer than three pairs, or fewer than two templates in one of the orders; its pairs are
            connected through common texts, so that they cannot be split into thirds; or one prompt asks for the second
            text of one pair and for the first text of another.

    Example:
        >>> templates = {"forward": ("{given} goes to", "{given} to"), "backward": ("From {given}", "Of {given}")}
        >>> kind = Pairs((("a", "x"), ("b", "y"), ("c", "z")), **templates)
        >>> data = build("letters", [kind], forward="to", backward="from")
        >>> data.train[0].text, data.tasks["to"].examples[0].text, data.tasks["to-reverse"].examples[0].text
        ('a to x', 'a goes to x', 'From x a')
    """
    pairs: list[_Pair] = []
    for number, kind in enumerate(kinds):
        distinct = dict.fromkeys(kind.pairs)
        if len(distinct) < _THIRDS:
            raise ValueError(f"{name}: needs at least {_THIRDS} pairs of each kind, got {len(distinct)}")
        if min(len(kind.forward), len(kind.backward)) < _FEWEST_TEMPLATES:
            raise ValueError(
                f"{name}: needs at least {_FEWEST_TEMPLATES} templates in each order, because one is kept for the "
                f"question, got {len(kind.forward)} and {len(kind.backward)}"
            )
        pairs += [
            _Pair(
                number,
                _Ordered(forward, kind.forward, first, second),
                _Ordered(backward, kind.backward, second, first),
            )
            for first, second in distinct
        ]
    places = _split(name, pairs, _groups(pairs))
    right = _right_answers(name, pairs)
    # The questions of each task by their prompts.
    asked: dict[str, dict[str, Question]] = {
        task: {} for task in (forward, backward, f"{forward}-reverse", f"{backward}-reverse")
    }
    for pair, place in zip(pairs, places, strict=True):
        if place.third != _BOTH_ORDERS:
            trained, other = pair.in_order(place.third)
            for task, ordered in ((trained.task, trained), (f"{trained.task}-reverse", other)):
                question = ordered.question(place.held_out, pair.forward.given, right)
                asked[task].setdefault(question.prompt, question)
    prompts = {prompt for questions in asked.values() for prompt in questions}
    both: list[Example] = []
    one_order: list[Example] = []
    other_order: list[Example] = []
    for pair, place in zip(pairs, places, strict=True):
        if place.third == _BOTH_ORDERS:
            both += pair.forward.texts() + pair.backward.texts()
        else:
            trained, other = pair.in_order(place.third)
            one_order += trained.texts(without=prompts)
            other_order += other.texts(without=prompts)
    counterparts = {f"{forward}-reverse": backward, f"{backward}-reverse": forward}
    tasks = {
        task: Task(task, "name", draw_distractors(tuple(questions.values())), counterparts.get(task))
        for task, questions in asked.items()
    }
    return FactData(
        name,
        (*one_order, *both),
        tasks,
        pretraining=tuple(both),
        other_order=tuple(other_order),
        one_order=tuple(one_order),
    )


def read_templates(path: Path) -> Mapping[str, Any]:
    """Read the templates file `<file>.yaml` beside a data file; return an empty mapping if there is none.

    Raises:
        ValueError: the file is not a YAML mapping.
    """
    path = path.with_suffix(".yaml")
    if not path.exists():
        return {}
    found = read_yaml(path)
    if not isinstance(found, Mapping) or not all(isinstance(key, str) for key in found):
        raise ValueError(f"{path}: expected a mapping of templates, got {found!r:.60}")
    return found


def check_templates(found: Any, gap: str, where: str) -> tuple[str, ...]:
    """Check a list of templates from a templates file and return them with `GIVEN` in their gap.

    Args:
        found: the value in the file.
        gap: the gap that each template must have once, such as "{given}".
        where: file and key, for the message.

    Raises:
        ValueError: the value is not a list of at least two templates with the gap.
    """
    if not isinstance(found, list) or len(found) < _FEWEST_TEMPLATES:
        raise ValueError(
            f"{where}: expected a list of at least {_FEWEST_TEMPLATES} templates (one is kept for the question), "
            f"got {found!r:.60}"
        )
    for template in found:
        if not isinstance(template, str) or re.findall(r"\{.*?\}", template) != [gap]:
            raise ValueError(
                f"{where}: expected templates with {gap} once in each, and no other gap, got {template!r:.80}"
            )
    return tuple(template.strip().replace(gap, GIVEN) for template in found)


@dataclass(frozen=True)
class _Ordered:
    """A pair in one of its orders: one text is given, the other is the answer."""

    task: str
    templates: tuple[str, ...]
    given: str
    answer: str

    def texts(self, without: Container[str] = ()) -> list[Example]:
        """Return the training texts, without those that state the answer to one of the given prompts."""
        stated = [self._state(template) for template in self.templates]
        return [text for text in stated if text.prompt not in without]

    def question(self, number: int, entity: str, right: Mapping[str, Iterable[str]]) -> Question:
        """Return the question with the template of the given number (modulo the number of templates).

        It accepts the right answers to its prompt.
        """
        template = self.templates[number % len(self.templates)]
        prompt = self._state(template).prompt
        main, *others = right[prompt]
        return Question(prompt, main, entity, template.replace(GIVEN, "..."), also=tuple(others))

    def _state(self, template: str) -> Example:
        prompt = template.replace(GIVEN, self.given)
        space = "" if re.search(rf"[{CJK}]\Z", prompt) else " "
        return Example(prompt, space + self.answer)


@dataclass(frozen=True)
class _Pair:
    """A pair in both orders, and the number of its kind."""

    kind: int
    forward: _Ordered
    backward: _Ordered

    def in_order(self, third: int) -> tuple[_Ordered, _Ordered]:
        """Return the order in which training states the pairs of a third, then the other one."""
        return (self.forward, self.backward) if third == 0 else (self.backward, self.forward)


class _Place(NamedTuple):
    """Where a pair goes: its third, and the number of the template that is kept for its question."""

    third: int
    held_out: int


def _right_answers(name: str, pairs: Iterable[_Pair]) -> dict[str, dict[str, None]]:
    """Return all right answers to each prompt, in the order of the pairs."""
    right: dict[str, dict[str, None]] = {}
    order_of: dict[str, str] = {}
    for pair in pairs:
        for ordered in (pair.forward, pair.backward):
            for text in ordered.texts():
                if order_of.setdefault(text.prompt, ordered.task) != ordered.task:
                    raise ValueError(
                        f"{name}: {text.prompt!r:.80} must ask in one direction only, got the answers "
                        f"{next(iter(right[text.prompt]))!r:.60} in one and {text.completion!r:.60} in the other; use "
                        "other templates for one direction, or leave one of the two out"
                    )
                right.setdefault(text.prompt, {})[text.completion] = None
    return right


def _groups(pairs: Sequence[_Pair]) -> list[list[int]]:
    """Return the numbers of the pairs in groups: pairs that share a prompt are in the same group.

    The groups are in the order of their first pairs.
    """
    parent = list(range(len(pairs)))  # a forest with one tree for each group; its root is the group's first pair

    def root(number: int) -> int:
        while parent[number] != number:
            parent[number] = parent[parent[number]]
            number = parent[number]
        return number

    first_with: dict[str, int] = {}
    for number, pair in enumerate(pairs):
        for text in (*pair.forward.texts(), *pair.backward.texts()):
            earlier, later = sorted((root(first_with.setdefault(text.prompt, number)), root(number)))
            parent[later] = earlier
    groups: dict[int, list[int]] = {}
    for number in range(len(pairs)):
        groups.setdefault(root(number), []).append(number)
    return list(groups.values())


def _split(name: str, pairs: Sequence[_Pair], groups: Iterable[Sequence[int]]) -> list[_Place]:
    """Return the place of each pair; see the module."""
    kinds = {pair.kind for pair in pairs}
    pairs_in = {kind: [0] * _THIRDS for kind in kinds}  # in each third
    groups_in = {kind: [0] * _THIRDS for kind in kinds}
    places: dict[int, _Place] = {}
    for group in sorted(groups, key=len, reverse=True):  # groups of one size keep their order
        of_group = {pairs[number].kind for number in group}
        filled = [sum(pairs_in[kind][third] for kind in of_group) for third in range(_THIRDS)]
        third = filled.index(min(filled))
        # The groups of a third hold out one template after another.
        place = _Place(third, groups_in[pairs[group[0]].kind][third])
        for number in group:
            places[number] = place
            pairs_in[pairs[number].kind][third] += 1
        for kind in of_group:
            groups_in[kind][third] += 1
    for kind, counts in groups_in.items():
        if 0 in counts:
            first = next(pair.forward for pair in pairs if pair.kind == kind)
            raise ValueError(
                f"{name}: pairs that are connected by common texts are stated in the same order, and each kind needs "
                f"pairs in one order, in the other and in both; got {sum(counts)} such groups in the kind of "
                f"{first.given!r:.60} and {first.answer!r:.60}; add pairs with other texts"
            )
    return [places[number] for number in range(len(pairs))]
