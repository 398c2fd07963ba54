"""What `results.json` and `predictions.jsonl` hold, as typed records; files of the first version are read, too.

A *system* is a row of the comparison: an objective with a model and data. An *objective* is what its optimizer steps
train.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from bico_ext.facts.jsonl import read_records
from bico_ext.reports.version_1 import upgraded, with_system

SCHEMA_VERSION = 2
METRICS = {
    "contains": "target contained in the answer (names: the paper's metric; descriptions: without the final full stop)",
    "exact_match": "answer equals target",
    "bleu_char": "the paper's BLEU for descriptions: NLTK sentence_bleu on raw strings, that is on characters",
    "bleu": "BLEU on words (sacrebleu)",
}
ANY_WORDING = {  # only of tasks for descriptions that have several forms
    "any_wording": "the answer contains a target that the task has for the same entity, in whichever of its wordings"
}

Prediction = Mapping[str, Any]  # a line of predictions.jsonl: "system", "seed" and the fields of an evaluated question
Record = TypeVar("Record")


@dataclass(frozen=True)
class TemplateData:
    """One template of a task's questions.

    Attributes:
        n: questions.
        reachable: share of their targets that the training text holds.
        unseen_words: words of the template that no training text has.
    """

    n: int
    reachable: float
    unseen_words: tuple[str, ...] = ()


@dataclass(frozen=True)
class TaskData:
    """What is known of a task before any model is asked.

    Attributes:
        answer: what the targets are, "name" or "description".
        n: questions.
        reachable: share of their targets that the training text holds: the ceiling.
        counterpart: of a reverse task, the forward task that asks the same kind of question.
        templates: the same by template.
    """

    answer: str
    n: int
    reachable: float
    counterpart: str | None = None
    templates: Mapping[str, TemplateData] = field(default_factory=dict)


@dataclass(frozen=True)
class Data:
    """The data set that was asked, as `bico_ext.evaluation.ceiling.reachable` describes it.

    Attributes:
        name: of the set.
        tasks: by name.
        digest: of all its texts and questions; None in files of the first version.
    """

    name: str
    tasks: Mapping[str, TaskData]
    digest: str | None = None


@dataclass(frozen=True)
class Scores:
    """A run's scores in one task; shares from 0 to 1, defined in `bico_ext.evaluation.metrics`.

    Attributes:
        n: questions.
        contains, exact_match, bleu_char, bleu: the metrics of `METRICS`.
        contains_interval, exact_match_interval: 95 % Wilson intervals.
        any_wording: the metric of `ANY_WORDING`, where the task has it.
        templates, entities: `contains` by template and by entity, where the questions say so.
        likelihood: the log-probability test, where it was made.
    """

    n: int
    contains: float
    exact_match: float
    bleu_char: float
    bleu: float
    contains_interval: tuple[float, ...] | None = None
    exact_match_interval: tuple[float, ...] | None = None
    any_wording: float | None = None
    templates: Mapping[str, float] = field(default_factory=dict)
    entities: Mapping[str, float] = field(default_factory=dict)
    likelihood: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Run:
    """One system under one seed; or a model that was only evaluated, which has scores and little else.

    Attributes:
        system: its name in the comparison, or the evaluated model.
        tasks: scores by task.
        objective: what the optimizer steps train beside next-token prediction; None for an evaluated model.
        seed: of weights, order and masks; None for an evaluated model.
        mixing_probability: of the objective, per optimizer step.
        texts: how many texts are to be learnt.
        replayed: how many texts of the pre-training are read beside them.
        threads: of the training.
        train_seconds: without the questions asked in between.
        parameters: of the model.
        losses: {"step", "loss_ntp", "loss_<objective>"} at each logged step; None where the loss is not finite.
        curve: {"step", "tasks": {task: contains}} during training.
        label: what sets the run apart from others of its system in merged results.
        data: what the run was asked, where merged results do not share their data.
    """

    system: str
    tasks: Mapping[str, Scores]
    objective: str | None = None
    seed: int | None = None
    mixing_probability: float | None = None
    texts: int | None = None
    replayed: int | None = None
    threads: int | None = None
    train_seconds: float | None = None
    parameters: int | None = None
    losses: tuple[Mapping[str, Any], ...] = ()
    curve: tuple[Mapping[str, Any], ...] = ()
    label: str | None = None
    data: Data | None = None

    @property
    def name(self) -> str:
        """What a report calls the run."""
        return self.label or self.system


@dataclass(frozen=True)
class Failure:
    """A run that did not finish, and why."""

    system: str
    seed: int
    error: str


@dataclass(frozen=True)
class Source:
    """One of the folders that merged results come from."""

    folder: str
    environment: Mapping[str, Any]
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Results:
    """All of `results.json`; of merged results `sources` say where the runs come from."""

    runs: tuple[Run, ...]
    environment: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    data: Data | None = None
    failures: tuple[Failure, ...] = ()
    sources: tuple[Source, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """What `results.json` holds."""
        record = to_json(self)
        runs = record.pop("runs", [])  # last, as they are long
        return {"schema_version": SCHEMA_VERSION, **record, "runs": runs}


def to_json(value: Any) -> Any:
    """A record ready for JSON, without the fields that are empty or not known; what the others hold stays as it is."""
    if is_dataclass(value):
        known = {one.name: getattr(value, one.name) for one in fields(value)}
        return {name: to_json(one) for name, one in known.items() if one is not None and one != () and one != {}}
    if isinstance(value, Mapping):
        return {name: to_json(one) for name, one in value.items()}
    return [to_json(one) for one in value] if isinstance(value, list | tuple) else value


def data_from_json(value: Mapping[str, Any]) -> Data:
    """The record of a data set, from what `ceiling.reachable` returns or `results.json` holds."""
    tasks = {}
    for name, task in value.get("tasks", {}).items():
        templates = {
            template: TemplateData(one["n"], one["reachable"], tuple(one.get("unseen_words", ())))
            for template, one in task.get("templates", {}).items()
        }
        tasks[name] = _record(TaskData, {**task, "templates": templates})
    return Data(value["name"], tasks, value.get("digest"))


def scores_from_json(value: Mapping[str, Any]) -> Scores:
    """The record of a task's scores, from what `Evaluation.summary` returns or `results.json` holds."""
    intervals = {key: tuple(value[key]) for key in value if key.endswith("_interval")}
    return _record(Scores, {**value, **intervals})


