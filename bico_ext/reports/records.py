"""Typed records of `results.json` and `predictions.jsonl`; files of version 1 can be read, too.

A *system* is a row of the comparison: an objective with a model and data. An *objective* is what the optimizer steps
train.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from bico_ext.facts.jsonl import read_records
from bico_ext.files import expand_user, read_text
from bico_ext.reports.version_1 import upgraded, with_system

SCHEMA_VERSION = 2
BEFORE = "before fine-tuning"  # the system of the run that only evaluates the given model of a comparison
METRICS = {
    "contains": "target contained in the answer (names: the paper's metric; descriptions: without the final full stop)",
    "exact_match": "answer equals target",
    "bleu_char": "the paper's BLEU for descriptions: NLTK sentence_bleu on raw strings, that is on characters",
    "bleu": "BLEU on words (sacrebleu)",
}
METRICS_OF_SOME_TASKS = {
    "any_wording": "the answer contains a target that the task has for the same entity, in whichever of its wordings",
    "echo": "the answer contains the name that the question gives, not the target",
}

# A line of predictions.jsonl: "system", "seed" and the fields of `bico_ext.evaluation.evaluate.Prediction`.
Prediction = Mapping[str, Any]
Record = TypeVar("Record")


@dataclass(frozen=True)
class TemplateData:
    """A template of a task's questions.

    Attributes:
        n: the number of its questions.
        reachable: the share of their targets that the training texts contain.
        unseen_words: the words of the template that occur in no training text.
    """

    n: int
    reachable: float
    unseen_words: tuple[str, ...] = ()


@dataclass(frozen=True)
class TaskData:
    """The description of a task, which does not depend on any model.

    Attributes:
        answer: the kind of its targets, "name" or "description".
        n: the number of its questions.
        reachable: the ceiling, that is the share of the targets that the training texts contain.
        counterpart: for a reverse task, its forward counterpart.
        templates: the descriptions of its templates.
    """

    answer: str
    n: int
    reachable: float
    counterpart: str | None = None
    templates: Mapping[str, TemplateData] = field(default_factory=dict)


@dataclass(frozen=True)
class Data:
    """The description of a data set, from `bico_ext.evaluation.ceiling.reachable`.

    Attributes:
        name: the name of the data set.
        tasks: the descriptions of its tasks, by name.
        digest: the hash of all texts and questions; None in files of version 1.
    """

    name: str
    tasks: Mapping[str, TaskData]
    digest: str | None = None


@dataclass(frozen=True)
class Scores:
    """The scores of a run in one task: shares from 0 to 1, as `bico_ext.evaluation.metrics` defines them.

    Attributes:
        n: the number of questions.
        contains, exact_match, bleu_char, bleu: the metrics of `METRICS`.
        contains_interval, exact_match_interval: 95 % Wilson intervals.
        contains_entity_interval, exact_match_entity_interval: 95 % intervals over entities, if questions share them.
        any_wording, echo: the metrics of `METRICS_OF_SOME_TASKS`, if the task has them.
        templates, entities: `contains` by template and by entity, if the questions name them.
        likelihood: the result of the log-probability test, if it was made.
    """

    n: int
    contains: float
    exact_match: float
    bleu_char: float
    bleu: float
    contains_interval: tuple[float, ...] | None = None
    exact_match_interval: tuple[float, ...] | None = None
    contains_entity_interval: tuple[float, ...] | None = None
    exact_match_entity_interval: tuple[float, ...] | None = None
    any_wording: float | None = None
    echo: float | None = None
    templates: Mapping[str, float] = field(default_factory=dict)
    entities: Mapping[str, float] = field(default_factory=dict)
    likelihood: Mapping[str, Any] | None = None

    def interval(self, metric: str) -> tuple[float, ...] | None:
        """The 95 % interval of a metric: over entities if questions share them, else Wilson's; None if it has none."""
        over_entities = getattr(self, f"{metric}_entity_interval", None)
        return over_entities or getattr(self, f"{metric}_interval", None)


