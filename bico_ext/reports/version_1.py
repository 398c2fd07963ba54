"""Conversion of results files of version 1 to the keys of version 2.

Version 1 stored a run's system under "objective", and its objective under "trained" if the two differed. It called a
forward counterpart "twin" and a template "frame".
"""

from collections.abc import Mapping
from typing import Any

from bico_ext.facts.types import COUNTERPARTS

_OLD_KEYS = {"twin": "counterpart", "frames": "templates"}


def upgraded(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a version 1 results file with the keys of version 2."""
    settings = value.get("settings") or {}
    return {
        **value,
        "data": _upgraded_data(value.get("data"), settings.get("data", "")),
        "runs": [upgraded_run(run) if isinstance(run, dict) else run for run in value["runs"]],
        "failures": [with_system(failure) for failure in value.get("failures") or ()],
    }


def upgraded_run_file(value: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the content of a version 1 file of `runs/`: one record, or two if the model was also asked causally."""
    run = {**upgraded_run(value), "predictions": [with_system(row) for row in value["predictions"]]}
    causal = run.pop("causal", None)
    if causal is None:
        return [run]
    label = f"{run['system']}, asked causally"
    rows = [{**with_system(row), "system": label} for row in causal["predictions"]]
    tasks = upgraded_run({"objective": label, **causal})["tasks"]
    return [run, {**run, "system": label, "losses": [], "curve": [], "tasks": tasks, "predictions": rows}]


def upgraded_run(run: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run of version 1 with the keys of version 2."""
    upgraded = _renamed(run, {"objective": "system", "trained": "objective"})
    if "losses" in run:
        upgraded.setdefault("objective", run.get("objective"))
    if "data" in run:
        upgraded["data"] = _upgraded_data(run["data"], "")
    if isinstance(run.get("tasks"), dict):
        upgraded["tasks"] = {
            task: _renamed(scores, _OLD_KEYS) if isinstance(scores, dict) else scores
            for task, scores in run["tasks"].items()
        }
    return upgraded


def with_system(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return a prediction or a failure of either version with the keys of version 2."""
    return dict(value) if "system" in value else _renamed(value, {"objective": "system", "frame": "template"})


def _upgraded_data(data: Mapping[str, Any] | None, name: str) -> dict[str, Any] | None:
    """Return a data set; early files lack its name and the forward counterparts of the four usual tasks."""
    if not data:
        return None
    tasks = {
        task: {"counterpart": COUNTERPARTS.get(task), **_renamed(known, _OLD_KEYS)}
        for task, known in (data.get("tasks") or {}).items()
    }
    return {"name": name, **data, "tasks": tasks}


def _renamed(value: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {names.get(key, key): entry for key, entry in value.items()}