def run_from_json(value: Mapping[str, Any]) -> Run:
    """The record of a run whose parts are known to be there."""
    tasks = {name: scores_from_json(scores) for name, scores in value["tasks"].items()}
    parts: dict[str, Any] = {key: tuple(value.get(key) or ()) for key in ("losses", "curve")}
    if value.get("data"):
        parts["data"] = data_from_json(value["data"])
    return _record(Run, {**value, **parts, "tasks": tasks})


def results_from_json(value: Any, where: str) -> Results:
    """The records of a results file of either version.

    Args:
        value: what the file holds.
        where: the file, for messages.

    Raises:
        ValueError: a part is missing or of the wrong kind, or the file is of a later version.
    """
    version = value.get("schema_version", 1) if isinstance(value, dict) else 1
    if version not in (1, SCHEMA_VERSION):
        raise ValueError(f"{where}: schema_version must be 1 or {SCHEMA_VERSION}, got {version!r}; update bico-ext")
    runs = value.get("runs") if isinstance(value, dict) else None
    if not isinstance(runs, list) or not runs:
        raise ValueError(f"{where} must hold an object with a list of one or more runs, got {runs!r:.60}")
    if version == 1:
        value = upgraded(value)
    for number, run in enumerate(value["runs"], 1):
        _check_run(run, f"{where}: run {number}")
    return Results(
        tuple(map(run_from_json, value["runs"])),
        value.get("environment") or {},
        value.get("settings") or {},
        data_from_json(value["data"]) if value.get("data") else None,
        tuple(_record(Failure, failure) for failure in value.get("failures", ())),
        tuple(_record(Source, source) for source in value.get("sources", ())),
    )


def read_results(folder: str | os.PathLike[str]) -> Results:
    """Read and check the `results.json` of a folder.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is broken, holds no runs or is of a later version; the text names the file and the defect.
    """
    path = Path(folder) / "results.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; name folders that bico compare or bico evaluate wrote")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # bad JSON or bad UTF-8
        raise ValueError(f"{path} is broken: {error}") from error
    return results_from_json(value, str(path))


def read_predictions(folder: str | os.PathLike[str], results: Results) -> list[dict[str, Any]]:
    """Read the `predictions.jsonl` of a folder; none if the file is missing.

    `bico evaluate` asks a single model and does not write its name into each line: it is added.

    Raises:
        ValueError: a broken line, named.
    """
    path = Path(folder) / "predictions.jsonl"
    if not path.is_file():
        return []
    rows = []
    for where, value in read_records(path):
        if not isinstance(value, dict):
            raise ValueError(f"{where}: expected a JSON object, got {value!r:.60}")
        row = {"system": results.runs[0].system, **with_system(value)}
        lacking = [name for name in ("task", "prompt", "target", "completion", "contains") if name not in row]
        if lacking:
            raise ValueError(f"{where}: lacks {', '.join(lacking)}")
        rows.append(row)
    return rows


def _check_run(run: Any, where: str) -> None:
    if not isinstance(run, dict) or not isinstance(run.get("system"), str):
        raise ValueError(f"{where} must be an object that names its system, got {run!r:.60}")
    tasks = run.get("tasks")
    if not isinstance(tasks, dict) or not tasks:
        raise ValueError(f"{where} ({run['system']}) must hold scores by task, got {tasks!r:.60}")
    for task, values in tasks.items():
        known = values if isinstance(values, dict) else {}
        lacking = [name for name in ("n", *METRICS) if not isinstance(known.get(name), int | float)]
        if lacking:
            raise ValueError(f"{where} ({run['system']}), {task}: lacks {', '.join(lacking)}")


def _record(kind: type[Record], value: Mapping[str, Any]) -> Record:
    """A dataclass from the keys that it has fields for."""
    known = {one.name for one in fields(kind)}  # type: ignore[arg-type]
    return kind(**{key: one for key, one in value.items() if key in known})
