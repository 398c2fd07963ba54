"""Several folders of results as one, without averaging what was not measured under the same settings."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bico_ext.reports.records import read_predictions, read_results


def merge(folders: Sequence[str | os.PathLike[str]]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Read several folders' results and predictions into one.

    Runs of the same settings on the same data belong together: more seeds or objectives of one comparison. If
    settings differ, each run's "label" says what differs, such as "bico (steps 3000)"; if data differ, it names the
    folder and the run carries its own "data". The same data under two paths is the same data, as far as both
    files describe it.

    Args:
        folders: one or more, each with a `results.json` and, for samples of answers, a `predictions.jsonl`.

    Returns:
        Results as in `results.json`, with "sources" (folder, environment and settings of each) instead of
        "environment" and "settings"; and the predictions, labelled as their runs.

    Raises:
        FileNotFoundError: a folder has no results.
        ValueError: a file is broken; the same run (settings, data, objective, seed) is in two folders or twice in one.
    """
    all_results = [read_results(folder) for folder in folders]
    settings = [_settings(results) for results in all_results]
    described = all(results.get("data") for results in all_results)
    data = [
        results["data"] if described else own.get("data") for results, own in zip(all_results, settings, strict=True)
    ]
    for own in settings:
        own.pop("data", None)  # from here on it is in `data`
    same_data = all(one == data[0] for one in data)
    if same_data:
        suffixes = _differences(settings)
    else:
        names = _folder_names(folders)
        groups = list(zip(settings, data, strict=True))
        suffixes = [
            ", ".join(name for name, group in zip(names, groups, strict=True) if group == own) for own in groups
        ]

    runs: list[dict[str, Any]] = []
    predictions: list[dict[str, Any]] = []
    seen: dict[tuple[str, int | None], str] = {}  # a label and a seed: the file that has the run
    for folder, results, suffix in zip(folders, all_results, suffixes, strict=True):
        file = str(Path(folder) / "results.json")
        for run in results["runs"]:
            run = run | {"label": _label(run["objective"], suffix)}
            key = (run["label"], run.get("seed"))
            if key in seen:
                seed = "" if key[1] is None else f" with seed {key[1]}"
                raise ValueError(
                    f"{seen[key]} and {file} both hold {run['objective']}{seed} under the same settings; leave one out"
                )
            seen[key] = file
            own_data = results.get("data")
            runs.append(run if same_data or not own_data else run | {"data": own_data})
        rows = read_predictions(folder, results)
        predictions += [row | {"label": _label(row["objective"], suffix)} for row in rows]
    merged: dict[str, Any] = {
        "sources": [
            {
                "folder": os.fspath(folder),
                "environment": results.get("environment", {}),
                "settings": results.get("settings", {}),
            }
            for folder, results in zip(folders, all_results, strict=True)
        ],
        "runs": runs,
        "failures": [
            failure
            for results, suffix in zip(all_results, suffixes, strict=True)
            for failure in results.get("failures", [])
            if (_label(failure["objective"], suffix), failure["seed"]) not in seen
        ],
    }
    known = next((results["data"] for results in all_results if results.get("data")), None)
    if same_data and known:
        merged["data"] = known
    return merged, predictions


def _settings(results: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the numbers and is not said otherwise: bico evaluate calls the model itself the objective."""
    settings = dict(results.get("settings") or {})
    settings.pop("output_dir", None)
    if all(run["objective"] == settings.get("model") for run in results["runs"]):
        settings.pop("model", None)
    return settings


def _label(objective: str, suffix: str) -> str:
    return f"{objective} ({suffix})" if suffix else objective


def _differences(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """For each folder, the settings in which any two folders differ: "steps 3000, layers 2"; "" where none do."""
    names = {name: None for own in settings for name in own}
    differing = [name for name in names if any(own.get(name) != settings[0].get(name) for own in settings)]
    return [", ".join(f"{name} {own.get(name, 'not recorded')}" for name in differing) for own in settings]


def _folder_names(folders: Sequence[str | os.PathLike[str]]) -> list[str]:
    """The folders' names, or their paths where two have the same name."""
    names = [Path(folder).resolve().name for folder in folders]
    return names if len(set(names)) == len(names) else [os.fspath(folder) for folder in folders]
