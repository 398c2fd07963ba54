"""Conversion of results files of version 1 to the keys of version 2.

Version 1 stored a run's system under "objective", and its objective under "trained" if the two differed. It called a
forward counterpart "twin" and a template "frame".
"""

from collections.abc import Mapping
from typing import Any

_OLD_KEYS = {"twin": "counterpart", "frames": "templates"}


def upgraded(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a version 1 results file with the keys of version 2."""
    settings = _renamed(value.get("settings") or {}, {"objectives": "systems"})
    data = value.get("data")
    if data:
        tasks = {name: _renamed(task, _OLD_KEYS) for name, task in data.get("tasks", {}).items()}
        data = {"name": settings.get("data", ""), **data, "tasks": tasks}
    return {
        **value,
        "settings": settings,
        "data": data,
        "runs": [_upgraded_run(run) if isinstance(run, dict) else run for run in value["runs"]],
        "failures": [with_system(failure) for failure in value.get("failures", ())],
    }


def _upgraded_run(run: Mapping[str, Any]) -> dict[str, Any]:
    upgraded = _renamed(run, {"objective": "system", "trained": "objective"})
    if "losses" in run:
        upgraded.setdefault("objective", run.get("objective"))
    if isinstance(run.get("tasks"), dict):
        upgraded["tasks"] = {
            task: _renamed(scores, _OLD_KEYS) if isinstance(scores, dict) else scores
            for task, scores in run["tasks"].items()
        }
    return upgraded


def with_system(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return a prediction or a failure of either version with the keys of version 2."""
    return dict(value) if "system" in value else _renamed(value, {"objective": "system", "frame": "template"})


def _renamed(value: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {names.get(key, key): entry for key, entry in value.items()}
