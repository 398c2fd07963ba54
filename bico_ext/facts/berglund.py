"""The name/description facts of Berglund et al. 2023 (arXiv 2309.12288), from a folder or from the Hugging Face hub.

The set states facts about 90 fictitious people: 30 name first, 30 description first and 30 in both orders, with 30
templates per order. Each task asks about 30 people, in ten templates that training does not use. The files hold only
prompts and completions. This module derives the other fields from them and quotes none of their sentences. If a set of
the same layout lacks the structure that a field needs, the field is None or empty.

* `entity` is the person's name: the completion of a question that asks for a name, or the name that a prompt contains.
* `template` of a question that asks for a description is its prompt with "..." in place of the name. The lists of
  questions about each entity correspond item by item; `template` of a question that asks for a name is what the
  prompts at its position in all lists share at their start and at their end.
* `distractor` is the answer in the two `*_randomized` files. In 33 of their 600 lines this answer belongs to the same
  entity, and in 17 of the 33 it is the expected answer. For these lines and for the other tasks,
  `bico_ext.facts.distractors.draw_distractors` draws the distractor.
* `one_order` holds the training texts that contain the name of a person whom the tests ask about, `pretraining` the
  others.
* `other_order` restates the facts of `one_order` in the other order. Patterns come from the sentences about the people
  of `pretraining`: those that at least half of these people share word by word. The facts that fill the patterns are
  read from `one_order`. No test prompt is used: the tests only give the names that separate the two groups of people.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import import_module
from itertools import takewhile
from pathlib import Path
from statistics import mode
from typing import Any

from bico_ext.extras import install
from bico_ext.facts.distractors import draw_distractors
from bico_ext.facts.jsonl import load_jsonl, parse_example, parse_question, read_records, refuse_empty
from bico_ext.facts.types import ANSWERS, Example, FactData, Question, Task, counterpart_of

# In the file names, "p" is the person's name and "d" the description.
_TRAIN = "all_prompts_train.jsonl"
_TESTS = {
    "N2D": "p2d_prompts_test.jsonl",
    "D2N": "d2p_prompts_test.jsonl",
    "N2D-reverse": "p2d_reverse_prompts_test.jsonl",
    "D2N-reverse": "d2p_reverse_prompts_test.jsonl",
}
_FILES = {"train": _TRAIN, **_TESTS}
_HUB_FOLDER = "name_description_dataset"  # where lberglund/reversal_curse keeps these files


def is_folder(folder: Path) -> bool:
    """Tell whether the folder holds files of this layout.

    Raises:
        ValueError: the folder also holds `train.jsonl`, so it is not clear which set to load.
    """
    present = sorted(file for file in _FILES.values() if (folder / file).exists())
    if present and (folder / "train.jsonl").exists():
        raise ValueError(
            f"{folder} holds train.jsonl and files of Berglund et al. ({', '.join(present)}): "
            "keep the two sets in separate folders"
        )
    return bool(present)


def load_folder(folder: Path) -> FactData:
    """Load a folder of this layout; see the module.

    Raises:
        FileNotFoundError: files are missing. The message lists them.
        ValueError: a line is broken (the message gives file and line number), or a file has no lines.

    Example:
        >>> data = load_folder(Path("june_version_7921032488"))  # doctest: +SKIP
        >>> len(data.train), len(data.one_order), len(data.other_order)  # doctest: +SKIP
        (3600, 1800, 1620)
    """
    missing = [file for file in _FILES.values() if not (folder / file).exists()]
    if missing:
        raise FileNotFoundError(f"{folder} lacks {', '.join(missing)}, files of Berglund et al.")
    questions = {}
    for task, file in _TESTS.items():
        questions[task] = [parse_question(record, where) for where, record in read_records(folder / file)]
        if not questions[task]:
            refuse_empty(folder / file, task)
        randomized = folder / file.replace(".jsonl", "_randomized.jsonl")
        if randomized.exists():
            questions[task] = _add_distractors(questions[task], load_jsonl(randomized), randomized)
    train = load_jsonl(folder / _TRAIN)
    if not train:
        refuse_empty(folder / _TRAIN, "train")
    return _assemble(folder.resolve().name, train, questions)


def load_hub(name: str) -> FactData:
    """Load a set of this layout from the Hugging Face hub.

    The randomized files are not loaded, so all distractors are drawn.

    Raises:
        ModuleNotFoundError: `datasets` is not installed.
        OSError: the hub cannot be reached or has no such data set.
        ValueError: a row is broken, or a split has no rows.
    """
    try:
        datasets = import_module("datasets")
    except ModuleNotFoundError as error:
        if error.name != "datasets":
            raise
        raise ModuleNotFoundError(
            f"{name!r} is no file or folder in {Path.cwd()}; to load it from the Hugging Face hub, install the "
            f"`datasets` package: {install('hub')}",
            name="datasets",
        ) from error
    # The keys are the stems of the file names, because `datasets` allows no hyphen in the name of a split.
    data_files = {Path(file).stem: f"{_HUB_FOLDER}/{file}" for file in _FILES.values()}
    try:
        loaded = datasets.load_dataset(name, data_files=data_files)
    except OSError as error:
        raise OSError(
            f"{name!r} is no file or folder in {Path.cwd()}, and loading it from the Hugging Face hub, with the files "
            f"{', '.join(data_files.values())}, failed: {error}"
        ) from error

    def rows(split: str) -> list[tuple[str, Any]]:
        stem = Path(_FILES[split]).stem
        found = [(f"{name}, {stem}, row {number}", row) for number, row in enumerate(loaded[stem], 1)]
        return found or refuse_empty(name, split)

    train = tuple(parse_example(row, where) for where, row in rows("train"))
    return _assemble(name, train, {task: [parse_question(row, where) for where, row in rows(task)] for task in _TESTS})


def _assemble(name: str, train: Sequence[Example], questions: Mapping[str, Sequence[Question]]) -> FactData:
    for_names = [question for task in questions for question in questions[task] if ANSWERS[task] == "name"]
    # Longest first: a name that contains another one is found before it.
    names = sorted({question.completion.strip() for question in for_names}, key=lambda name: (-len(name), name))
    templates = _question_templates(for_names)
    tasks = {}
    for task, answer in ANSWERS.items():
        if answer == "name":
            asked = [
                replace(question, entity=question.completion.strip(), template=templates.get(question.prompt))
                for question in questions[task]
            ]
        else:
            asked = [_add_entity(question, names) for question in questions[task]]
        tasks[task] = Task(task, answer, draw_distractors(_drop_right_ones(asked)), counterpart_of(task, ANSWERS))
    one_order = tuple(text for text in train if _name_in(text.text, names))
    if not one_order:
        return FactData(name, tuple(train), tasks)
    pretraining = tuple(text for text in train if not _name_in(text.text, names))
    return FactData(name, tuple(train), tasks, pretraining, _other_order(one_order, pretraining, names), one_order)


def _name_in(text: str, names: Iterable[str]) -> str | None:
    return next((name for name in names if name in text), None)


def _add_entity(question: Question, names: Iterable[str]) -> Question:
    name = _name_in(question.prompt, names)
    return replace(question, entity=name, template=question.prompt.replace(name, "...")) if name else question


def _question_templates(questions: Sequence[Question]) -> dict[str, str]:
    """Return the template of each prompt that asks for a name; see the module.

    The result is empty if the entities' lists of prompts do not correspond item by item.
    """
    lists: dict[str, list[str]] = {}
    for question in questions:
        lists.setdefault(question.completion, []).append(question.prompt)
    if len(lists) < 2 or len({len(prompts) for prompts in lists.values()}) > 1:
        return {}
    templates: dict[str, str] = {}
    found = set()
    for prompts in zip(*lists.values(), strict=True):
        words = [re.findall(r"\w+|\W", prompt) for prompt in prompts]
        start = _shared_start(words)
        end = _shared_start([prompt[::-1] for prompt in words])  # backwards
        template = "".join([*start, "...", *reversed(end)])
        if not start or template in found or any(len(prompt) <= len(start) + len(end) for prompt in words):
            return {}
        found.add(template)
        templates |= dict.fromkeys(prompts, template)
    return templates


def _shared_start(lists: Iterable[Sequence[str]]) -> list[str]:
    return [words[0] for words in takewhile(lambda words: len(set(words)) == 1, zip(*lists, strict=False))]


def _add_distractors(questions: Sequence[Question], wrong: Sequence[Example], path: Path) -> list[Question]:
    if [example.prompt for example in wrong] != [question.prompt for question in questions]:
        raise ValueError(
            f"{path}: expected the prompts of the file without _randomized, line by line, got different prompts"
        )
    return [
        replace(question, distractor=example.completion) for question, example in zip(questions, wrong, strict=True)
    ]


def _drop_right_ones(questions: Sequence[Question]) -> list[Question]:
    """Drop the distractors that are right answers about the same entity, as some in the randomized files are."""
    right: dict[str | None, set[str]] = {}
    for question in questions:
        right.setdefault(question.entity, set()).add(question.completion)
    return [
        replace(question, distractor=None) if question.distractor in right[question.entity] else question
        for question in questions
    ]


@dataclass(frozen=True)
class _Fact:
    name: str
    description: str


@dataclass(frozen=True)
class _Pattern:
    """A training text with two gaps: one for the name and one for the description, not both in the same part."""

    prompt: str
    completion: str

    NAME, DESCRIPTION = "{name}", "{description}"

    @classmethod
    def of(cls, text: Example, fact: _Fact) -> "_Pattern | None":
        """Return the pattern of a text that states the fact word by word; None if the text does not."""
        description = re.compile(re.escape(fact.description), re.IGNORECASE)  # capitalised at the start of a sentence
        prompt, completion = (
            description.sub(cls.DESCRIPTION, part).replace(fact.name, cls.NAME)
            for part in (text.prompt, text.completion)
        )
        gaps = [(cls.NAME in part, cls.DESCRIPTION in part) for part in (prompt, completion)]
        one_per_part = gaps in ([(True, False), (False, True)], [(False, True), (True, False)])
        return cls(prompt, completion) if one_per_part else None

    @property
    def name_first(self) -> bool:
        return self.NAME in self.prompt

    def state(self, fact: _Fact) -> Example:
        """Return the text of this pattern that states the fact."""
        prompt, completion = (
            part.replace(self.NAME, fact.name).replace(self.DESCRIPTION, fact.description)
            for part in (self.prompt, self.completion)
        )
        return Example(prompt[0].upper() + prompt[1:], completion)

    @cached_property
    def _reader(self) -> re.Pattern[str]:
        pattern = re.escape(f"{self.prompt}\0{self.completion}")
        pattern = pattern.replace(re.escape(self.NAME), "(?P<name>.+)", 1)
        return re.compile(pattern.replace(re.escape(self.DESCRIPTION), "(?P<description>.+)", 1))

    def read(self, text: Example) -> _Fact | None:
        """Return the fact that a text of this pattern states; None if the text does not match."""
        if self.prompt.startswith(self.DESCRIPTION):  # capitalised here, so the case of its first letter is unknown
            return None
        found = self._reader.fullmatch(f"{text.prompt}\0{text.completion}")
        return _Fact(found["name"], found["description"]) if found else None


def _other_order(
    one_order: Sequence[Example], both_orders: Sequence[Example], names: Iterable[str]
) -> tuple[Example, ...]:
    """Restate the facts of `one_order` in the other order; see the module."""
    by_name: dict[str, list[Example]] = {}
    for text in one_order:
        name = _name_in(text.text, names)
        if name:
            by_name.setdefault(name, []).append(text)
    name_first = sorted(
        {text.prompt.replace(name, "\0") for name, texts in by_name.items() for text in texts if name in text.prompt}
    )
    patterns = _patterns(both_orders, name_first)
    restated: list[Example] = []
    for name, texts in by_name.items():
        stated = [
            (fact, pattern.name_first)
            for text in texts
            for pattern in patterns
            if (fact := pattern.read(text)) and fact.name == name
        ]
        if stated:
            fact, stated_name_first = mode(stated)
            restated += [pattern.state(fact) for pattern in patterns if pattern.name_first != stated_name_first]
    return tuple(restated)


def _patterns(texts: Sequence[Example], name_first: Iterable[str]) -> list[_Pattern]:
    """Return the patterns that at least half of the entities share, in the order of the texts.

    Args:
        texts: texts about entities that are stated in both orders.
        name_first: prompts that state the name first, with "\\0" in its place. They reveal the names in `texts`.
    """
    shapes = [re.compile(re.escape(prompt).replace(re.escape("\0"), "(.+)")) for prompt in name_first]
    by_name: dict[str, list[Example]] = {}
    for text in texts:
        found = next(filter(None, (shape.fullmatch(text.prompt) for shape in shapes)), None)
        if found:
            by_name.setdefault(found[1], []).append(text)
    counts: Counter[_Pattern] = Counter()
    for name, about in by_name.items():
        # The most frequent form of the description stands for all of its forms.
        completion = mode(text.completion for text in about)
        fact = _Fact(name, completion.strip().removesuffix("."))
        found_in = (_Pattern.of(text, fact) for text in texts if name in text.text)
        counts.update(dict.fromkeys(filter(None, found_in), 1))
    return [pattern for pattern, count in counts.items() if 2 * count >= len(by_name)]
