"""The table that a command prints when it has finished."""

from collections.abc import Sequence
from statistics import mean

from bico_ext.reports.gap import gaps
from bico_ext.reports.lookups import all_finite, by_label, perplexities, scores, seeds, task_names
from bico_ext.reports.records import Results, Run
from bico_ext.reports.tables import NOTHING, Table, ceilings, spread

MOST_TASKS_WITH_SPREAD = 5  # on a screen, beside the gaps


def summary_table(results: Results) -> Table:
    """Return one table that fits on a screen: `contains` by system and task, with mean gaps.

    More than five tasks are shown without the spread over seeds. The last row has the ceilings, and the last column the
    mean perplexity of English, each if it is known; NaN if a run of the system diverged.
    """
    runs = results.runs
    rows_of_gaps = gaps(results)
    gap_of = {(row.task, row.label): f"{mean(row.gap):.2f}" for row in rows_of_gaps}
    counterparts = {row.task: row.counterpart for row in rows_of_gaps}
    columns = [[task, "gap"] if task in counterparts else [task] for task in task_names(runs)]
    with_spread = len(columns) <= MOST_TASKS_WITH_SPREAD and any(
        len(members) > 1 for members in by_label(runs).values()
    )
    with_perplexity = bool(perplexities(runs))
    rows = []
    for name, members in by_label(runs).items():
        cells = [name]
        for task, *gap in columns:
            values = scores(members, task)
            cells.append(spread(values if with_spread or not values else [mean(values)]))
            if gap:
                cells.append(gap_of.get((task, name), NOTHING))
        if with_perplexity:
            cells.append(_mean_perplexity(members))
        rows.append(cells)
    reachable = [[ceilings(results, task), *([""] if gap else [])] for task, *gap in columns]
    if any(cells[0] != NOTHING for cells in reachable):
        rows.append(["(ceiling)", *(cell for cells in reachable for cell in cells), *([""] if with_perplexity else [])])
    numbers = ", ".join(map(str, seeds(runs)))
    title = "Share of answers that contain the target"
    if len(seeds(runs)) > 1:
        title += f", mean {'± standard deviation ' if with_spread else ''}over seeds {numbers}"
    elif numbers:
        title += f", seed {numbers}"
    pairs = ", ".join(f"{counterpart} minus {task}" for task, counterpart in counterparts.items())
    note = f"gap: forward counterpart minus reverse task ({pairs})" if counterparts else ""
    names = ["system", *(cell for cells in columns for cell in cells), *(["perplexity"] if with_perplexity else [])]
    return Table(title, names, rows, note)


def _mean_perplexity(runs: Sequence[Run]) -> str:
    values = all_finite(perplexities(runs))
    if values is None:
        return "NaN"
    return f"{mean(values):.0f}" if values else NOTHING