@dataclass(frozen=True)
class Fluency:
    """What `bico_ext.evaluation.fluency.fluency` measured: whether the model still speaks.

    Attributes:
        tokens: the number of tokens that were predicted.
        text: the name of their text.
        digest: the hash of the text.
        answers: the answers to everyday prompts.
        perplexity: the perplexity per token; None for a diverged model.
    """

    tokens: int
    text: str
    digest: str
    answers: Mapping[str, str]
    perplexity: float | None = None


@dataclass(frozen=True)
class Run:
    """A system trained with one seed, or a model that was only evaluated, which has scores and little else.

    Attributes:
        system: the name of the system, or the evaluated model.
        tasks: the scores by task.
        objective: what the optimizer steps train beside next-token prediction; None for an evaluated model.
        seed: the seed of the weights, the data order and the masks; None for an evaluated model.
        mixing_probability: the probability that an optimizer step trained the objective.
        texts: the number of training texts, without replayed ones.
        replayed: the number of replayed pre-training texts.
        threads: the number of threads that trained.
        device: the device that trained: "cpu", or the name of a GPU.
        train_seconds: the duration of the training, without the evaluations for the learning curve.
        parameters: the number of parameters of the model.
        model_digest: what identifies the content of the model that was evaluated, or that the training started from
            (`bico_ext.models.checkpoints.content_digest`); None for a tiny one.
        losses: {"step", "loss_ntp", "loss_<objective>"} for each log entry; None where a loss is not finite.
        curve: {"step", "tasks": {task: contains}} for each point of the learning curve.
        fluency: whether the model still speaks; None for models trained from scratch.
        label: the name of the run in merged results, which tells it apart from other runs of its system.
        data: the data set of the run, if merged results do not share theirs.
    """

    system: str
    tasks: Mapping[str, Scores]
    objective: str | None = None
    seed: int | None = None
    mixing_probability: float | None = None
    texts: int | None = None
    replayed: int | None = None
    threads: int | None = None
    device: str | None = None
    train_seconds: float | None = None
    parameters: int | None = None
    model_digest: str | None = None
    losses: tuple[Mapping[str, Any], ...] = ()
    curve: tuple[Mapping[str, Any], ...] = ()
    fluency: Fluency | None = None
    label: str | None = None
    data: Data | None = None

    @property
    def name(self) -> str:
        """The name of the run in a report."""
        return self.label or self.system


@dataclass(frozen=True)
class Failure:
    """A run that did not finish, and its error."""

    system: str
    seed: int
    error: str


