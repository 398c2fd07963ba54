"""Users' own facts: a folder with one file per task, or a single file with training texts and questions.

A folder holds `train.jsonl` and the questions of each task in `<task>.jsonl`. The questions in `<task>-reverse.jsonl`
ask for the facts of `<task>` the other way round. Three more files are optional: `pretrain.jsonl`
(`FactData.pretraining`), `other_order.jsonl` and `one_order.jsonl`.

A single file holds training texts, and questions in lines with the key "direction": "forward" asks in the trained
order, "reverse" the other way round, and "train" (the default) marks a training text. The questions form the tasks
`forward` and `reverse`, or `<task>` and `<task>-reverse` if the line has the key "task".

Every line is an object with the string keys "prompt" and "completion". In a question, "completion" may also be a list
of all right answers, of which the first is the main one. The other keys of a question are optional:

* "entity", "template", "distractor": see `bico_ext.facts.types.Question`;
* "answer": "name" or "description". The default is the kind of answer of the four usual tasks, and "name" for others;
* "counterpart": the forward task that asks the same kind of question, or null for none. Default: see
  `bico_ext.facts.types.counterpart_of`.

All questions of a task have the same "answer" and the same "counterpart".
"""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bico_ext.facts.jsonl import parse_example, parse_question, read_records, refuse_empty
from bico_ext.facts.types import ANSWERS, TASKS, Answer, Example, FactData, Question, Task, counterpart_of, is_reverse
from bico_ext.files import expand_user, write_json_lines

# The file of each part of `FactData` in a folder of one's own. Every other JSONL file is a task.
OWN_FILES = {
    "train": "train.jsonl",
    "pretraining": "pretrain.jsonl",
    "other_order": "other_order.jsonl",
    "one_order": "one_order.jsonl",
}
_Lines = Iterable[tuple[str, Any]]  # file and line number, for error messages, and the JSON value of each line


def load_folder(folder: Path) -> FactData:
    """Load a folder of JSONL files; see the module.

    Raises:
        FileNotFoundError: there is no `train.jsonl`.
        ValueError: a line is broken (the message gives file and line number), or a file has no lines.

    Example:
        >>> load_folder(Path("my-facts")).tasks.keys()  # doctest: +SKIP
        dict_keys(['mother', 'mother-reverse'])
    """
    train = folder / OWN_FILES["train"]
    if not train.is_file():
        raise FileNotFoundError(
            f"{folder} lacks {train.name}; write your own facts there (and task files such as N2D-reverse.jsonl), or "
            "all_prompts_train.jsonl and the other files of Berglund et al."
        )
    parts = {part: _examples(folder / file, part) for part, file in OWN_FILES.items() if (folder / file).exists()}
    files = {path.stem: path for path in folder.glob("[!.]*.jsonl") if path.name not in OWN_FILES.values()}
    for task, path in files.items():
        if not path.read_bytes().strip():
            refuse_empty(path, task)
    return FactData(
        name=folder.resolve().name,
        tasks=_tasks({task: read_records(path) for task, path in files.items()}),
        **parts,
    )


def load_file(path: Path) -> FactData:
    """Load one JSONL file of training texts and questions; see the module.

    Raises:
        ValueError: a line is broken (the message gives file and line number), or there is no training text.

    Example:
        >>> load_file(Path("facts.jsonl")).tasks.keys()  # doctest: +SKIP
        dict_keys(['forward', 'reverse'])
    """
    train: list[Example] = []
    questions: dict[str, list[tuple[str, Any]]] = {}
    for where, record in read_records(path):
        direction = record.get("direction", "train") if isinstance(record, Mapping) else "train"
        if direction == "train":
            train.append(parse_example(record, where))
        elif direction in ("forward", "reverse"):
            questions.setdefault(_task_name(record, direction, where), []).append((where, record))
        else:
            raise ValueError(f"{where}: direction must be 'train', 'forward' or 'reverse', got {direction!r}")
    if not train:
        refuse_empty(path, "train")
    return FactData(path.name, tuple(train), _tasks(questions))


def _task_name(record: Mapping[str, Any], direction: str, where: str) -> str:
    task = record.get("task")
    if task is None:
        return direction
    if not isinstance(task, str) or not task.strip() or is_reverse(task):
        raise ValueError(f"{where}: task must be the name of the forward task, without -reverse, got {task!r}")
    return task if direction == "forward" else f"{task}-reverse"


def _examples(path: Path, part: str) -> tuple[Example, ...]:
    examples = tuple(parse_example(record, where) for where, record in read_records(path))
    if not examples:
        refuse_empty(path, part)
    return examples


