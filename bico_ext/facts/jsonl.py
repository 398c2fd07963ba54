"""JSON Lines: the reader that every such file of the project goes through, and the parsers of its lines."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from bico_ext.facts.types import Example, Question
from bico_ext.files import read_lines
from bico_ext.models.tokenization import check_completion, check_text

# The way out for a table that is given in place of JSON Lines.
MAKE_JSONL = (
    "prompts and completions belong in a .jsonl file, which pandas makes of a table: "
    'pandas.read_csv(FILE).to_json("facts.jsonl", orient="records", lines=True), with sep="\\t" for a .tsv file'
)


def read_records(path: str | os.PathLike[str]) -> Iterator[tuple[str, Any]]:
    """Yield file and line number (for error messages) and the JSON value of each line; see `load_jsonl`."""
    if Path(path).suffix.lower() in (".csv", ".tsv"):
        raise ValueError(f"{path}: expected JSON Lines, got a table; {MAKE_JSONL}")
    lines = read_lines(path)
    while lines and not lines[-1].strip():
        lines.pop()
    for number, line in enumerate(lines, 1):
        where = f"{path}, line {number}"
        try:
            yield where, json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{where}: expected a JSON object, got bad JSON ({error}): {line!r:.60}") from error


def load_jsonl(path: str | os.PathLike[str]) -> tuple[Example, ...]:
    """Read a JSONL file of prompts and completions.

    Args:
        path: a UTF-8 file with one object per line. Each object has the string keys "prompt" and "completion"; other
            keys are ignored. Blank lines are allowed at the end of the file only.

    Returns:
        One example per line, in the order of the file; none for an empty file.

    Raises:
        ValueError: a line is broken. The message names the file, the line number and the defect.

    Example:
        >>> load_jsonl("facts.jsonl")[0].prompt  # doctest: +SKIP
        'Ever heard of Daphne Barrington? They are'
    """
    return tuple(parse_example(record, where) for where, record in read_records(path))


def parse_example(record: Any, where: str) -> Example:
    """Return the training text in a JSON value; the ValueError about a broken one starts with `where`."""
    if not isinstance(record, Mapping):
        raise ValueError(f"{where}: expected an object with prompt and completion, got {record!r:.60}")
    for key in ("prompt", "completion"):
        if key not in record:
            raise ValueError(f"{where}: key {key!r} is missing, got {', '.join(map(repr, record)) or 'no keys'}")
    prompt, completion = record["prompt"], record["completion"]
    check_completion(prompt, completion, where)
    return Example(prompt, completion)


def parse_question(record: Any, where: str) -> Question:
    """Return the question in a JSON value; "entity", "template" and "distractor" are optional string keys.

    "completion" may be a list of right answers, of which the first is the main one.
    """
    several = isinstance(record, Mapping) and isinstance(record.get("completion"), list)
    if several and not record["completion"]:
        raise ValueError(f"{where}: completion must hold at least one right answer, got an empty list")
    alone = [{**record, "completion": answer} for answer in record["completion"]] if several else [record]
    examples = [parse_example(answer, where) for answer in alone]
    if not all(example.completion.strip() for example in examples):  # any model would get this question right
        raise ValueError(f"{where}: completion must hold the answer, got a blank")
    for old, new in (("frame", "template"), ("twin", "counterpart")):
        if old in record:
            raise ValueError(f"{where}: key {old!r} is now called {new!r}; rename it")
    optional = {key: record[key] for key in ("entity", "template", "distractor") if record.get(key) is not None}
    for key, value in optional.items():
        check_text(value, key, where, blank=True)
        if not value.strip():
            raise ValueError(f"{where}: {key} must hold text, got {value!r}; leave it out if there is none")
    main, *others = dict.fromkeys(example.completion for example in examples)
    distractor = optional.get("distractor")
    if distractor is not None and distractor.strip() in {answer.strip() for answer in (main, *others)}:
        raise ValueError(f"{where}: distractor must be a wrong answer, got {distractor!r}, which is a right one")
    return Question(examples[0].prompt, main, also=tuple(others), **optional)


def refuse_empty(where: str | os.PathLike[str], split: str) -> NoReturn:
    """Raise the error about a split without lines: it can be neither trained on nor scored."""
    raise ValueError(f"{where}: {split} holds no examples; expected at least one line")