@dataclass(frozen=True)
class Source:
    """A folder that merged results come from."""

    folder: str
    environment: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Results:
    """The content of `results.json`. In merged results, `sources` lists the folders that the runs come from."""

    runs: tuple[Run, ...]
    environment: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    data: Data | None = None
    failures: tuple[Failure, ...] = ()
    sources: tuple[Source, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the content of `results.json`, with the definitions of the metrics beside the numbers."""
        record = to_json(self)
        runs = record.pop("runs", [])  # placed last, because they are long
        metrics = {**METRICS, **METRICS_OF_SOME_TASKS}
        return {"schema_version": SCHEMA_VERSION, "metrics": metrics, **record, "runs": runs}


def to_json(value: Any) -> Any:
    """Return a record ready for JSON.

    Fields of a record that are None or empty are left out. Mappings and sequences inside the fields keep all entries.
    """
    if is_dataclass(value):
        known = {part.name: getattr(value, part.name) for part in fields(value)}
        return {name: to_json(entry) for name, entry in known.items() if entry is not None and entry not in ((), {})}
    if isinstance(value, Mapping):
        return {name: to_json(entry) for name, entry in value.items()}
    return [to_json(entry) for entry in value] if isinstance(value, list | tuple) else value


def data_from_json(value: Mapping[str, Any]) -> Data:
    """Return the record of a data set, from the result of `ceiling.reachable` or the content of `results.json`."""
    tasks = {}
    for name, task in (value.get("tasks") or {}).items():
        templates = {
            template: TemplateData(known["n"], known["reachable"], tuple(known.get("unseen_words") or ()))
            for template, known in (task.get("templates") or {}).items()
        }
        tasks[name] = _record(TaskData, {**task, "templates": templates})
    return Data(value["name"], tasks, value.get("digest"))


def tasks_from_json(value: Mapping[str, Mapping[str, Any]]) -> dict[str, Scores]:
    """Return the scores by task, from `Evaluation.summary` or the content of `results.json`."""
    tasks = {}
    for name, scores in value.items():
        intervals = {key: tuple(scores[key]) for key in scores if key.endswith("_interval") and scores[key] is not None}
        tasks[name] = _record(Scores, {**scores, **intervals})
    return tasks


def run_from_json(value: Mapping[str, Any]) -> Run:
    """Return the record of a run; the required keys must be there."""
    parts: dict[str, Any] = {key: tuple(value.get(key) or ()) for key in ("losses", "curve")}
    if value.get("data"):
        parts["data"] = data_from_json(value["data"])
    if value.get("fluency"):
        parts["fluency"] = _record(Fluency, value["fluency"])
    return _record(Run, {**value, **parts, "tasks": tasks_from_json(value["tasks"])})


def results_from_json(value: Any, where: str) -> Results:
    """Return the records of a results file of either version.

    Args:
        value: the parsed content of the file.
        where: the name of the file, for error messages.

    Raises:
        ValueError: a part is missing or has the wrong type, or the file is of a later version.
    """
    version = value.get("schema_version", 1) if isinstance(value, dict) else 1
    if version not in (1, SCHEMA_VERSION):
        raise ValueError(f"{where}: schema_version must be 1 or {SCHEMA_VERSION}, got {version!r}; update bico-ext")
    runs = value.get("runs") if isinstance(value, dict) else None
    if not isinstance(runs, list) or not runs:
        raise ValueError(f"{where} must hold an object with a list of one or more runs, got {runs!r:.60}")
    try:
        if version == 1:
            value = upgraded(value)
        for number, run in enumerate(value["runs"], 1):
            _check_run(run, f"{where}: run {number}")
        return Results(
            tuple(map(run_from_json, value["runs"])),
            value.get("environment") or {},
            value.get("settings") or {},
            data_from_json(value["data"]) if value.get("data") else None,
            tuple(_record(Failure, failure) for failure in value.get("failures") or ()),
            tuple(_record(Source, source) for source in value.get("sources") or ()),
        )
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{where} holds a record that lacks a part ({type(error).__name__}: {error})") from error


def read_results(folder: str | os.PathLike[str]) -> Results:
    """Read and check the `results.json` of a folder.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is broken, holds no runs or is of a later version; the message names the file and the defect.
    """
    path = Path(expand_user(folder)) / "results.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; name folders that bico compare or bico evaluate wrote")
    try:
        value = json.loads(read_text(path))
    except ValueError as error:  # bad JSON or bad UTF-8
        raise ValueError(f"{path} is broken: {error}") from error
    return results_from_json(value, str(path))


def read_predictions(folder: str | os.PathLike[str], results: Results) -> list[dict[str, Any]]:
    """Read the `predictions.jsonl` of a folder; the result is empty if the file is missing.

    `bico evaluate` evaluates a single model and does not write its name into each line, so the name is added here.

    Raises:
        ValueError: a line is broken; the message names it.
    """
    path = Path(expand_user(folder)) / "predictions.jsonl"
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
    """Raise an error if a run lacks its system, tasks or metrics."""
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
    """Return a dataclass made from the keys that are its fields; other keys are ignored."""
    known = {part.name for part in fields(kind)}  # type: ignore[arg-type]
    return kind(**{key: entry for key, entry in value.items() if key in known})
