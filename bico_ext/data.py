"""Facts to train on and questions to test them with, as prompt and completion pairs.

A training text is `prompt + completion`, exactly: nothing is put in between. A fact links a name and a description;
its training texts state it in one order or in both, and a task asks for one of the two, given the other:

    N2D          name-first facts, asked in the trained order: the answer is a description
    D2N          description-first facts, asked in the trained order: the answer is a name
    N2D-reverse  name-first facts, given the description: the answer is a name
    D2N-reverse  description-first facts, given the name: the answer is a description

Other sets have other tasks; a name that ends in "-reverse" always means the facts of the task before the hyphen, asked
the other way round. Where the sets come from is the business of the modules that `load_facts` calls.
"""

import hashlib
import json
import os
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NoReturn

from bico_ext.files import write_json_lines

Answer = Literal["name", "description"]

ANSWERS: dict[str, Answer] = {
    "N2D": "description",
    "D2N": "name",
    "N2D-reverse": "name",
    "D2N-reverse": "description",
}
TASKS: tuple[str, ...] = tuple(ANSWERS)
# By answer kind: N2D and D2N-reverse both ask for a description, in the same wordings.
TWINS = {"N2D-reverse": "D2N", "D2N-reverse": "N2D"}

# In a folder of one's own: the file of each part of `FactData` that is no task. Every other JSONL file is a task.
OWN_FILES = {
    "train": "train.jsonl",
    "pretraining": "pretrain.jsonl",
    "other_order": "other_order.jsonl",
    "one_order": "one_order.jsonl",
}
_HUB_NAME = re.compile(r"\w[\w.-]*(/[\w.-]+)?")
_FILE_SUFFIXES = (".json", ".jsonl", ".csv", ".txt")


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
        frame: its wording without the entity, for scores by wording; None where the data does not say.
        distractor: a wrong answer of the same kind, for the log-probability test; None where there is none.
    """

    entity: str | None = None
    frame: str | None = None
    distractor: str | None = None


@dataclass(frozen=True)
class Task:
    """Questions of one kind.

    Attributes:
        name: what a report calls it.
        answer: what the completions are, "name" or "description"; it decides the metric.
        examples: the questions, each with its expected answer as completion.
        twin: of a reverse task, the task that asks the same kind of question of facts stated in that very order, so
            that its score is what the reverse one can be expected to reach; None for a forward task.
    """

    name: str
    answer: Answer
    examples: tuple[Question, ...]
    twin: str | None = None


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


def load_facts(source: str | os.PathLike[str], *, seed: int = 0) -> FactData:
    """Loads a fact data set.

    Args:
        source: one of
            "synthetic": the generated set of `bico_ext.synthetic` (a folder of that name is "./synthetic");
            a folder with the files of Berglund et al. 2023 (`all_prompts_train.jsonl` and four tests), see
            `bico_ext.berglund`;
            a folder with `train.jsonl` and a file for each task, or a JSONL file of training texts, with or without
            questions, see `bico_ext.own_facts`;
            a `.txt` file of couplets, see `bico_ext.couplets`;
            a `.csv` file of relations, see `bico_ext.relations`;
            a name on the Hugging Face hub, such as "lberglund/reversal_curse" (needs the `datasets` package).
        seed: of the synthetic set; the other sources do not use it.

    Returns:
        The training set and its tasks.

    Raises:
        FileNotFoundError: the path does not exist, or its folder lacks files; they are listed.
        ModuleNotFoundError: the source can only be a hub name and `datasets` is not installed.
        OSError: the hub cannot be reached or has no such data set.
        ValueError: a broken line (with file and line number), a set without examples, an answer that is blank.

    Example:
        >>> data = load_facts("synthetic")
        >>> len(data.train), list(data.tasks)
        (3600, ['N2D', 'D2N', 'N2D-reverse', 'D2N-reverse'])
    """
    # Imported here, because the formats build on this module.
    if source == "synthetic":
        from bico_ext.synthetic import generate

        return generate(seed)
    from bico_ext import berglund, couplets, own_facts, relations

    path = Path(source).expanduser()
    if path.is_dir():
        return berglund.load_folder(path) if berglund.is_folder(path) else own_facts.load_folder(path)
    if path.is_file():
        loaders = {".txt": couplets.load, ".csv": relations.load}
        return loaders.get(path.suffix.lower(), own_facts.load_file)(path)
    name = os.fspath(source)
    if not _HUB_NAME.fullmatch(name) or path.suffix in _FILE_SUFFIXES:
        raise FileNotFoundError(
            f"source must be 'synthetic', a folder, a JSONL, .txt or .csv file or a name on the Hugging Face hub, "
            f"got {name!r}: no such file or folder in {Path.cwd()}"
        )
    return berglund.load_hub(name)


def load_jsonl(path: str | os.PathLike[str]) -> tuple[Example, ...]:
    """Reads a JSONL file of prompts and completions.

    Args:
        path: a UTF-8 file, one object a line with the string keys "prompt" and "completion"; other keys are ignored.
            Blank lines may stand at the end only.

    Returns:
        One example per line, in the order of the file; none for an empty file.

    Raises:
        ValueError: a line is not what is expected; the text names the file, the line number and the defect.

    Example:
        >>> load_jsonl("facts.jsonl")[0].prompt  # doctest: +SKIP
        'Ever heard of Daphne Barrington? They are'
    """
    return tuple(parse_example(record, where) for where, record in read_records(path))


def write_facts(data: FactData, directory: str | os.PathLike[str]) -> None:
    """Writes a data set as a folder of JSONL files that `load_facts` reads back whole.

    Each file appears whole or not at all, and `train.jsonl` last, so that an interrupted call leaves a folder
    that `load_facts` refuses. Files of the four usual tasks and of the other parts that this set does not have are
    removed.

    Args:
        data: what to write; the folder's name takes the place of `data.name` on reloading.
        directory: the folder, made if missing.

    Raises:
        ValueError: a task's name cannot be a file's, or the folder holds JSONL files that are not this set's.

    Example:
        >>> write_facts(load_facts("synthetic", seed=1), "out/synthetic-1")  # doctest: +SKIP
    """
    folder = Path(directory)
    for name in data.tasks:
        if f"{name}.jsonl" in OWN_FILES.values() or not re.fullmatch(r"\w[^/\\\0]*", name):
            raise ValueError(
                f"data.tasks must have names that can be files' beside {', '.join(OWN_FILES.values())}, got {name!r}"
            )
    parts = {OWN_FILES[part]: [asdict(one) for one in getattr(data, part)] for part in OWN_FILES}
    answers = {name: task.answer for name, task in data.tasks.items()}
    tasks = {f"{name}.jsonl": _question_records(task, twin_of(name, answers)) for name, task in data.tasks.items()}
    known = {*tasks, *parts, *(f"{name}.jsonl" for name in TASKS)}
    strangers = sorted({path.name for path in folder.glob("*.jsonl")} - known)
    if strangers:
        raise ValueError(
            f"directory must hold no other JSONL files, which would be read as tasks, got {', '.join(strangers)} in "
            f"{folder}; remove them or choose another folder"
        )
    (folder / OWN_FILES["train"]).unlink(missing_ok=True)
    for file in sorted(known - {OWN_FILES["train"]}):
        if records := tasks.get(file) or parts.get(file):
            write_json_lines(folder / file, records)
        else:
            (folder / file).unlink(missing_ok=True)
    write_json_lines(folder / OWN_FILES["train"], parts[OWN_FILES["train"]])


def _question_records(task: Task, usual_twin: str | None) -> list[dict[str, Any]]:
    """What the questions say, and what the task's name does not tell about it."""
    about_task: dict[str, Any] = {}
    if task.answer != ANSWERS.get(task.name, "name"):
        about_task["answer"] = task.answer
    if task.twin != usual_twin:
        about_task["twin"] = task.twin
    return [
        {key: value for key, value in asdict(one).items() if value is not None} | about_task for one in task.examples
    ]


