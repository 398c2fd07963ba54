"""The name/description facts of Berglund et al. 2023 (arXiv 2309.12288), from a folder or from the Hugging Face hub.

60 fictitious people are stated in one order, 30 name-first and 30 description-first, and 30 more in both; 30 templates
each. A task asks for 30 people in ten other templates. The files have prompts and completions only; what else the set
can tell is read off them here, without a sentence of theirs in the code. Where a set of the same layout does not have
the structure, the fields are None or empty.

* `entity` is the name: the completion of a question for a name, and whichever of these names a prompt contains.
* `template` of a question for a description is its prompt with "..." for the name; of a question for a name, what the
  prompts at the same place of each entity's list have in common at the start and at the end.
* `distractor` is the answer of the two `*_randomized` files. For the other tasks, and where that answer is one of the
  same entity's (33 of the 600 lines, 17 of them the very answer that is expected), `bico_ext.facts.distractors.draw_distractors`
  draws one.
* `one_order` are the training texts that contain a tested name, `pretraining` the others.
* `other_order` restates the first in the other order, from training texts only: the sentences about the people of
  `pretraining` give patterns, those that at least half of them share word by word, and the sentences of the others
  fill them. No test prompt takes part; of the tests only the names are used, to tell the two groups of people apart.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from itertools import takewhile
from pathlib import Path
from typing import Any

from bico_ext.facts.distractors import draw_distractors
from bico_ext.facts.jsonl import load_jsonl, parse_example, parse_question, read_records, refuse_empty
from bico_ext.facts.types import ANSWERS, Example, FactData, Question, Task, counterpart_of

# "p" is the person's name, "d" the description.
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
    """Whether the folder holds files of this layout.

    Raises:
        ValueError: it also holds `train.jsonl`, so that it is not clear which set is meant.
    """
    present = sorted(file for file in _FILES.values() if (folder / file).exists())
    if present and (folder / "train.jsonl").exists():
        raise ValueError(
            f"{folder} holds train.jsonl and files of Berglund et al. ({', '.join(present)}): "
            "keep the two sets in separate folders"
        )
    return bool(present)


def load_folder(folder: Path) -> FactData:
    """Loads a folder of this layout; see the module.

    Raises:
        FileNotFoundError: files are missing; they are listed.
        ValueError: a broken line, with file and line number, or a file without lines.

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
            questions[task] = _with_distractors(questions[task], load_jsonl(randomized), randomized)
    train = load_jsonl(folder / _TRAIN)
    if not train:
        refuse_empty(folder / _TRAIN, "train")
    return _assemble(folder.resolve().name, train, questions)


def load_hub(name: str) -> FactData:
    """Loads a set of this layout from the Hugging Face hub, without the randomized files: all distractors are drawn.

    Raises:
        ModuleNotFoundError: `datasets` is not installed.
        OSError: the hub cannot be reached or has no such data set.
        ValueError: a broken row, or a split without rows.
    """
    try:
        datasets = import_module("datasets")
    except ModuleNotFoundError as error:
        if error.name != "datasets":
            raise
        raise ModuleNotFoundError(
            f"{name!r} is no file or folder in {Path.cwd()}; to load it from the Hugging Face hub install the "
            '`datasets` package: pip install "bico-ext[hub]"',
            name="datasets",
        ) from error
    # Keys are the file names' stems: `datasets` takes no hyphen in the name of a split.
    data_files = {Path(file).stem: f"{_HUB_FOLDER}/{file}" for file in _FILES.values()}
    try:
        loaded = datasets.load_dataset(name, data_files=data_files)
    except OSError as error:
        raise OSError(
            f"{name!r} is no file or folder in {Path.cwd()}, and as a data set of the Hugging Face hub with the files "
            f"{', '.join(data_files.values())} it could not be loaded: {error}"
        ) from error

    def rows(split: str) -> list[tuple[str, Any]]:
        stem = Path(_FILES[split]).stem
        found = [(f"{name}, {stem}, row {number}", row) for number, row in enumerate(loaded[stem], 1)]
        return found or refuse_empty(name, split)

    train = tuple(parse_example(row, where) for where, row in rows("train"))
    return _assemble(name, train, {task: [parse_question(row, where) for where, row in rows(task)] for task in _TESTS})


def _assemble(name: str, train: Sequence[Example], questions: Mapping[str, Sequence[Question]]) -> FactData:
    named = [one for task in questions for one in questions[task] if ANSWERS[task] == "name"]
    names = sorted({one.completion.strip() for one in named}, key=lambda one: (-len(one), one))
    templates = _question_templates(named)
    tasks = {}
    for task, answer in ANSWERS.items():
        if answer == "name":
            asked = [
                replace(one, entity=one.completion.strip(), template=templates.get(one.prompt))
                for one in questions[task]
            ]
        else:
            asked = [_about_name(one, names) for one in questions[task]]
        tasks[task] = Task(task, answer, draw_distractors(_wrong_only(asked)), counterpart_of(task, ANSWERS))
    one_order = tuple(one for one in train if _name_in(one.text, names))
    if not one_order:
        return FactData(name, tuple(train), tasks)
    pretraining = tuple(one for one in train if not _name_in(one.text, names))
    return FactData(name, tuple(train), tasks, pretraining, _other_order(one_order, pretraining, names), one_order)


def _name_in(text: str, names: Iterable[str]) -> str | None:
    return next((name for name in names if name in text), None)


def _about_name(question: Question, names: Iterable[str]) -> Question:
    name = _name_in(question.prompt, names)
    return replace(question, entity=name, template=question.prompt.replace(name, "...")) if name else question


