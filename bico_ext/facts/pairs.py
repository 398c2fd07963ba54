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
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bico_ext.cjk import CJK
from bico_ext.facts.distractors import draw_distractors
from bico_ext.facts.types import Example, FactData, Question, Task

GIVEN = "{given}"
_THIRDS = 3  # first text first, second text first, both orders
_FEWEST_TEMPLATES = 2  # one to train on, one to ask with


@dataclass(frozen=True)
class Pairs:
    """Pairs that share their templates.

    Attributes:
        pairs: the first and the second text of each pair; at least three pairs.
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
        kinds: the pairs. Each kind is split into thirds on its own.
        forward: the name of the task that asks for second texts in the trained order.
        backward: the name of the task that asks for first texts in the trained order.

    Returns:
        The set. `pretraining` holds the texts of the pairs stated in both orders, and `one_order` the others.
        `other_order` states the pairs of `one_order` in the other order, without the templates of the questions.

    Raises:
        ValueError: a kind has fewer than three pairs, or fewer than two templates in one of the orders.

    Example:
        >>> templates = {"forward": ("{given} goes to", "{given} to"), "backward": ("From {given}", "Of {given}")}
        >>> kind = Pairs((("a", "x"), ("b", "y"), ("c", "z")), **templates)
        >>> data = build("letters", [kind], forward="to", backward="from")
        >>> data.train[0].text, data.tasks["to"].examples[0].text, data.tasks["to-reverse"].examples[0].text
        ('a to x', 'a goes to x', 'From x a')
    """
    both: list[Example] = []
    one_order: list[Example] = []
    other_order: list[Example] = []
    asked: dict[str, list[Question]] = {forward: [], backward: [], f"{forward}-reverse": [], f"{backward}-reverse": []}
    for kind in kinds:
        if len(kind.pairs) < _THIRDS:
            raise ValueError(f"{name}: needs at least {_THIRDS} pairs of each kind, got {len(kind.pairs)}")
        if min(len(kind.forward), len(kind.backward)) < _FEWEST_TEMPLATES:
            raise ValueError(
                f"{name}: needs at least {_FEWEST_TEMPLATES} templates in each order, because one is kept for the "
                f"question, got {len(kind.forward)} and {len(kind.backward)}"
            )
        for number, (first, second) in enumerate(kind.pairs):
            first_to_second = _Ordered(forward, kind.forward, first, second)
            second_to_first = _Ordered(backward, kind.backward, second, first)
            held_out, third = divmod(number, _THIRDS)  # the pairs of a third hold out one template after another
            if third == _THIRDS - 1:
                both += first_to_second.texts() + second_to_first.texts()
                continue
            trained, other = (first_to_second, second_to_first) if third == 0 else (second_to_first, first_to_second)
            one_order += trained.texts(without=held_out)
            other_order += other.texts(without=held_out)
            asked[trained.task].append(trained.question(held_out, first))
            asked[f"{trained.task}-reverse"].append(other.question(held_out, first))
    counterparts = {f"{forward}-reverse": backward, f"{backward}-reverse": forward}
    tasks = {
        task: Task(task, "name", draw_distractors(questions), counterparts.get(task))
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


def check_new(seen: dict[tuple[str, ...], int], key: tuple[str, ...], line: int, where: str, what: str) -> None:
    """Refuse a text that stands in the same position of two pairs: a question about it would have two right answers.

    Args:
        seen: the line number of each key so far. The new key is added.
        key: the text, with its position in the pair and the kind of pair.
        line: the line number of the text.
        where: file and line number, for the message.
        what: the text and its position in words, for the message.

    Raises:
        ValueError: the key was seen before.
    """
    if key in seen:
        raise ValueError(
            f"{where}: {what} in line {seen[key]}, too, so a question about it would have two right answers; "
            "keep one of the two lines"
        )
    seen[key] = line


def read_templates(path: Path) -> Mapping[str, Any]:
    """Read the templates file `<file>.yaml` beside a data file; return an empty mapping if there is none.

    Raises:
        ValueError: the file is not a YAML mapping.
    """
    path = path.with_suffix(".yaml")
    if not path.exists():
        return {}
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected YAML in UTF-8, got {' '.join(str(error).split())}") from error
    if not isinstance(found, Mapping) or not all(isinstance(key, str) for key in found):  # YAML reads `no:` as false
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

    def texts(self, without: int | None = None) -> list[Example]:
        """Return the training texts, without the template of the given number (modulo the number of templates)."""
        held_out = None if without is None else without % len(self.templates)
        return [self._state(template) for number, template in enumerate(self.templates) if number != held_out]

    def question(self, number: int, entity: str) -> Question:
        """Return the question with the template of the given number (modulo the number of templates)."""
        template = self.templates[number % len(self.templates)]
        stated = self._state(template)
        return Question(stated.prompt, stated.completion, entity, template.replace(GIVEN, "..."))

    def _state(self, template: str) -> Example:
        prompt = template.replace(GIVEN, self.given)
        space = "" if re.search(rf"[{CJK}]\Z", prompt) else " "
        return Example(prompt, space + self.answer)