def read_records(path: str | os.PathLike[str]) -> Iterator[tuple[str, Any]]:
    """Each line of a JSONL file as its place, for error messages, and its value; see `load_jsonl`."""
    # Split bytes, not text: str.splitlines also cuts at U+2028 and U+0085, which JSON strings may hold unescaped.
    lines = Path(path).read_bytes().removeprefix(b"\xef\xbb\xbf").rstrip().split(b"\n")
    if lines == [b""]:
        return
    for number, line in enumerate(lines, 1):
        where = f"{path}, line {number}"
        try:
            yield where, json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise ValueError(f"{where}: expected UTF-8, got {error}") from error
        except json.JSONDecodeError as error:
            raise ValueError(f"{where}: expected a JSON object, got bad JSON ({error}): {line[:60]!r}") from error


def parse_example(record: Any, where: str) -> Example:
    """A training text from a JSON value; ValueError says, after `where`, what is wrong with it."""
    if not isinstance(record, Mapping):
        raise ValueError(f"{where}: expected an object with prompt and completion, got {record!r:.60}")
    for key in ("prompt", "completion"):
        if key not in record:
            raise ValueError(f"{where}: key {key!r} is missing, got {', '.join(map(repr, record)) or 'no keys'}")
        _check_text(record[key], key, where)
    prompt, completion = record["prompt"], record["completion"]
    if not prompt.strip():
        raise ValueError(f"{where}: prompt must not be empty, got {prompt!r}")
    if completion and prompt.endswith(" "):  # a tokenizer would see another prompt than the one it was trained on
        raise ValueError(
            f"{where}: prompt must not end with a space, got {prompt[-20:]!r}; start the completion with it instead"
        )
    if re.search(r"[A-Za-z0-9]\Z", prompt) and re.match(r"[A-Za-z0-9]", completion):
        raise ValueError(
            f"{where}: prompt and completion run together as {(prompt[-20:] + completion[:20])!r}; "
            "start the completion with a space"
        )
    return Example(prompt, completion)


