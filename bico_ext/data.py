"""Facts to train on and questions to test them with, as prompt and completion pairs.

A training text is `prompt + completion`, exactly: nothing is put in between. A fact links a name and a description;
its training texts state it in one order or in both, and a task asks for one of the two, given the other:

    N2D          name-first facts, asked in the trained order: the answer is a description
    D2N          description-first facts, asked in the trained order: the answer is a name
    N2D-reverse  name-first facts, given the description: the answer is a name
    D2N-reverse  description-first facts, given the name: the answer is a description

Files are JSONL: UTF-8, one object a line with the string keys "prompt" and "completion".
"""

import json
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from bico_ext.files import write_json_lines

logger = logging.getLogger(__name__)

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

_TRAIN = "train"
_OWN_FILES = {split: f"{split}.jsonl" for split in (_TRAIN, *TASKS)}
# The files of Berglund et al. 2023 ("p" is the person's name, "d" the description).
_BERGLUND_FILES = {
    _TRAIN: "all_prompts_train.jsonl",
    "N2D": "p2d_prompts_test.jsonl",
    "D2N": "d2p_prompts_test.jsonl",
    "N2D-reverse": "p2d_reverse_prompts_test.jsonl",
    "D2N-reverse": "d2p_reverse_prompts_test.jsonl",
}
_HUB_FOLDER = "name_description_dataset"  # where lberglund/reversal_curse keeps these files
_HUB_NAME = re.compile(r"\w[\w.-]*(/[\w.-]+)?")


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
            fine-tuned on `train`; empty where there are none.
        other_order: the facts of `train` that are stated in one order only, stated in the other one: for the upper
            bound that data augmentation reaches; empty where they are not known. No objective but that one sees them.
    """

    name: str
    train: tuple[Example, ...]
    tasks: dict[str, Task]
    pretraining: tuple[Example, ...] = ()
    other_order: tuple[Example, ...] = ()


def load_facts(source: str | os.PathLike[str], *, seed: int = 0) -> FactData:
    """Loads a fact data set.

    Args:
        source: one of
            "synthetic": the generated set of `bico_ext.synthetic` (a folder of that name is "./synthetic");
            a folder with the files of Berglund et al. 2023 (`all_prompts_train.jsonl` and four tests);
            a folder with `train.jsonl` and any of `N2D.jsonl`, `D2N.jsonl`, `N2D-reverse.jsonl`, `D2N-reverse.jsonl`;
            a JSONL file: training texts without tasks;
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
    if source == "synthetic":
        from bico_ext.synthetic import generate  # here, because it builds on this module

        return generate(seed)
    path = Path(source).expanduser()
    if path.is_dir():
        return _load_folder(path)
    if path.is_file():
        return _assemble(path.name, {_TRAIN: load_jsonl(path)})
    name = os.fspath(source)
    if not _HUB_NAME.fullmatch(name) or path.suffix in (".json", ".jsonl"):
        raise FileNotFoundError(
            f"source must be 'synthetic', a folder, a JSONL file or a name on the Hugging Face hub, got {name!r}: "
            f"no such file or folder in {Path.cwd()}"
        )
    return _load_hub(name)


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
    # Split bytes, not text: str.splitlines also cuts at U+2028 and U+0085, which JSON strings may hold unescaped.
    lines = Path(path).read_bytes().removeprefix(b"\xef\xbb\xbf").rstrip().split(b"\n")
    if lines == [b""]:
        return ()
    return tuple(_parse(line, f"{path}, line {number}") for number, line in enumerate(lines, 1))


def write_facts(data: FactData, directory: str | os.PathLike[str]) -> None:
    """Writes a data set as `train.jsonl` and `<task>.jsonl` files that `load_facts` reads back.

    Each file appears whole or not at all, and `train.jsonl` last, so that an interrupted call leaves a folder
    that `load_facts` refuses. Task files from an earlier call that this set does not have are removed.

    Args:
        data: what to write; the folder's name takes the place of `data.name` on reloading.
        directory: the folder, made if missing.

    Raises:
        ValueError: a task's name is not one of `TASKS`.

    Example:
        >>> write_facts(load_facts("synthetic", seed=1), "out/synthetic-1")  # doctest: +SKIP
    """
    unknown = sorted(set(data.tasks) - set(TASKS))
    if unknown:
        raise ValueError(f"data.tasks must be named after {', '.join(TASKS)}, got {', '.join(unknown)}")
    folder = Path(directory)
    (folder / _OWN_FILES[_TRAIN]).unlink(missing_ok=True)
    for name in TASKS:
        if name in data.tasks:
            write_json_lines(folder / _OWN_FILES[name], map(_record, data.tasks[name].examples))
        else:
            (folder / _OWN_FILES[name]).unlink(missing_ok=True)
    write_json_lines(folder / _OWN_FILES[_TRAIN], map(_record, data.train))


