"""Merging several folders of results, without averaging runs of different settings."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bico_ext.files import expand_user
from bico_ext.reports.records import BEFORE, Results, Run, Source, read_predictions, read_results

# The settings that the scores of a given model before fine-tuning depend on.
SETTINGS_BEFORE = ("model", "max_new_tokens", "eval_bf16")


def merge(folders: Sequence[str | os.PathLike[str]]) -> tuple[Results, list[dict[str, Any]]]:
    """Read the results and predictions of several folders and merge them.

    Runs with the same settings and data belong together, as seeds or systems of one comparison. If the settings differ,
    the label of each run states the difference, as in "bico (steps 3000)". If the data differ, the label names the
    folder, and each run carries its own data. Data are compared by content, not by path, if all files describe them.
    The row of the given model before fine-tuning does not depend on how it was trained: it is kept once.

    Args:
        folders: one or more folders with a `results.json` each. Their `predictions.jsonl`, if there, give the answers.

    Returns:
        The merged results, whose `sources` name the folders; and the predictions, with the "label" of their runs.

    Raises:
        FileNotFoundError: a folder has no results.
        ValueError: a file is broken, or the same run (settings, data, system, seed) occurs twice.
    """
    inputs = [read_results(folder) for folder in folders]
    settings = [_settings(results) for results in inputs]
    described = all(results.data for results in inputs)
    data = [results.data if described else own.get("data") for results, own in zip(inputs, settings, strict=True)]
    for own in settings:
        own.pop("data", None)  # compared through `data` instead
    same_data = all(entry == data[0] for entry in data)
    if same_data:
        suffixes = _differences(settings)
        given = _differences([{name: own.get(name) for name in SETTINGS_BEFORE} for own in settings])
    else:
        names = _folder_names(folders)
        groups = list(zip(settings, data, strict=True))
        suffixes = [
            ", ".join(name for name, group in zip(names, groups, strict=True) if group == own) for own in groups
        ]
        given = suffixes

    runs: list[Run] = []
    predictions: list[dict[str, Any]] = []
    seen: dict[tuple[str, int | None], str] = {}  # the file of each run, by label and seed
    for folder, results, suffix, given_suffix in zip(folders, inputs, suffixes, given, strict=True):
        file = str(Path(expand_user(folder)) / "results.json")
        before = _label(BEFORE, given_suffix)
        repeated = {BEFORE} if (before, None) in seen else set()
        for run in results.runs:
            if run.system in repeated:
                continue
            label = before if run.system == BEFORE else _label(run.system, suffix)
            key = (label, run.seed)
            if key in seen:
                seed = "" if run.seed is None else f" with seed {run.seed}"
                raise ValueError(
                    f"{seen[key]} and {file} both hold {run.system}{seed} under the same settings; leave one out"
                )
            seen[key] = file
            runs.append(replace(run, label=label, data=None if same_data else results.data))
        predictions += [
            row | {"label": before if row["system"] == BEFORE else _label(row["system"], suffix)}
            for row in read_predictions(folder, results)
            if row["system"] not in repeated
        ]
    merged = Results(
        runs=tuple(runs),
        data=next((results.data for results in inputs if results.data), None) if same_data else None,
        failures=tuple(
            failure
            for results, suffix in zip(inputs, suffixes, strict=True)
            for failure in results.failures
            if (_label(failure.system, suffix), failure.seed) not in seen
        ),
        sources=tuple(
            Source(os.fspath(folder), results.environment, results.settings)
            for folder, results in zip(folders, inputs, strict=True)
        ),
    )
    return merged, predictions


def _settings(results: Results) -> dict[str, Any]:
    """Return the settings that determine the numbers, without those that the label of a run states anyway.

    In results of `bico evaluate`, the system is the model itself, so the label states the model.
    """
    settings = dict(results.settings)
    settings.pop("output_dir", None)
    if all(run.system == settings.get("model") for run in results.runs):
        settings.pop("model", None)
    return settings


def _label(system: str, suffix: str) -> str:
    return f"{system} ({suffix})" if suffix else system


def _differences(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return for each folder its values of the settings that differ, as in "steps 3000, layers 2"; "" if none do."""
    names = {name: None for own in settings for name in own}
    differing = [name for name in names if any(own.get(name) != settings[0].get(name) for own in settings)]
    return [", ".join(f"{name} {own.get(name, 'not recorded')}" for name in differing) for own in settings]


def _folder_names(folders: Sequence[str | os.PathLike[str]]) -> list[str]:
    """Return the names of the folders, or their paths if two have the same name."""
    names = [Path(expand_user(folder)).resolve().name for folder in folders]
    return names if len(set(names)) == len(names) else [os.fspath(folder) for folder in folders]
