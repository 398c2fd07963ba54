"""Results as reports ask for them: what `results.json` and `predictions.jsonl` hold, read and looked up.

Keys that older files lack are looked up here, so that nobody else has to know which those are.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bico_ext.facts.types import COUNTERPARTS, TASKS

METRICS = {
    "contains": "target contained in the answer (names: the paper's metric; descriptions: without the final full stop)",
    "exact_match": "answer equals target",
    "bleu_char": "the paper's BLEU for descriptions: NLTK sentence_bleu on raw strings, that is on characters",
    "bleu": "BLEU on words (sacrebleu)",
}
ANY_WORDING = {  # only of tasks for descriptions that have several forms
    "any_wording": "the answer contains a target that the task has for the same entity, in whichever of its wordings"
}
LOSSES = ("next-token prediction", "the objective itself")

Results = Mapping[str, Any]
Run = Mapping[str, Any]
Predictions = Sequence[Mapping[str, Any]]


def label(row: Mapping[str, Any]) -> str:
    """What a report calls a run or a prediction: its objective, and in merged results what sets its folder apart."""
    return row.get("label", row["objective"])


def by_label(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Runs or predictions grouped by label, in the order of their first appearance."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(label(row), []).append(row)
    return groups


def seeds(runs: Sequence[Run]) -> list[int]:
    """The seeds of runs, each once, in order; a model that was only evaluated has none."""
    return sorted({run["seed"] for run in runs if "seed" in run})


def task_names(runs: Sequence[Run]) -> list[str]:
    """The tasks that any of the runs has: the four name/description tasks first, in their order."""
    present = {task: None for run in runs for task in run["tasks"]}
    return [task for task in TASKS if task in present] + [task for task in present if task not in TASKS]


def scores(runs: Sequence[Run], task: str, metric: str = "contains") -> list[float]:
    """A metric of a task, one value for each of the runs that have it."""
    return [run["tasks"][task][metric] for run in runs if metric in run["tasks"].get(task, {})]


def losses(run: Run, kind: str) -> list[tuple[int, float | None]]:
    """A run's training losses of a kind of `LOSSES`, by step: means since the entry before; None where it diverged.

    Entries without a step of that kind are left out; of `bico evaluate` there are none.
    """
    objective = run.get("trained", run["objective"])  # of "glm-abi" it is "abi"
    if kind == LOSSES[1] and objective == "ntp":
        return []
    key = "loss_ntp" if kind == LOSSES[0] else f"loss_{objective}"
    return [(entry["step"], entry[key]) for entry in run.get("losses") or [] if key in entry]


def data_of(results: Results, run: Run) -> Mapping[str, Any]:
    """What is known of the data that a run was asked; empty in old files. Merged runs may each have their own."""
    return run.get("data") or results.get("data") or {}


def task_data(results: Results, run: Run, task: str) -> Mapping[str, Any]:
    """What is known of a task: "answer", "counterpart", "n", "reachable", "templates"; empty in old files."""
    return data_of(results, run).get("tasks", {}).get(task, {})


def ceiling(results: Results, run: Run, task: str) -> float | None:
    """The share of a task's targets that the training text makes reachable; None where it is not known."""
    return task_data(results, run, task).get("reachable")


def counterpart(results: Results, run: Run, task: str) -> str | None:
    """The forward task that a reverse task is compared with; None for a forward task, or one that the run lacks."""
    name = task_data(results, run, task).get("counterpart", COUNTERPARTS.get(task))
    return name if task in run["tasks"] and name in run["tasks"] else None


def read_results(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Read and check the `results.json` of a folder.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is broken or holds no runs; the text names the file and the defect.
    """
    path = Path(folder) / "results.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; name folders that bico compare or bico evaluate wrote")
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # bad JSON or bad UTF-8
        raise ValueError(f"{path} is broken: {error}") from error
    runs = results.get("runs") if isinstance(results, dict) else None
    if not isinstance(runs, list) or not runs:
        raise ValueError(f"{path} must hold an object with a list of one or more runs, got {runs!r:.60}")
    for number, run in enumerate(runs, 1):
        if not isinstance(run, dict) or not isinstance(run.get("objective"), str):
            raise ValueError(f"{path}: run {number} must be an object that names its objective, got {run!r:.60}")
        tasks = run.get("tasks")
        if not isinstance(tasks, dict) or not tasks:
            raise ValueError(f"{path}: run {number} ({run['objective']}) must hold scores by task, got {tasks!r:.60}")
        for task, values in tasks.items():
            known = values if isinstance(values, dict) else {}
            lacking = [name for name in ("n", *METRICS) if not isinstance(known.get(name), int | float)]
            if lacking:
                raise ValueError(f"{path}: run {number} ({run['objective']}), {task}: lacks {', '.join(lacking)}")
    return results


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
    # Split bytes, not text: str.splitlines also cuts at U+2028 and U+0085, which JSON strings may hold unescaped.
    for number, line in enumerate(path.read_bytes().rstrip().split(b"\n"), 1):
        if not line:  # an empty file
            continue
        try:
            row = {"objective": results["runs"][0]["objective"], **json.loads(line)}
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}, line {number}: expected a JSON object, got {line[:60]!r} ({error})") from error
        lacking = [name for name in ("task", "prompt", "target", "completion", "contains") if name not in row]
        if lacking:
            raise ValueError(f"{path}, line {number}: lacks {', '.join(lacking)}")
        rows.append(row)
    return rows
