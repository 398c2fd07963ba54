"""Several folders of results as one, without averaging what was not measured under the same settings."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bico_ext.reports.records import Results, Run, Source, read_predictions, read_results


def merge(folders: Sequence[str | os.PathLike[str]]) -> tuple[Results, list[dict[str, Any]]]:
    """Read the results and predictions of several folders into one.

    Runs of the same settings on the same data belong together: more seeds or systems of one comparison. If settings
    differ, the label of each run says what differs, such as "bico (steps 3000)". If data differ, the label names the
    folder and each run carries its own data. The same data under two paths is the same data, as far as both files
    describe it.

    Args:
        folders: one or more, each with a `results.json` and, for samples of answers, a `predictions.jsonl`.

    Returns:
        Results whose `sources` say where the runs come from, and the predictions with the "label" of their runs.

    Raises:
        FileNotFoundError: a folder has no results.
        ValueError: a file is broken; the same run (settings, data, system, seed) is in two folders or twice in one.
    """
    everything = [read_results(folder) for folder in folders]
    settings = [_settings(results) for results in everything]
    described = all(results.data for results in everything)
    data = [results.data if described else own.get("data") for results, own in zip(everything, settings, strict=True)]
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

    runs: list[Run] = []
    predictions: list[dict[str, Any]] = []
    seen: dict[tuple[str, int | None], str] = {}  # a label and a seed: the file that has the run
    for folder, results, suffix in zip(folders, everything, suffixes, strict=True):
        file = str(Path(folder) / "results.json")
        for run in results.runs:
            label = _label(run.system, suffix)
            key = (label, run.seed)
            if key in seen:
                seed = "" if run.seed is None else f" with seed {run.seed}"
                raise ValueError(
                    f"{seen[key]} and {file} both hold {run.system}{seed} under the same settings; leave one out"
                )
            seen[key] = file
            runs.append(replace(run, label=label, data=None if same_data else results.data))
        rows = read_predictions(folder, results)
        predictions += [row | {"label": _label(row["system"], suffix)} for row in rows]
    merged = Results(
        runs=tuple(runs),
        data=next((results.data for results in everything if results.data), None) if same_data else None,
        failures=tuple(
            failure
            for results, suffix in zip(everything, suffixes, strict=True)
            for failure in results.failures
            if (_label(failure.system, suffix), failure.seed) not in seen
        ),
        sources=tuple(
            Source(os.fspath(folder), results.environment, results.settings)
            for folder, results in zip(folders, everything, strict=True)
        ),
    )
    return merged, predictions


def _settings(results: Results) -> dict[str, Any]:
    """What decides the numbers and is not said otherwise: `bico evaluate` calls the model itself the system."""
    settings = dict(results.settings)
    settings.pop("output_dir", None)
    if all(run.system == settings.get("model") for run in results.runs):
        settings.pop("model", None)
    return settings


def _label(system: str, suffix: str) -> str:
    return f"{system} ({suffix})" if suffix else system


def _differences(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """For each folder, the settings in which any two folders differ: "steps 3000, layers 2"; "" where none do."""
    names = {name: None for own in settings for name in own}
    differing = [name for name in names if any(own.get(name) != settings[0].get(name) for own in settings)]
    return [", ".join(f"{name} {own.get(name, 'not recorded')}" for name in differing) for own in settings]


def _folder_names(folders: Sequence[str | os.PathLike[str]]) -> list[str]:
    """The folders' names, or their paths where two have the same name."""
    names = [Path(folder).resolve().name for folder in folders]
    return names if len(set(names)) == len(names) else [os.fspath(folder) for folder in folders]