def _question_templates(questions: Sequence[Question]) -> dict[str, str]:
    """The template of each prompt that asks for a name; none where the entities' lists of prompts do not correspond."""
    lists: dict[str, list[str]] = {}
    for one in questions:
        lists.setdefault(one.completion, []).append(one.prompt)
    if len(lists) < 2 or len({len(prompts) for prompts in lists.values()}) > 1:
        return {}
    templates: dict[str, str] = {}
    names = set()
    for prompts in zip(*lists.values(), strict=True):
        words = [re.findall(r"\w+|\W", prompt) for prompt in prompts]
        start = _shared_start(words)
        end = _shared_start([one[: len(start) - 1 : -1] for one in words])
        template = "".join([*start, "...", *reversed(end)])
        if not start or template in names or any(len(one) <= len(start) + len(end) for one in words):
            return {}
        names.add(template)
        templates |= dict.fromkeys(prompts, template)
    return templates


def _shared_start(lists: Iterable[Sequence[str]]) -> list[str]:
    return [words[0] for words in takewhile(lambda words: len(set(words)) == 1, zip(*lists, strict=False))]


def _with_distractors(questions: Sequence[Question], wrong: Sequence[Example], path: Path) -> list[Question]:
    if [one.prompt for one in wrong] != [one.prompt for one in questions]:
        raise ValueError(f"{path}: expected the prompts of the file without _randomized, line by line, got others")
    return [replace(one, distractor=other.completion) for one, other in zip(questions, wrong, strict=True)]


def _wrong_only(questions: Sequence[Question]) -> list[Question]:
    """Drops distractors that are answers of the very entity, which the randomized files hold here and there."""
    right: dict[str | None, set[str]] = {}
    for one in questions:
        right.setdefault(one.entity, set()).add(one.completion)
    return [replace(one, distractor=None) if one.distractor in right[one.entity] else one for one in questions]


@dataclass(frozen=True)
class _Fact:
    name: str
    description: str


@dataclass(frozen=True)
class _Pattern:
    """A training text with gaps for the name and the description, one in the prompt and one in the completion."""

    prompt: str
    completion: str

    NAME, DESCRIPTION = "{name}", "{description}"

    @classmethod
    def of(cls, text: Example, fact: _Fact) -> "_Pattern | None":
        """The pattern of a text that states the fact word by word; None of one that does not."""
        description = re.compile(re.escape(fact.description), re.IGNORECASE)  # it may start a sentence
        prompt, completion = (
            description.sub(cls.DESCRIPTION, part).replace(fact.name, cls.NAME)
            for part in (text.prompt, text.completion)
        )
        gaps = [(cls.NAME in part, cls.DESCRIPTION in part) for part in (prompt, completion)]
        one_in_each = gaps in ([(True, False), (False, True)], [(False, True), (True, False)])
        return cls(prompt, completion) if one_in_each else None

    @property
    def name_first(self) -> bool:
        return self.NAME in self.prompt

    def state(self, fact: _Fact) -> Example:
        prompt, completion = (
            part.replace(self.NAME, fact.name).replace(self.DESCRIPTION, fact.description)
            for part in (self.prompt, self.completion)
        )
        return Example(prompt[0].upper() + prompt[1:], completion)

    def read(self, text: Example) -> _Fact | None:
        """The fact that a text of this pattern states; None where a sentence's capital may hide its first letter."""
        if self.prompt.startswith(self.DESCRIPTION):
            return None
        pattern = re.escape(f"{self.prompt}\0{self.completion}")
        pattern = pattern.replace(re.escape(self.NAME), "(?P<name>.+)", 1)
        pattern = pattern.replace(re.escape(self.DESCRIPTION), "(?P<description>.+)", 1)
        found = re.fullmatch(pattern, f"{text.prompt}\0{text.completion}")
        return _Fact(found["name"], found["description"]) if found else None


def _other_order(
    one_order: Sequence[Example], both_orders: Sequence[Example], names: Iterable[str]
) -> tuple[Example, ...]:
    """The facts of the first texts in the order that these do not have; see the module."""
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
        read = Counter(
            fact
            for text in texts
            for pattern in patterns
            if pattern.name_first == (name in text.prompt) and (fact := pattern.read(text)) and fact.name == name
        )
        if read:
            (fact, _), *_ = read.most_common(1)
            stated_name_first = name in texts[0].prompt
            restated += [pattern.state(fact) for pattern in patterns if pattern.name_first != stated_name_first]
    return tuple(restated)


def _patterns(texts: Sequence[Example], name_first: Iterable[str]) -> list[_Pattern]:
    """What at least half of the entities that are stated in both orders share, in the order of the texts.

    Args:
        texts: about entities stated in both orders.
        name_first: prompts that state the name first, with "\\0" for the name: they show the names in `texts`.
    """
    shapes = [re.compile(re.escape(prompt).replace(re.escape("\0"), "(.+)")) for prompt in name_first]
    by_name: dict[str, list[Example]] = {}
    for text in texts:
        found = next(filter(None, (shape.fullmatch(text.prompt) for shape in shapes)), None)
        if found:
            by_name.setdefault(found[1], []).append(text)
    counts: Counter[_Pattern] = Counter()
    for name, about in by_name.items():
        # The wording of the description that comes most often stands for all.
        (completion, _), *_ = Counter(text.completion for text in about).most_common(1)
        fact = _Fact(name, completion.strip().removesuffix("."))
        found_in = (_Pattern.of(text, fact) for text in texts if name in text.text)
        counts.update(dict.fromkeys(filter(None, found_in), 1))
    return [pattern for pattern, count in counts.items() if 2 * count >= len(by_name)]