def parse_question(record: Any, where: str) -> Question:
    """A question from a JSON value, which may have the string keys "entity", "frame" and "distractor", too."""
    example = parse_example(record, where)
    if not example.completion.strip():  # every text contains it, so any model would score
        raise ValueError(f"{where}: completion must hold the answer, got a blank")
    more = {key: record[key] for key in ("entity", "frame", "distractor") if record.get(key) is not None}
    for key, value in more.items():
        _check_text(value, key, where)
        if not value.strip():
            raise ValueError(f"{where}: {key} must hold text, got {value!r}; leave it out where there is none")
    return Question(example.prompt, example.completion, **more)


def _check_text(value: Any, key: str, where: str) -> None:
    if not isinstance(value, str):
        raise ValueError(f"{where}: {key} must be a string, got {type(value).__name__} {value!r:.60}")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError(f"{where}: {key} holds half of a surrogate pair, which is no text: {value!r:.60}")


def refuse_empty(where: str | os.PathLike[str], split: str) -> NoReturn:
    """Says that a split has no lines: nothing can be trained on it, and no share of its answers can be right."""
    raise ValueError(f"{where}: {split} holds no examples; expected at least one line")


def is_reverse(task: str) -> bool:
    """Whether a task of this name asks its facts the other way round than training states them."""
    return task == "reverse" or task.endswith("-reverse")


def twin_of(task: str, answers: Mapping[str, Answer]) -> str | None:
    """The forward task that asks the same kind of question as a reverse task, as far as names and answers tell.

    Args:
        task: the task's name.
        answers: what each task of the set asks for.

    Returns:
        For the four tasks of this module what `TWINS` says; for another reverse task the one forward task whose
        answers are of the same kind; None for a forward task, and where there is no such task or more than one.

    Example:
        >>> twin_of("mother-reverse", {"mother": "name", "mother-reverse": "name"})
        'mother'
    """
    if not is_reverse(task):
        return None
    if task in TWINS:
        return TWINS[task] if TWINS[task] in answers else None
    alike = [other for other, answer in answers.items() if not is_reverse(other) and answer == answers[task]]
    return alike[0] if len(alike) == 1 else None


def draw_distractors(questions: Sequence[Question], seed: int = 0) -> tuple[Question, ...]:
    """Gives each question that has no distractor the answer to another one, about another entity.

    Args:
        questions: of one task.
        seed: draws them; the default is what the sources of `load_facts` use.

    Returns:
        The questions in their order. A distractor is an answer in the same frame where there is one, so that it
        continues the prompt as grammatically as the right one does; it is None where all entities share one answer.

    Example:
        >>> asked = [Question("Who wrote it?", " Ada", "Ada"), Question("Who sang it?", " Bo", "Bo")]
        >>> [question.distractor for question in draw_distractors(asked)]
        [' Bo', ' Ada']
    """
    rng = random.Random(seed)
    by_frame: dict[str | None, list[Question]] = {}
    right: dict[str | None, set[str]] = {}
    for one in questions:
        by_frame.setdefault(one.frame, []).append(one)
        right.setdefault(one.entity, set()).add(one.completion)

    def turned(others: Sequence[Question]) -> Iterator[str]:
        start = rng.randrange(len(others))
        return (others[(start + step) % len(others)].completion for step in range(len(others)))

    def draw(question: Question) -> str | None:
        known = {question.completion} if question.entity is None else right[question.entity]
        answers = chain(turned(by_frame[question.frame]), turned(questions))
        return next((answer for answer in answers if answer not in known), None)

    return tuple(one if one.distractor else replace(one, distractor=draw(one)) for one in questions)
