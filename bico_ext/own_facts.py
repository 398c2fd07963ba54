"""Users' own facts: a folder with a file for each task, or a single file whose lines say what they are for.

A folder holds `train.jsonl` and the questions of each task in `<task>.jsonl`; `<task>-reverse.jsonl` asks the facts of
`<task>` the other way round. Three more files may be there: `pretrain.jsonl` (`FactData.pretraining`),
`other_order.jsonl` and `one_order.jsonl`.

A single file holds training texts. Where lines have the key "direction", "train" trains, "forward" asks in the trained
order and "reverse" the other way round: the questions of the tasks `forward` and `reverse`, or of `<task>` and
`<task>-reverse` where a line has the key "task".

Every line is an object with the string keys "prompt" and "completion". A question may say more: "entity", "frame",
"distractor" (see `bico_ext.data.Question`); "answer", "name" (the default where the task's name does not tell) or
"description"; and "twin", the forward task that asks the same kind of question, null for none (default: see
`bico_ext.data.twin_of`). All questions of a task have the same "answer" and the same "twin".
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bico_ext.data import (
    ANSWERS,
    OWN_FILES,
    TASKS,
    Answer,
    Example,
    FactData,
    Question,
    Task,
    is_reverse,
    parse_example,
    parse_question,
    read_records,
    refuse_empty,
    twin_of,
)

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
        task: Task(task, answers[task], asked, about[task].get("twin", twin_of(task, answers)))
        for task, asked in questions.items()
    }


def _about_task(lines: _Lines, tasks: Iterable[str]) -> dict[str, Any]:
    """The keys "answer" and "twin", as far as given; the lines must agree."""
    found: dict[str, Any] = {}
    first_line = True
    for where, record in lines:
        given = {key: record[key] for key in ("answer", "twin") if key in record}
        if given.get("answer", "name") not in ("name", "description"):
            raise ValueError(f"{where}: answer must be 'name' or 'description', got {given['answer']!r}")
        if given.get("twin") is not None and given["twin"] not in list(tasks):  # in a mapping a list raises TypeError
            raise ValueError(f"{where}: twin must be null or one of {', '.join(tasks)}, got {given['twin']!r}")
        if not first_line and given != found:
            raise ValueError(f"{where}: answer and twin must be those of the task's first line, {found}, got {given}")
        found, first_line = given, False
    return found