def _tasks(lines_of: Mapping[str, _Lines]) -> dict[str, Task]:
    """Return the tasks: first the usual four, then the other forward tasks, then the other reverse tasks."""

    def rank(task: str) -> tuple[int, bool, str]:
        return (TASKS.index(task) if task in TASKS else len(TASKS), is_reverse(task), task)

    questions: dict[str, tuple[Question, ...]] = {}
    settings: dict[str, dict[str, Any]] = {}
    answers: dict[str, Answer] = {}
    for task in sorted(lines_of, key=rank):
        lines = list(lines_of[task])
        questions[task] = tuple(parse_question(record, where) for where, record in lines)
        settings[task] = _settings(lines, lines_of)
        answers[task] = settings[task].get("answer", ANSWERS.get(task, "name"))
        for question, (where, _) in zip(questions[task], lines, strict=True):
            if answers[task] == "description" and {answer.strip() for answer in question.accepted} & {".", "。"}:
                raise ValueError(f"{where}: completion must hold the answer, a description, got a full stop alone")
    return {
        task: Task(task, answers[task], asked, settings[task].get("counterpart", counterpart_of(task, answers)))
        for task, asked in questions.items()
    }


def _settings(lines: _Lines, tasks: Iterable[str]) -> dict[str, Any]:
    """Return the keys "answer" and "counterpart" of a task as far as they are given; all lines must agree."""
    found: dict[str, Any] = {}
    first_line = True
    for where, record in lines:
        given = {key: record[key] for key in ("answer", "counterpart") if key in record}
        if given.get("answer", "name") not in ("name", "description"):
            raise ValueError(f"{where}: answer must be 'name' or 'description', got {given['answer']!r}")
        counterpart = given.get("counterpart")
        # The keys are compared as a list: looking up an unhashable value in the mapping raises TypeError.
        if counterpart is not None and counterpart not in list(tasks):
            raise ValueError(f"{where}: counterpart must be null or one of {', '.join(tasks)}, got {counterpart!r}")
        if not first_line and given != found:
            raise ValueError(
                f"{where}: answer and counterpart must be the same as in the task's first line, {found}, got {given}"
            )
        found, first_line = given, False
    return found


def write_facts(data: FactData, directory: str | os.PathLike[str]) -> None:
    """Write a data set as a folder of JSONL files, from which `load_facts` restores it completely.

    Each file is written atomically, and `train.jsonl` last: `load_facts` refuses the folder that an interrupted call
    leaves. If this set lacks one of the four usual tasks or of the other parts, an old file of it is removed.

    Args:
        data: the set to write. On reloading, its name is that of the folder.
        directory: the folder. It is created if it does not exist.

    Raises:
        ValueError: the name of a task cannot be a file name, or the folder holds other JSONL files.

    Example:
        >>> write_facts(load_facts("synthetic", seed=1), "out/synthetic-1")  # doctest: +SKIP
    """
    folder = Path(expand_user(directory))
    for name in data.tasks:
        if f"{name}.jsonl" in OWN_FILES.values() or not re.fullmatch(r"\w[^/\\\0]*", name):
            raise ValueError(
                f"a name in data.tasks must give a file name <name>.jsonl other than {', '.join(OWN_FILES.values())}, "
                f"got {name!r}"
            )
    parts = {OWN_FILES[part]: [asdict(example) for example in getattr(data, part)] for part in OWN_FILES}
    answers = {name: task.answer for name, task in data.tasks.items()}
    tasks = {
        f"{name}.jsonl": _question_records(task, counterpart_of(name, answers)) for name, task in data.tasks.items()
    }
    known = {*tasks, *parts, *(f"{name}.jsonl" for name in TASKS)}
    unknown = sorted({path.name for path in folder.glob("*.jsonl")} - known)
    if unknown:
        raise ValueError(
            f"directory must hold no other JSONL files, which would be read as tasks, got {', '.join(unknown)} in "
            f"{folder}; remove them or choose another folder"
        )
    (folder / OWN_FILES["train"]).unlink(missing_ok=True)
    for file in sorted(known - {OWN_FILES["train"]}):
        if records := tasks.get(file) or parts.get(file):
            write_json_lines(folder / file, records)
        else:
            (folder / file).unlink(missing_ok=True)
    write_json_lines(folder / OWN_FILES["train"], parts[OWN_FILES["train"]])


def _question_records(task: Task, usual_counterpart: str | None) -> list[dict[str, Any]]:
    """Return the JSON values of the questions, with those settings of the task that are not the default."""
    settings: dict[str, Any] = {}
    if task.answer != ANSWERS.get(task.name, "name"):
        settings["answer"] = task.answer
    if task.counterpart != usual_counterpart:
        settings["counterpart"] = task.counterpart
    records = []
    for question in task.examples:
        record = {key: value for key, value in asdict(question).items() if value is not None and key != "also"}
        if question.also:
            record["completion"] = list(question.accepted)
        records.append(record | settings)
    return records
