"""The report as one self-contained HTML page: plots are embedded and all text is escaped."""

import base64
import html
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bico_ext.reports.lookups import by_label, task_names
from bico_ext.reports.records import Data, Prediction, Results, Source
from bico_ext.reports.tables import NOTHING, Table, detail_tables, gap_tables, heading, score_tables

SAMPLES = 5  # right answers per system and task, and as many wrong ones
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72em; margin: 2em auto; padding: 0 1em; color: #222; }
h2 { margin-top: 2em; border-bottom: 1px solid #ccc; }
img { max-width: 100%; }
table { border-collapse: collapse; margin: 1em 0; font-size: 90%; }
caption { text-align: left; padding: .3em 0; max-width: 60em; }
th, td { padding: .2em .7em; text-align: left; vertical-align: top; border-bottom: 1px solid #ddd; }
thead th { border-bottom: 2px solid #888; }
tbody th { font-weight: normal; }
.wide { overflow-x: auto; }
summary { cursor: pointer; }
"""


def html_page(results: Results, predictions: Sequence[Prediction], plots: Mapping[str, Path]) -> str:
    """Return the report as HTML.

    Args:
        results: the content of `results.json`, or merged results.
        predictions: the content of `predictions.jsonl`; may be empty.
        plots: PNG files by title.
    """
    names = sorted({data.name for data in _data_sets(results)})
    title = "bico-ext: " + ", ".join(by_label(results.runs)) + (f" on {', '.join(names)}" if names else "")
    images = [
        f'<h3>{html.escape(name)}</h3>\n<img alt="{html.escape(name)}" src="data:image/png;base64,'
        f'{base64.b64encode(path.read_bytes()).decode("ascii")}">\n'
        for name, path in plots.items()
    ]
    sections = {
        "Data": _join(data_tables(results)) or "<p>Not recorded in these results.</p>\n",
        "Scores": f"<p>{html.escape(heading(results))}</p>\n{_join(score_tables(results))}",
        "Forward and reverse": _join(gap_tables(results)),
        "Plots": "".join(images),
        **{name: _join(tables) for name, tables in detail_tables(results).items()},
        "Answers": _answers(results, predictions),
        "Settings and environment": _join([*source_tables(results), run_table(results)]),
    }
    body = "".join(f"<h2>{name}</h2>\n{content}" for name, content in sections.items() if content)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{html.escape(title)}</title>\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n<h1>{html.escape(title)}</h1>\n{body}</body>\n</html>\n"
    )


def sample(rows: Sequence[Prediction], seed: str) -> list[Prediction]:
    """Return a few right answers, then a few wrong ones, drawn with a seed.

    Example:
        >>> rows = [{"contains": number % 2 == 0, "number": number} for number in range(100)]
        >>> [row["contains"] for row in sample(rows, "a")] == [True] * 5 + [False] * 5
        True
    """
    draw = random.Random(seed)  # a string gives the same numbers in every process
    right, wrong = ([row for row in rows if bool(row["contains"]) is kind] for kind in (True, False))
    return [row for group in (right, wrong) for row in draw.sample(group, min(SAMPLES, len(group)))]


def _answers(results: Results, predictions: Sequence[Prediction]) -> str:
    """Return the sample answers of each system and task, folded until a reader opens them."""
    parts = []
    groups: dict[str, list[Prediction]] = {}
    for row in predictions:
        groups.setdefault(row.get("label", row["system"]), []).append(row)
    for name in by_label(results.runs):
        for task in task_names(results.runs):
            asked = [row for row in groups.get(name, []) if row["task"] == task]
            if not asked:
                continue
            rows = [
                [
                    "right" if row["contains"] else "wrong",
                    _plain(row.get("seed", NOTHING)),
                    row["prompt"],
                    row["target"] + "".join(f" or {answer.strip()}" for answer in row.get("also", ())),
                    row["completion"],
                ]
                for row in sample(asked, f"{name} {task}")
            ]
            table = Table(f"{name}, {task}", ["answer", "seed", "prompt", "expected", "written"], rows)
            right = sum(bool(row["contains"]) for row in asked)
            summary = html.escape(f"{name}, {task}: {right} of {len(asked)} right")
            parts.append(f"<details><summary>{summary}</summary>\n{table.html()}</details>\n")
    if not parts:
        return "<p>No predictions were found beside these results.</p>\n"
    note = f"At most {SAMPLES} right and {SAMPLES} wrong answers per system and task, drawn at random."
    return f"<p>{note}</p>\n{''.join(parts)}"


def data_tables(results: Results) -> list[Table]:
    """Return one table per data set: what each task asks, its number of items, its ceiling. Old files have none."""
    return [
        Table(
            data.name,
            ["task", "answer", "forward counterpart", "items", "ceiling"],
            [
                [name, task.answer, task.counterpart or NOTHING, str(task.n), f"{task.reachable:.2f}"]
                for name, task in data.tasks.items()
            ],
            "ceiling: share of the targets that the training text holds verbatim",
        )
        for data in _data_sets(results)
    ]


def source_tables(results: Results) -> list[Table]:
    """Return the tables of settings and environment; merged results have one column per folder."""
    sources = results.sources or (Source("value", results.environment, results.settings),)
    tables = []
    for title in ("settings", "environment"):
        columns = [getattr(source, title) for source in sources]
        names = {name: None for column in columns for name in column}
        rows = [[name, *(_plain(column.get(name, NOTHING)) for column in columns)] for name in names]
        if rows:
            tables.append(Table(title, ["", *(source.folder for source in sources)], rows))
    return tables


def run_table(results: Results) -> Table:
    """Return the table of all runs, with their seed, training time and number of parameters."""
    rows = [
        [name, *(NOTHING if value is None else str(value) for value in (run.seed, run.train_seconds, run.parameters))]
        for name, members in by_label(results.runs).items()
        for run in members
    ]
    return Table("runs", ["system", "seed", "training, seconds", "parameters"], rows)


def _data_sets(results: Results) -> list[Data]:
    """Return the data sets of the results, each once."""
    sets: list[Data] = []
    for data in (results.data, *(run.data for run in results.runs)):
        if data and data not in sets:
            sets.append(data)
    return sets


def _join(tables: Sequence[Table]) -> str:
    return "".join(table.html() for table in tables)


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
