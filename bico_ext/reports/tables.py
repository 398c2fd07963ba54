"""The tables of a report, made once as rows of text and written as Markdown, HTML or plain text."""

import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean, stdev
from typing import Any

from bico_ext.reports.gap import gaps
from bico_ext.reports.lookups import (
    LOSSES,
    all_finite,
    by_label,
    ceiling,
    losses,
    scores,
    seeds,
    task_data,
    task_names,
)
from bico_ext.reports.published import PUBLISHED
from bico_ext.reports.records import METRICS, METRICS_OF_SOME_TASKS, Fluency, Results, Run

WORST_ENTITIES = 10  # the number of entities in a table of the worst
FIRST_STEPS = 100  # a table shows the losses of these steps, and the last one
LIKELIHOODS = {
    "correct": "log p correct",
    "distractor": "log p wrong",
    "difference": "difference",
    "preferred": "correct preferred",
}
NOTHING = "-"


@dataclass(frozen=True)
class Table:
    """A table with cells of plain text; the first column names the row.

    Attributes:
        title: a few words.
        columns: the cells of the header.
        rows: the cells of each row, as many as there are columns.
        note: the explanation that a reader needs; may be empty.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""

    def markdown(self) -> str:
        """Return the table in Markdown, below its title in bold and its note."""
        header, *body = ("|".join(["", *map(_in_markdown, cells), ""]) for cells in (self.columns, *self.rows))
        title = f"**{self.title}**" + (f": {self.note}" if self.note else "")
        return "\n".join([title, "", header, "|---" * len(self.columns) + "|", *body]) + "\n"

    def text(self) -> str:
        """Return the table for a terminal, with aligned columns."""
        widths = [max(map(len, column)) for column in zip(self.columns, *self.rows, strict=True)]
        lines = [
            "  ".join(["", *(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))]).rstrip()
            for cells in (self.columns, *self.rows)
        ]
        return "\n".join([self.title, "", *lines, *(["", self.note] if self.note else [])]) + "\n"

    def html(self) -> str:
        """Return the table as an HTML element, with its title and note as the caption."""
        note = f": {html.escape(self.note)}" if self.note else ""
        head = "".join(f"<th>{html.escape(cell)}</th>" for cell in self.columns)
        body = "\n".join(
            f"<tr><th>{html.escape(row[0])}</th>"
            + "".join(f"<td>{html.escape(cell)}</td>" for cell in row[1:])
            + "</tr>"
            for row in self.rows
        )
        caption = f"<caption><b>{html.escape(self.title)}</b>{note}</caption>"
        head = f"<thead><tr>{head}</tr></thead>"
        return f'<div class="wide"><table>{caption}\n{head}\n<tbody>\n{body}\n</tbody></table></div>\n'


def heading(results: Results) -> str:
    """Return one line about the seeds, the meaning of the cells, the number of questions and the failed runs."""
    runs = results.runs
    several = any(len(members) > 1 for members in by_label(runs).values())
    single = [members[0] for members in by_label(runs).values() if len(members) == 1]
    shared = any(scored.contains_entity_interval for run in single for scored in run.tasks.values())
    interval = "interval (over entities if questions share them, else Wilson's)" if shared else "Wilson interval"
    numbers = ", ".join(map(str, seeds(runs)))
    parts = [f"Seed{'s' if len(seeds(runs)) > 1 else ''} {numbers}"] if numbers else []
    parts += ["mean over seeds ± standard deviation"] if several else []
    parts += [f"in brackets: 95 % {interval} of a single run"] if single else []
    items = (f"{task} {_joined({run.tasks[task].n for run in runs if task in run.tasks})}" for task in task_names(runs))
    sentence = "; ".join(parts)
    failed = [f"{failure.system} with seed {failure.seed}" for failure in results.failures]
    missing = f" These runs failed and are in no table: {', '.join(failed)}." if failed else ""
    return f"{sentence[0].upper()}{sentence[1:]}. Test items: {', '.join(items)}.{missing}"


def score_tables(results: Results) -> list[Table]:
    """Return one table per metric; the ceilings and the published scores come with `contains`."""
    runs = results.runs
    tasks = task_names(runs)
    tables = []
    for metric, meaning in METRICS.items():
        rows = [
            [name, *(_over_seeds(members, task, metric) for task in tasks)] for name, members in by_label(runs).items()
        ]
        if metric == "contains" and any(ceiling(results, run, task) is not None for run in runs for task in tasks):
            rows.append(["(ceiling)", *(ceilings(results, task) for task in tasks)])
            meaning += "; ceiling: share of the targets that the training text holds verbatim"
        tables.append(_with_seeds(results, Table(metric, ["system", *tasks], rows, meaning)))
        if metric == "contains":
            tables += [*tables_of_some_tasks(results), *published_tables(results)]
    return tables


def tables_of_some_tasks(results: Results) -> list[Table]:
    """Return one table per metric of `METRICS_OF_SOME_TASKS`, with the tasks in which all runs have that score."""
    runs = results.runs
    tables = []
    for metric, meaning in METRICS_OF_SOME_TASKS.items():
        tasks = [task for task in task_names(runs) if len(scores(runs, task, metric)) == len(scores(runs, task))]
        rows = [
            [name, *(_over_seeds(members, task, metric) for task in tasks)] for name, members in by_label(runs).items()
        ]
        if tasks:
            tables.append(_with_seeds(results, Table(metric, ["system", *tasks], rows, meaning)))
    return tables


def published_tables(results: Results) -> list[Table]:
    """Return the table of scores that others published for tasks of these results; none if there are none."""
    tasks = task_names(results.runs)
    rows = [
        [entry.model, *(entry.scores.get(task, NOTHING) for task in tasks), entry.metric, entry.source]
        for entry in PUBLISHED
        if any(task in entry.scores for task in tasks)
    ]
    note = (
        "other, larger, pre-trained models, fine-tuned on the facts of the publication and scored by its metric; not "
        "measured here, not comparable number by number"
    )
    return [Table("published, not ours", ["model", *tasks, "metric", "source"], rows, note)] if rows else []


def gap_tables(results: Results) -> list[Table]:
    """Return one table per reverse task: its forward counterpart, the gap, and the same as shares of the ceilings."""
    tables: dict[str, list[list[str]]] = {}
    known = False
    for row in gaps(results):
        known |= row.share_gap is not None
        numbers = (row.forward, row.reverse, row.gap, row.forward_share, row.reverse_share, row.share_gap)
        cells = [NOTHING if values is None else spread(values) for values in numbers]
        cells[0] += _of(row.forward_ceiling)
        cells[1] += _of(row.reverse_ceiling)
        tables.setdefault(f"{row.task} against {row.counterpart}", []).append([row.label, *cells])
    columns = ["system", "forward", "reverse", "gap", "forward, share", "reverse, share", "gap of shares"]
    width = len(columns) if known else 4
    note = "contains; gap: forward minus reverse, seed by seed"
    note += "; share: of the ceiling, which stands after “of”" if known else "; the ceilings are not recorded"
    return [
        _with_seeds(results, Table(title, columns[:width], [row[:width] for row in rows], note))
        for title, rows in tables.items()
    ]


def template_tables(results: Results) -> list[Table]:
    """Return `contains` by template, in one table for each task that has templates."""
    groups = by_label(results.runs)
    tables = []
    for task in task_names(results.runs):
        by_run = [_parts(run, task, "templates") for run in results.runs]
        descriptions = [task_data(results, run, task) for run in results.runs]
        described = [description.templates for description in descriptions if description]
        templates = {template: None for entries in (*described, *by_run) for template in entries}
        if not any(by_run):
            continue
        rows = []
        for template in templates:
            data = [entries[template] for entries in described if template in entries]
            unseen = {word: None for entry in data for word in entry.unseen_words}
            cells = [_joined({entry.n for entry in data}), _joined({f"{entry.reachable:.2f}" for entry in data})]
            cells += [_over_parts(members, task, "templates", template) for members in groups.values()]
            rows.append([template, *cells, ", ".join(unseen)])
        columns = ["template", "items", "ceiling", *groups, "words unseen in training"]
        tables.append(Table(f"{task} by template", columns, rows, "contains, mean over seeds"))
    return tables


def entity_tables(results: Results) -> list[Table]:
    """Return the entities with the lowest scores, in one table for each task that has entities."""
    groups = by_label(results.runs)
    tables = []
    for task in task_names(results.runs):
        by_run = [_parts(run, task, "entities") for run in results.runs]
        by_entity: dict[str, list[float]] = {}
        for entity_scores in by_run:
            for entity, score in entity_scores.items():
                by_entity.setdefault(entity, []).append(score)
        if not by_entity:
            continue
        worst = sorted(by_entity, key=lambda entity: mean(by_entity[entity]))[:WORST_ENTITIES]
        rows = [
            [entity, *(_over_parts(members, task, "entities", entity) for members in groups.values())]
            for entity in worst
        ]
        note = f"contains, mean over seeds; the {len(worst)} of {len(by_entity)} with the lowest mean over all runs"
        tables.append(Table(f"{task}, worst entities", ["entity", *groups], rows, note))
    return tables


def likelihood_tables(results: Results) -> list[Table]:
    """Return the log-probability test, in one table for each task that has wrong answers to compare with."""
    tables = []
    for task in task_names(results.runs):
        rows = []
        for name, members in by_label(results.runs).items():
            tests = [test for run in members if (test := _parts(run, task, "likelihood"))]
            if tests:
                means = (spread(_defined(tests, key)) for key in LIKELIHOODS)
                largest = (_largest(_defined(tests, key)) for key in ("t_p", "ks_p"))
                rows.append([name, *means, *largest])
        if rows:
            columns = ["system", *LIKELIHOODS.values(), "p (t)", "p (KS)"]
            note = (
                "log-probabilities of whole answers, correct against wrong; paired t-test and Kolmogorov-Smirnov test, "
                "with the largest p over seeds"
            )
            tables.append(_with_seeds(results, Table(f"{task}, log-probability test", columns, rows, note)))
    return tables


def fluency_tables(results: Results) -> list[Table]:
    """Return the perplexities of the systems and their answers to everyday prompts; none if no run measured them."""
    measured: dict[str, list[Fluency]] = {}
    for run in results.runs:
        if run.fluency:
            measured.setdefault(run.name, []).append(run.fluency)
    if not measured:
        return []
    every = [one for members in measured.values() for one in members]
    body = [[name, _spread_or_nan([one.perplexity for one in members])] for name, members in measured.items()]
    columns = ["system", "perplexity"]
    if len({_text(one) for one in every}) > 1:
        columns.append("text")
        for row, members in zip(body, measured.values(), strict=True):
            row.append(_joined({_text(one) for one in members}))
        text = "each system's text is named; compare those with the same one"
    else:
        text = _text(every[0])
    prompts = {prompt: None for one in every for prompt in one.answers}
    answers = [
        [prompt, *(members[0].answers.get(prompt, NOTHING) for members in measured.values())] for prompt in prompts
    ]
    note = f"per token of English prose ({text}); comparable only between models with the same tokenizer"
    return [
        _with_seeds(results, Table("perplexity", columns, body, note)),
        Table("everyday prompts", ["prompt", *measured], answers, "greedy answers, from the first run of each system"),
    ]


def _text(fluency: Fluency) -> str:
    return f"{fluency.text}, {fluency.tokens:,} tokens, hash {fluency.digest}"


def loss_tables(results: Results) -> list[Table]:
    """Return the training losses of the first steps and at the end, in one table for each kind of known loss."""
    tables = []
    for kind in LOSSES:
        logged = {
            name: [log for run in members if (log := losses(run, kind))]
            for name, members in by_label(results.runs).items()
        }
        first = sorted({step for logs in logged.values() for log in logs for step, _ in log if step <= FIRST_STEPS})
        rows = []
        for name, logs in logged.items():
            steps = [[loss for log in logs for at, loss in log if at == step] for step in first]
            if logs:
                rows.append([name, *map(_spread_or_nan, [*steps, [log[-1][1] for log in logs]])])
        if rows:
            columns = ["system", *(f"step {step}" for step in first), "end"]
            note = "training loss in nats per token, mean over the steps since the previous log entry"
            if kind == LOSSES[1]:
                note += "; not comparable between systems, because objectives predict different tokens"
            tables.append(_with_seeds(results, Table(f"loss, {kind}", columns, rows, note)))
    return tables


def detail_tables(results: Results) -> dict[str, list[Table]]:
    """Return the tables that go beyond the scores, by section of the report; sections may be empty."""
    return {
        "General English": fluency_tables(results),
        "Templates and entities": [*template_tables(results), *entity_tables(results)],
        "Log-probabilities": likelihood_tables(results),
        "Losses": loss_tables(results),
    }


def _spread_or_nan(values: Sequence[float | None]) -> str:
    """Return the mean and the standard deviation, or "NaN" if a run diverged."""
    finite = all_finite(values)
    return "NaN" if finite is None else spread(finite)


def _with_seeds(results: Results, table: Table) -> Table:
    """Return the table, with a column of seeds if the systems have different ones; an evaluated model has none."""
    by_name = {name: seeds(members) for name, members in by_label(results.runs).items()}
    if len({tuple(own) for own in by_name.values() if own}) < 2:
        return table
    cells = {name: ", ".join(map(str, own)) or NOTHING for name, own in by_name.items()}
    rows = [[row[0], cells.get(row[0], NOTHING), *row[1:]] for row in table.rows]
    return replace(table, columns=[table.columns[0], "seeds", *table.columns[1:]], rows=rows)


def _over_seeds(runs: Sequence[Run], task: str, metric: str) -> str:
    """Return mean ± standard deviation; for a single run its value and, if the metric has one, its interval."""
    values = scores(runs, task, metric)
    if len(values) == 1:
        interval = next(run.tasks[task].interval(metric) for run in runs if task in run.tasks)
        return spread(values) + (f" [{interval[0]:.2f}, {interval[1]:.2f}]" if interval else "")
    return spread(values)


def spread(values: Sequence[float]) -> str:
    """Return the mean ± the standard deviation, which a single value does not have."""
    if not values:
        return NOTHING
    return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


def ceilings(results: Results, task: str) -> str:
    """Return the ceiling of a task, or several if merged runs differ in their data."""
    known = [ceiling(results, run, task) for run in results.runs]
    return _joined({f"{value:.2f}" for value in known if value is not None})


def _of(reachable: float | None) -> str:
    return "" if reachable is None else f" of {reachable:.2f}"


def _joined(values: Iterable[object]) -> str:
    """Return one value as it is, and several, from merged runs on different data, side by side."""
    return " / ".join(sorted(map(str, values))) or NOTHING


def _parts(run: Run, task: str, kind: str) -> Mapping[str, Any]:
    """Return a run's scores of a task by "templates" or "entities", or its "likelihood"; empty if it has none."""
    return (getattr(run.tasks[task], kind) if task in run.tasks else None) or {}


def _over_parts(runs: Sequence[Run], task: str, kind: str, part: str) -> str:
    values = [_parts(run, task, kind).get(part) for run in runs]
    known = [value for value in values if value is not None]
    return f"{mean(known):.2f}" if known else NOTHING


def _defined(tests: Sequence[Mapping[str, float | None]], key: str) -> list[float]:
    """Return the values that are defined: t is not if all differences are equal, log p is not for a diverged model."""
    return [value for test in tests if (value := test[key]) is not None]


def _largest(values: Sequence[float]) -> str:
    return f"{max(values):.2g}" if values else NOTHING


def _in_markdown(cell: str) -> str:
    return f" {' '.join(cell.split())} ".replace("|", "\\|").replace("<", "\\<")