def _record(example: Example) -> dict[str, str]:
    return {key: value for key, value in asdict(example).items() if value is not None}


def _load_folder(folder: Path) -> FactData:
    name = folder.resolve().name
    present = {entry.name for entry in folder.iterdir()}
    berglund = present.intersection(_BERGLUND_FILES.values())
    own = _OWN_FILES[_TRAIN] in present
    if own and berglund:
        raise ValueError(
            f"{folder} holds train.jsonl and files of Berglund et al. ({', '.join(sorted(berglund))}): "
            "keep the two sets in separate folders"
        )
    if own:
        strangers = sorted(file for file in present - set(_OWN_FILES.values()) if file.endswith(".jsonl"))
        if strangers:
            logger.warning("%s: not read: %s; task files are named after %s", folder, strangers, TASKS)
        files = {split: file for split, file in _OWN_FILES.items() if file in present}
    else:
        files = _BERGLUND_FILES
        missing = [file for file in files.values() if file not in present]
        if missing:
            raise FileNotFoundError(
                f"{folder} lacks {', '.join(missing)}; for your own facts write train.jsonl (and task files such as "
                "N2D-reverse.jsonl) there"
            )
    return _assemble(name, {split: load_jsonl(folder / file) for split, file in files.items()})


def _load_hub(name: str) -> FactData:
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
    stems = {split: Path(file).stem for split, file in _BERGLUND_FILES.items()}
    data_files = {Path(file).stem: f"{_HUB_FOLDER}/{file}" for file in _BERGLUND_FILES.values()}
    try:
        loaded = datasets.load_dataset(name, data_files=data_files)
    except OSError as error:
        raise OSError(
            f"{name!r} is no file or folder in {Path.cwd()}, and as a data set of the Hugging Face hub with the files "
            f"{', '.join(data_files.values())} it could not be loaded: {error}"
        ) from error
    splits = {
        split: tuple(_example(row, f"{name}, {stem}, row {number}") for number, row in enumerate(loaded[stem], 1))
        for split, stem in stems.items()
    }
    return _assemble(name, splits)


def _assemble(name: str, splits: Mapping[str, tuple[Example, ...]]) -> FactData:
    """Checks what no single line shows, and sorts the splits into training set and tasks."""
    for split, examples in splits.items():
        if not examples:
            raise ValueError(f"{name}: {split} holds no examples; expected at least one line")
    tasks = {
        task: Task(task, answer, tuple(Question(one.prompt, one.completion) for one in splits[task]), TWINS.get(task))
        for task, answer in ANSWERS.items()
        if task in splits
    }
    for task in tasks.values():
        for number, example in enumerate(task.examples, 1):
            if not example.completion.strip():  # every text contains it, so any model would score
                raise ValueError(f"{name}: {task.name}, line {number}: completion must hold the answer, got a blank")
    return FactData(name, splits[_TRAIN], tasks)


def _parse(line: bytes, where: str) -> Example:
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: expected UTF-8, got {error}") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: expected a JSON object, got bad JSON ({error}): {line[:60]!r}") from error
    return _example(record, where)


def _example(record: Any, where: str) -> Example:
    if not isinstance(record, Mapping):
        raise ValueError(f"{where}: expected an object with prompt and completion, got {record!r:.60}")
    for key in ("prompt", "completion"):
        if key not in record:
            raise ValueError(f"{where}: key {key!r} is missing, got {', '.join(map(repr, record)) or 'no keys'}")
        value = record[key]
        if not isinstance(value, str):
            raise ValueError(f"{where}: {key} must be a string, got {type(value).__name__} {value!r:.60}")
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise ValueError(f"{where}: {key} holds half of a surrogate pair, which is no text: {value!r:.60}")
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
