"""Users' own facts: a folder with a file for each task, or a single file whose lines say what they are for.

A folder holds `train.jsonl` and the questions of each task in `<task>.jsonl`; `<task>-reverse.jsonl` asks the facts of
`<task>` the other way round. Three more files may be there: `pretrain.jsonl` (`FactData.pretraining`),
`other_order.jsonl` and `one_order.jsonl`.

A single file holds training texts. Where lines have the key "direction", "train" trains, "forward" asks in the trained
order and "reverse" the other way round: the questions of the tasks `forward` and `reverse`, or of `<task>` and
`<task>-reverse` where a line has the key "task".

Every line is an object with the string keys "prompt" and "completion". A question may say more: "entity", "template",
"distractor" (see `bico_ext.facts.types.Question`); "answer", "name" (the default where the task's name does not tell) or
"description"; and "counterpart", the forward task that asks the same kind of question, null for none (default: see
`bico_ext.facts.types.counterpart_of`). All questions of a task have the same "answer" and the same "counterpart".
"""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bico_ext.facts.jsonl import parse_example, parse_question, read_records, refuse_empty
from bico_ext.facts.types import ANSWERS, TASKS, Answer, Example, FactData, Question, Task, counterpart_of, is_reverse
from bico_ext.files import write_json_lines

# In a folder of one's own: the file of each part of `FactData` that is no task. Every other JSONL file is a task.
OWN_FILES = {
    "train": "train.jsonl",
    "pretraining": "pretrain.jsonl",
    "other_order": "other_order.jsonl",
    "one_order": "one_order.jsonl",
}
_Lines = Iterable[tuple[str, Any]]  # the place of each line, for error messages, and its JSON value


def load_folder(folder: Path) -> FactData:
    """Loads a folder of JSONL files; see the module.

    Raises:
        FileNotFoundError: there is no `train.jsonl`.
        ValueError: a broken line, with file and line number, or a file without lines.

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
    """Loads one JSONL file of training texts and, where lines have the key "direction", questions; see the module.

    Raises:
        ValueError: a broken line, with file and line number, or no line to train on.

    Example:
        >>> load_file(Path("facts.jsonl")).tasks.keys()  # doctest: +SKIP
        dict_keys(['forward', 'reverse'])
    """
    train: list[Example] = []
    questions: dict[str, list[tuple[str, Any]]] = {}
    for where, record in read_records(path):
        example = parse_example(record, where)
        direction = record.get("direction", "train")
        if direction == "train":
            train.append(example)
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
    """The usual four first, then forward tasks, then reverse ones."""

    def rank(task: str) -> tuple[int, bool, str]:
        return (TASKS.index(task) if task in TASKS else len(TASKS), is_reverse(task), task)

    questions: dict[str, tuple[Question, ...]] = {}
    about: dict[str, dict[str, Any]] = {}
    answers: dict[str, Answer] = {}
    for task in sorted(lines_of, key=rank):
        lines = list(lines_of[task])
        questions[task] = tuple(parse_question(record, where) for where, record in lines)
        about[task] = _about_task(lines, lines_of)
        answers[task] = about[task].get("answer", ANSWERS.get(task, "name"))
        for where, record in lines:
            if answers[task] == "description" and record["completion"].strip() in (".", "。"):
                raise ValueError(f"{where}: completion must hold the answer, a description, got a full stop alone")
    return {
        task: Task(task, answers[task], asked, about[task].get("counterpart", counterpart_of(task, answers)))
        for task, asked in questions.items()
    }


def _about_task(lines: _Lines, tasks: Iterable[str]) -> dict[str, Any]:
    """The keys "answer" and "counterpart", as far as given; the lines must agree."""
    found: dict[str, Any] = {}
    first_line = True
    for where, record in lines:
        given = {key: record[key] for key in ("answer", "counterpart") if key in record}
        if given.get("answer", "name") not in ("name", "description"):
            raise ValueError(f"{where}: answer must be 'name' or 'description', got {given['answer']!r}")
        if given.get("counterpart") is not None and given["counterpart"] not in list(
            tasks
        ):  # in a mapping a list raises TypeError
            raise ValueError(
                f"{where}: counterpart must be null or one of {', '.join(tasks)}, got {given['counterpart']!r}"
            )
        if not first_line and given != found:
            raise ValueError(
                f"{where}: answer and counterpart must be those of the task's first line, {found}, got {given}"
            )
        found, first_line = given, False
    return found


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
    tasks = {
        f"{name}.jsonl": _question_records(task, counterpart_of(name, answers)) for name, task in data.tasks.items()
    }
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


def _question_records(task: Task, usual_counterpart: str | None) -> list[dict[str, Any]]:
    """What the questions say, and what the task's name does not tell about it."""
    about_task: dict[str, Any] = {}
    if task.answer != ANSWERS.get(task.name, "name"):
        about_task["answer"] = task.answer
    if task.counterpart != usual_counterpart:
        about_task["counterpart"] = task.counterpart
    return [
        {key: value for key, value in asdict(one).items() if value is not None} | about_task for one in task.examples
    ]
