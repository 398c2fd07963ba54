"""A report: every table in one Markdown file, pictures, and one HTML page with all of it and samples of answers."""

import os
from collections.abc import Sequence
from pathlib import Path

from bico_ext.files import make_folder, write_text
from bico_ext.reports import plots
from bico_ext.reports.html import page
from bico_ext.reports.merge import merge
from bico_ext.reports.records import Prediction, Results, read_predictions
from bico_ext.reports.tables import Table, detail_tables, gap_tables, heading, score_tables, summary_table

PICTURES = {  # by file, its title and what draws it, which says whether there was anything to draw
    "accuracy.png": ("Accuracy", plots.draw_accuracy),
    "gap.png": ("Forward and reverse", plots.draw_gaps),
    "curves.png": ("Learning curves", plots.draw_curves),
    "loss.png": ("Losses", plots.draw_losses),
}
FILES = ("report.html", "table.md", *PICTURES)


def markdown(results: Results) -> str:
    """Every table in Markdown: scores by metric, gaps, then templates, entities, log-probabilities and losses."""
    details = [table for tables in detail_tables(results).values() for table in tables]
    tables = [*score_tables(results), *gap_tables(results), *details]
    return "\n".join([heading(results) + "\n", *(table.markdown() for table in tables)])


def write_report(results: Results, folder: str | os.PathLike[str]) -> Table:
    """Write a report on results into the folder that holds them.

    Files of an earlier report are replaced, and removed where these results have nothing for them.

    Args:
        results: one or more runs.
        folder: where the report goes. Its `predictions.jsonl`, if there, gives the samples of answers.

    Returns:
        The table that fits a screen.

    Raises:
        ValueError: there are no runs, or the predictions are broken.

    Example:
        >>> print(write_report(read_results("out"), "out").text())  # doctest: +SKIP
    """
    if not results.runs:
        raise ValueError("results must hold one or more runs, got none; see what the runs failed of")
    return _write(results, read_predictions(folder, results), Path(folder))


def merged_report(folders: Sequence[str | os.PathLike[str]], output_dir: str | os.PathLike[str]) -> Table:
    """Write one report on the results of several folders.

    `bico_ext.reports.merge.merge` says what is put together and what is kept apart. The folders are only read.

    Args:
        folders: one or more, as `bico compare` or `bico evaluate` wrote them.
        output_dir: where the report goes; made if missing. It may hold an earlier report and nothing else.

    Returns:
        The table that fits a screen.

    Raises:
        FileExistsError: output_dir holds other things than a report.
        FileNotFoundError: a folder has no results.
        ValueError: a file is broken, or a run is there twice.

    Example:
        >>> merged_report(["out/seeds-0-2", "out/seeds-3-5"], "out/all")  # doctest: +SKIP
    """
    results, predictions = merge(folders)
    target = make_folder(output_dir)
    others = sorted({path.name for path in target.iterdir()} - set(FILES))
    if others:
        some = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
        raise FileExistsError(f"output_dir {target} holds other things than a report ({some}); name another folder")
    return _write(results, predictions, target)


def _write(results: Results, predictions: Sequence[Prediction], folder: Path) -> Table:
    import matplotlib  # here: the import takes a second, which other commands need not wait for

    write_text(folder / "table.md", markdown(results))
    drawn = {}
    with matplotlib.rc_context({"text.parse_math": False}):  # a $ in the name of a task or a folder is a dollar
        for name, (title, draw) in PICTURES.items():
            if draw(results, folder / name):
                drawn[title] = folder / name
            else:
                (folder / name).unlink(missing_ok=True)
    write_text(folder / "report.html", page(results, predictions, drawn))
    return summary_table(results)
