"""Fact data from pairs of texts that belong together: some stated in one order, some in the other, some in both.

A pair has a first and a second text. Every third pair is stated first text first, every third second text first, the
rest in both orders; so a model sees how either question is put, but the one-order pairs only one way round. The four
tasks that ask for the one-order pairs are parallel to N2D, D2N, N2D-reverse and D2N-reverse:

    forward           pairs stated first text first, given the first, asked for the second
    backward          pairs stated second text first, given the second, asked for the first
    forward-reverse   the pairs of `forward`, given the second, asked for the first; its counterpart is `backward`
    backward-reverse  the pairs of `backward`, given the first, asked for the second; its counterpart is `forward`

under the names that the kind of data gives to `forward` and `backward`. Each one-order pair holds one of its templates
out of training and is asked in that one, so that no question is the start of a training text; in turn, so that other
pairs have taught that template.
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
_SHARES = 3  # first text first, second text first, both
_FEWEST_TEMPLATES = 2  # one to learn, one to ask


@dataclass(frozen=True)
class Pairs:
    """Pairs that are put in the same words.

    Attributes:
        pairs: first and second text of each; at least three.
        forward: prompts that end where the second text follows, with `GIVEN` for the first; at least two.
        backward: prompts that end where the first text follows, with `GIVEN` for the second; at least two.
    """

    pairs: tuple[tuple[str, str], ...]
    forward: tuple[str, ...]
    backward: tuple[str, ...]


def build(name: str, kinds: Iterable[Pairs], *, forward: str, backward: str) -> FactData:
    """Makes training texts and tasks; see the module.

    Args:
        name: of the set.
        kinds: the pairs; thirds are taken of each kind.
        forward: name of the task that asks for second texts in the trained order.
        backward: name of the task that asks for first texts in the trained order.

    Returns:
        The set. `pretraining` holds the texts of the pairs stated in both orders, `one_order` the others, `other_order`
        the same pairs in the other order, but for the templates that are asked.

    Raises:
        ValueError: a kind has fewer than three pairs or two templates.

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
        if len(kind.pairs) < _SHARES:
            raise ValueError(f"{name}: needs at least {_SHARES} pairs of a kind, got {len(kind.pairs)}")
        if min(len(kind.forward), len(kind.backward)) < _FEWEST_TEMPLATES:
            raise ValueError(
                f"{name}: needs at least {_FEWEST_TEMPLATES} templates in either order, as one is kept for the question, "
                f"got {len(kind.forward)} and {len(kind.backward)}"
            )
        for number, (first, second) in enumerate(kind.pairs):
            there = _Way(forward, kind.forward, first, second)
            back = _Way(backward, kind.backward, second, first)
            turn, share = divmod(number, _SHARES)
            if share == _SHARES - 1:
                both += there.texts() + back.texts()
                continue
            trained, other = (there, back) if share == 0 else (back, there)
            one_order += trained.texts(without=turn)
            other_order += other.texts(without=turn)
            asked[trained.task].append(trained.question(turn, first))
            asked[f"{trained.task}-reverse"].append(other.question(turn, first))
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
    """Refuses a text that is the same partner in two pairs: the question about it would have two right answers.

    Args:
        seen: the line of each key so far; the new one is added.
        key: the text, and in which place of which kind of pair it stands.
        line: its line.
        where: file and line, for the error.
        what: the text and its place in words, for the error.

    Raises:
        ValueError: the key was seen.
    """
    if key in seen:
        raise ValueError(
            f"{where}: {what} in line {seen[key]}, too, so that a question about it would have two right answers; "
            "keep one of them"
        )
    seen[key] = line


def read_templates(path: Path) -> Mapping[str, Any]:
    """The templates file beside a data file, `<file>.yaml`; empty where there is none.

    Raises:
        ValueError: it is no YAML mapping.
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
    """A list of prompts from a templates file, with `GIVEN` in the place of their gap.

    Args:
        found: the value from the file.
        gap: what each prompt must hold once, such as "{given}".
        where: file and key, for errors.

    Raises:
        ValueError: it is not a list of at least two prompts with the gap.
    """
    if not isinstance(found, list) or len(found) < _FEWEST_TEMPLATES:
        raise ValueError(
            f"{where}: expected a list of at least {_FEWEST_TEMPLATES} prompts (one is kept for the question), "
            f"got {found!r:.60}"
        )
    for prompt in found:
        if not isinstance(prompt, str) or re.findall(r"\{.*?\}", prompt) != [gap]:
            raise ValueError(f"{where}: expected prompts with {gap} once in each, and no other gap, got {prompt!r:.80}")
    return tuple(prompt.strip().replace(gap, GIVEN) for prompt in found)


@dataclass(frozen=True)
class _Way:
    """A pair in one order."""

    task: str
    templates: tuple[str, ...]
    given: str
    answer: str

    def texts(self, without: int | None = None) -> list[Example]:
        """The training texts, but for the template of that number (modulo their number)."""
        held_out = None if without is None else without % len(self.templates)
        return [self._state(template) for at, template in enumerate(self.templates) if at != held_out]

    def question(self, number: int, entity: str) -> Question:
        template = self.templates[number % len(self.templates)]
        stated = self._state(template)
        return Question(stated.prompt, stated.completion, entity, template.replace(GIVEN, "..."))

    def _state(self, template: str) -> Example:
        prompt = template.replace(GIVEN, self.given)
        space = "" if re.search(rf"[{CJK}]\Z", prompt) else " "
        return Example(prompt, space + self.answer)
