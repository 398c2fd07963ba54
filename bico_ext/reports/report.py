"""The report: all tables in one Markdown file, the plots, and one HTML page with tables, plots and sample answers."""

import os
from collections.abc import Sequence
from pathlib import Path

from bico_ext.files import expand_user, left_by_killed, make_folder, write_text
from bico_ext.reports import plots
from bico_ext.reports.html import html_page
from bico_ext.reports.merge import merge
from bico_ext.reports.records import Prediction, Results, read_predictions
from bico_ext.reports.summary import summary_table
from bico_ext.reports.tables import Table, detail_tables, gap_tables, heading, score_tables

PLOTS = {  # file: its title, and the function that draws it and returns whether there was anything to draw
    "accuracy.png": ("Accuracy", plots.draw_accuracy),
    "gap.png": ("Forward and reverse", plots.draw_gaps),
    "curves.png": ("Learning curves", plots.draw_curves),
    "loss.png": ("Losses", plots.draw_losses),
}
FILES = ("report.html", "table.md", *PLOTS)
_FORMER_FILES = ("details.md",)  # of earlier versions; its tables are in table.md now


def markdown(results: Results) -> str:
    """Return all tables in Markdown: scores by metric, gaps, templates, entities, log-probabilities and losses."""
    details = [table for tables in detail_tables(results).values() for table in tables]
    tables = [*score_tables(results), *gap_tables(results), *details]
    return "\n".join([heading(results) + "\n", *(table.markdown() for table in tables)])


def write_report(results: Results, folder: str | os.PathLike[str]) -> Table:
    """Write a report on results into the folder that holds them.

    It replaces the files of an earlier report. A plot for which these results have no data is removed.

    Args:
        results: one or more runs.
        folder: the folder for the report. Its `predictions.jsonl`, if there, provides the sample answers.

    Returns:
        The table that fits on a screen.

    Raises:
        ValueError: there are no runs, or the predictions are broken.

    Example:
        >>> print(write_report(read_results("out"), "out").text())  # doctest: +SKIP
    """
    if not results.runs:
        raise ValueError("results must hold one or more runs, got none; see the errors of the failed runs")
    return _write(results, read_predictions(folder, results), Path(expand_user(folder)))


def merged_report(folders: Sequence[str | os.PathLike[str]], output_dir: str | os.PathLike[str]) -> Table:
    """Write one report on the results of several folders, which are only read.

    `bico_ext.reports.merge.merge` documents which runs are put together and which are kept apart.

    Args:
        folders: one or more folders that `bico compare` or `bico evaluate` wrote.
        output_dir: the folder for the report; it is made if it is missing. It may hold an earlier report, nothing else.

    Returns:
        The table that fits on a screen.

    Raises:
        FileExistsError: output_dir holds files that are not part of a report.
        FileNotFoundError: a folder has no results.
        ValueError: a file is broken, or a run occurs twice.

    Example:
        >>> merged_report(["out/seeds-0-2", "out/seeds-3-5"], "out/all")  # doctest: +SKIP
    """
    results, predictions = merge(folders)
    target = make_folder(output_dir)
    held = {path.name for path in target.iterdir() if not left_by_killed(path)}
    others = sorted(held - {*FILES, *_FORMER_FILES})
    if others:
        some = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
        raise FileExistsError(f"output_dir {target} holds files other than a report ({some}); name another folder")
    return _write(results, predictions, target)


def _write(results: Results, predictions: Sequence[Prediction], folder: Path) -> Table:
    import matplotlib  # imported here because it takes a second, which other commands should not pay

    write_text(folder / "table.md", markdown(results))
    for name in _FORMER_FILES:
        (folder / name).unlink(missing_ok=True)
    drawn = {}
    with matplotlib.rc_context({"text.parse_math": False}):  # a $ in the name of a task or folder is no formula
        for name, (title, draw) in PLOTS.items():
            if draw(results, folder / name):
                drawn[title] = folder / name
            else:
                (folder / name).unlink(missing_ok=True)
    write_text(folder / "report.html", html_page(results, predictions, drawn))
    return summary_table(results)
