"""The records of runs on the real Llama: what a line of `cells.jsonl` holds, and which of several lines counts."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import mean
from typing import Any

from bico_ext import environment
from bico_ext.comparison.config import CompareConfig
from bico_ext.reports.records import Run, to_json
from real_llama_cells.matrix import Cell

Record = dict[str, Any]  # it has "run" if the cell is finished, and "error" if it failed


def finished_record(cell: Cell, config: CompareConfig, data: Record, run: Run, seconds: float) -> Record:
    """Return what is kept of a finished run.

    Args:
        cell: the cell that was run.
        config: the settings of the run.
        data: the description of the facts.
        run: the result.
        seconds: wall time of all that the run did.
    """
    result = to_json(run)
    for scores in result["tasks"].values():
        scores.pop("entities", None)  # half of the record; the answers tell them, too
    machine = environment.describe()
    return {
        "cell": cell_to_json(cell),
        "settings": {name: getattr(config, name) for name in cell.settings},
        "environment": {name: machine[name] for name in ("torch", "transformers", "cpu", "kernels", "cuda")},
        "jobs": config.jobs,
        "seconds": round(seconds, 1),
        "data": data,
        "run": result,
    }


def failed_record(cell: Cell, error: str) -> Record:
    """Return what is kept of a cell that failed."""
    return {"cell": cell_to_json(cell), "settings": cell.settings, "error": error}


def cell_of(record: Record) -> Cell:
    cell = record["cell"]
    return Cell(**{**cell, "changes": tuple(cell.get("changes", {}).items())})


def cell_to_json(cell: Cell) -> Record:
    """Return what a record says of its cell; `changes` only if there are some, as in the records of the first cells."""
    written = {name: value for name, value in vars(cell).items() if name != "changes"}
    return {**written, "changes": dict(cell.changes)} if cell.changes else written


def scores_of(records: Mapping[str, Record]) -> dict[Cell, float]:
    """Return the score of each finished cell: the mean over the tasks of `contains`."""
    return {
        cell_of(record): mean(task["contains"] for task in record["run"]["tasks"].values())
        for record in records.values()
        if "run" in record
    }


def read_cells(file: Path) -> list[Record]:
    """Return the records of a file; there are none if it does not exist."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return [json.loads(line) for line in lines]


def joined(records: Iterable[Record]) -> list[Record]:
    """Return one record per cell and settings: the last one, but a failure replaces no finished cell."""
    kept: dict[tuple[str, str], Record] = {}
    for record in records:
        key = cell_of(record).name, json.dumps(record["settings"], sort_keys=True)
        if "run" in record or "run" not in kept.get(key, {}):
            kept[key] = record
    return [kept[key] for key in sorted(kept)]


def by_name(records: Iterable[Record]) -> dict[str, Record]:
    """Return the records that were made with today's settings, by the names of their cells."""
    of_cells = [(cell_of(record), record) for record in joined(records)]
    return {cell.name: record for cell, record in of_cells if record["settings"] == cell.settings}
